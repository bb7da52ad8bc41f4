"""Checks an address of a Ray cluster within seconds; Ray itself tries a dead one for minutes."""

from __future__ import annotations

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 3.0
"""Seconds to wait for a connection, the look-up of the host included, and then for an answer."""

HEADERS_FRAME, SETTINGS_FRAME = 1, 4
"""Types of HTTP/2 frames (RFC 9113)."""
STATUS_200 = 0x88
"""First byte of the headers of an answer with status 200 (RFC 7541, appendix A), as every gRPC server gives it."""


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _text(text: bytes) -> bytes:
    return bytes([len(text)]) + text


GRPC_REQUEST = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(SETTINGS_FRAME, 0, 0)
    + _frame(
        HEADERS_FRAME,
        4,  # these are all headers
        1,
        b"\x83\x86"  # POST, http
        + (b"\x04" + _text(b"/ray.rpc.NodeInfoGcsService/CheckAlive"))
        + (b"\x01" + _text(b"ray"))
        + (b"\x0f\x10" + _text(b"application/grpc"))
        + (b"\x00" + _text(b"te") + _text(b"trailers")),
    )
    + _frame(0, 1, 1, bytes(5))  # an empty message, which ends the request
)
"""A request whether Ray's control service is alive. Any gRPC server answers it with status 200, even with an error."""


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


def check_named_host(address: str) -> None:
    """Check an address as far as that is possible without Ray, whose import takes seconds.

    Ray replaces `auto` by the address that it finds, and localhost by the address of this machine in the network.

    Raises:
        ValueError: see `parse_cluster_address` and `check_cluster_address`.
    """
    if address != "auto":
        host, port = parse_cluster_address(address)
        if host not in ("localhost", "127.0.0.1", "::1"):
            check_cluster_address(host, port, address)


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
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("0", "false") and not _speaks_grpc(connection):
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
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    if any("Traceback" in line for line in lines):  # Ray puts one into its message
        lines = lines[-1:]
    return ValueError(_message(address, f"cannot be joined ({' '.join(lines)[:500]})"))


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


def _speaks_grpc(connection: socket.socket) -> bool:
    """Return whether a server answers like one of gRPC; a server that is only slow to answer counts too."""
    connection.settimeout(ANSWER_SECONDS)
    kind = None
    try:
        connection.sendall(GRPC_REQUEST)
        with connection.makefile("rb") as answer:
            while len(head := answer.read(9)) == 9:
                if kind is None and head[3] != SETTINGS_FRAME:
                    return False
                kind, content = head[3], answer.read(int.from_bytes(head[:3], "big"))
                if kind == HEADERS_FRAME:
                    return content[:1] == bytes([STATUS_200])
    except TimeoutError:
        return kind is not None
    except OSError:  # it has closed the connection
        pass
    return False
