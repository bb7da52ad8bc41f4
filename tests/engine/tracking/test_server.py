"""Waiting for MLflow's server when its port is not used by HTTP."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from sweeps.engine.tracking.server import LOCALHOST, is_listening


def test_a_request_that_is_echoed_is_not_taken_for_a_server() -> None:
    """A connection to a port without a listener can become a connection to itself, which echoes the request."""
    with socket.create_server((LOCALHOST, 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(10)
        echoed = thread.submit(_echo_once, listener)
        assert not is_listening(listener.getsockname()[1])
        assert echoed.result(10).startswith(b"GET /health HTTP/1.1\r\n")


def _echo_once(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection:
        request = connection.recv(4096)
        connection.sendall(request)
        return request
