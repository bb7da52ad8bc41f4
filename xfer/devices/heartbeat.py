"""Heartbeat: counts the steps that this process takes, so that others can tell a slow process from one that hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Heartbeat:
    """Progress of this process since the last `restart`."""

    steps: int = 0
    """Batches that were read, trained on or evaluated."""
    slowest_seconds: float = 0.0
    """Longest time between two of them."""
    is_waiting: bool = False
    """Whether the process waits for another one and is not expected to make progress."""


_now = Heartbeat()
_last = time.monotonic()


def beat() -> None:
    """Count a step. Called wherever batches are read or trained on; costs less than a microsecond."""
    global _last
    last, _last = _last, time.monotonic()
    if _now.steps:
        _now.slowest_seconds = max(_now.slowest_seconds, _last - last)
    _now.steps += 1


def restart() -> None:
    """Start to count from 0: this process begins something new."""
    global _now, _last
    _now, _last = Heartbeat(), time.monotonic()


def current() -> Heartbeat:
    """Return the progress since the last `restart`."""
    return _now


@contextmanager
def waiting() -> Iterator[None]:
    """Wait for another process; the time counts neither as progress nor as a lack of it."""
    global _last
    _now.is_waiting = True
    try:
        yield
    finally:
        _now.is_waiting, _last = False, time.monotonic()
