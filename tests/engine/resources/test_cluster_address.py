"""Addresses of clusters that cannot be joined: what is wrong is known within seconds and said once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sweeps.engine.resources import cluster
from sweeps.engine.resources.cluster_address import check_cluster_address, parse_cluster_address

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + b"\0\4\0\0\xff\xff"
STATUS_200, STATUS_404 = (bytes([0, 0, 1, 1, 5, 0, 0, 0, 1, status]) for status in (0x88, 0x8D))
"""Frames of HTTP/2: settings, and headers of an answer."""


@contextmanager
def listener(reply: bytes | None = None) -> Iterator[int]:
    """A server that answers with these bytes, or never; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply or b"")

        if reply is not None:
            threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://10.0.0.1:10001", "is for Ray Client"),
        ("http://127.0.0.1:8265", "is that of the job server"),
        ("https://head:8265", "is that of the job server"),
        ("head", "is not HOST:PORT"),
        ("head:", "is not HOST:PORT"),
        (":6379", "is not HOST:PORT"),
        ("head:ray", "is not HOST:PORT"),
        ("head:0", "is not HOST:PORT"),
        ("head:70000", "is not HOST:PORT"),
        ("head:-1", "is not HOST:PORT"),
        ("head:6379/x", "is not HOST:PORT"),
        ("two words:6379", "is not HOST:PORT"),
        ("redis://head:6379", "is not HOST:PORT"),
        ("user@head:6379", "is not HOST:PORT"),
        ("AUTO", "is not HOST:PORT"),
        ("head:6379\n", "is not HOST:PORT"),
        ("head:٣٤", "is not HOST:PORT"),
    ],
    ids=ascii,
)
def test_a_malformed_address_is_refused_with_both_ways_out(address: str, problem: str) -> None:
    with pytest.raises(ValueError, match="^RAY_ADDRESS=") as error:
        parse_cluster_address(address)
    assert problem in str(error.value)
    assert "on a machine of the cluster" in str(error.value)
    assert "`unset RAY_ADDRESS`" in str(error.value)
    assert str(error.value).isprintable()


def test_a_port_on_which_nothing_listens_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ValueError, match=r"RAY_ADDRESS=head:1 leads nowhere: nothing listens on that port"):
        check_cluster_address("127.0.0.1", port, "head:1")


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"", SETTINGS, SETTINGS + STATUS_404],
    ids=["HTTP", "SSH", "nothing", "HTTP/2 that closes", "HTTP/2 without gRPC"],
)
def test_another_server_is_refused(reply: bytes) -> None:
    with listener(reply) as port, pytest.raises(ValueError, match="leads to a server that is no Ray cluster"):
        check_cluster_address("127.0.0.1", port, f"127.0.0.1:{port}")


def test_a_server_that_accepts_and_never_answers_is_refused() -> None:
    with listener() as port, pytest.raises(ValueError, match="leads to a server that is no Ray cluster"):
        check_cluster_address("127.0.0.1", port, f"127.0.0.1:{port}")


def test_a_server_of_grpc_is_accepted() -> None:
    with listener(SETTINGS + STATUS_200) as port:
        check_cluster_address("127.0.0.1", port, f"127.0.0.1:{port}")


def test_an_unknown_host_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names an unknown host|does not answer within"):
        check_cluster_address("no-such-host.invalid", 6379, "no-such-host.invalid:6379")


@pytest.mark.parametrize("value", [None, "", " ", "local"])
def test_without_an_address_or_with_local_ray_runs_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert not cluster.has_cluster_address()


def test_any_other_address_is_that_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster.cluster_address() == "auto"
