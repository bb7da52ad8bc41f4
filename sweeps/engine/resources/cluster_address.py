"""Checks an address of a Ray cluster within seconds; Ray itself tries a dead one for minutes."""

from __future__ import annotations

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 3.0
"""Seconds to wait for a connection, the look-up of the host included, and then for an answer."""

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of gRPC sends first: HTTP/2's connection preface and an empty frame of settings (RFC 9113, 3.4)."""
SETTINGS_FRAME = 4
"""Type of the frame that a server sends first."""


def parse_cluster_address(address: str) -> tuple[str, int]:
    """Return host and port of a cluster's address.

    >>> parse_cluster_address("10.0.0.1:6379"), parse_cluster_address("[fd00::1]:6379")
    (('10.0.0.1', 6379), ('fd00::1', 6379))

    Raises:
        ValueError: the address has another form, or is one that sweeps cannot use.
    """
    scheme, separator, _ = address.partition("://")
    if separator and scheme == "ray":
        raise ValueError(_message(address, "is for Ray Client, through which sweeps do not run"))
    if separator and scheme in ("http", "https"):
        raise ValueError(_message(address, "is that of the job server, which only takes `ray job submit`"))
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^\s:/@]+)):(\d{1,5})", address, re.ASCII)
    if match is None or not 0 < int(match[3]) < 2**16:
        raise ValueError(_message(address, "is not HOST:PORT, as in 10.0.0.1:6379"))
    return match[1] or match[2], int(match[3])


def check_cluster_address(host: str, port: int, address: str) -> None:
    """Check that a gRPC server answers at a cluster's address, as Ray's does.

    Args:
        host: the host.
        port: the port.
        address: the address as the user gave it, for the message.

    Raises:
        ValueError: nothing answers, or another server; the message says what to do.
    """
    try:
        with _connect(host, port) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("0", "false") and not _speaks_http2(connection):
                raise ValueError(_message(address, "leads to a server that is no Ray cluster"))
    except socket.gaierror as error:
        raise ValueError(_message(address, f"names an unknown host ({error.strerror})")) from error
    except ConnectionRefusedError as error:
        raise ValueError(_message(address, "leads nowhere: nothing listens on that port")) from error
    except TimeoutError as error:
        raise ValueError(_message(address, f"does not answer within {CONNECT_SECONDS:g} s")) from error
    except OSError as error:
        raise ValueError(_message(address, f"cannot be reached ({error.strerror})")) from error


def cluster_error(address: str, error: Exception) -> ValueError:
    """Return the error of a cluster that answers but cannot be joined, in one message.

    Args:
        address: the cluster's address, as the user gave it.
        error: Ray's error.
    """
    causes = [cause for cause in (error, error.__cause__) if cause is not None]
    lines = [line.strip() for cause in reversed(causes) for line in str(cause).splitlines() if line.strip()]
    return ValueError(_message(address, f"cannot be joined: {' '.join(lines)[:600]}"))


def _message(address: str, problem: str) -> str:
    return (
        f"RAY_ADDRESS={address if address.isprintable() else ascii(address)} {problem}. Run the sweep on a machine of "
        f"the cluster (docs/cluster.md), or `unset RAY_ADDRESS` to run it here"
    )


def _connect(host: str, port: int) -> socket.socket:
    """Connect to a server; unlike `socket.create_connection`, the time limit includes the look-up of the host."""
    threads = ThreadPoolExecutor(max_workers=1)
    try:
        return threads.submit(socket.create_connection, (host, port), CONNECT_SECONDS).result(CONNECT_SECONDS)
    finally:
        threads.shutdown(wait=False)


def _speaks_http2(connection: socket.socket) -> bool:
    """Return whether a server answers HTTP/2's preface with a frame of settings."""
    connection.settimeout(ANSWER_SECONDS)
    answer = b""
    try:
        connection.sendall(HTTP2_PREFACE)
        while len(answer) < 4 and (received := connection.recv(64)):
            answer += received
    except OSError:  # it has closed the connection, or waits for something else
        return False
    return len(answer) >= 4 and answer[3] == SETTINGS_FRAME
