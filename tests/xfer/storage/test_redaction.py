"""Redaction while other threads change the environment."""

from __future__ import annotations

import os
import threading

from xfer.storage.redaction import redact


def test_a_variable_that_another_thread_removes_meanwhile_is_no_error():
    ended = threading.Event()

    def toggle():
        while not ended.is_set():
            os.environ["XFER_TEST_TOGGLED"] = "1"
            os.environ.pop("XFER_TEST_TOGGLED")

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        assert {redact("no secret") for _ in range(3_000)} == {"no secret"}
    finally:
        ended.set()
        thread.join()
