"""Waiting for MLflow's server, with something else on its port."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from sweeps.engine.tracking.server import LOCALHOST, is_listening


def test_a_question_that_comes_back_as_its_own_answer_is_none() -> None:
    """So it does where the system makes a connection to itself out of one to a port that nobody listens on yet."""
    with socket.create_server((LOCALHOST, 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(10)
        echoed = thread.submit(_echo_once, listener)
        assert not is_listening(listener.getsockname()[1])
        assert echoed.result(10).startswith(b"GET /health HTTP/1.1\r\n")


def _echo_once(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection:
        question = connection.recv(4096)
        connection.sendall(question)
        return question
