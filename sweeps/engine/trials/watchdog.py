"""Watchdog: notices a process that hangs, says where, ends it, and has its work repeated once.

A trial can stop for ever without an error: its process was stopped, or it waits for a lock, a file server or another
GPU that does not answer. Each process counts its steps (`xfer.devices.heartbeat`) and sends the count to Ray, where the
driver looks for it. A process hangs if it takes no step for ten minutes and for five times its own slowest step. The
driver then asks it for its stack and kills it, and Ray repeats the work in another process, from the last checkpoint.
If that hangs too, the work has failed by a fault of the machine (`machine_faults`). The environment variable
XFER_HANG_SECONDS replaces the ten minutes.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)


def parse_hang_seconds(text: str) -> float:
    """Return the value of XFER_HANG_SECONDS; 600 if it is empty.

    Raises:
        ValueError: it is not a number above 0.
    """
    try:
        seconds = float(text or 600)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"XFER_HANG_SECONDS={text}: must be a number of seconds above 0, such as 600")
    return seconds


HANG_SECONDS = parse_hang_seconds(os.environ.get("XFER_HANG_SECONDS", ""))
"""Seconds without a step after which a process may be called hanging."""
SLOWEST_STEPS = 5.0
"""A process gets this many times its own slowest step, if that is longer."""
START_FACTOR = 3.0
"""Before its first step a process gets this many times `HANG_SECONDS`: it may fetch images and weights."""

LOOK_SECONDS = min(15.0, HANG_SECONDS / 20)
"""Seconds between two looks of the driver at its processes."""
MAX_HANGS = 2
"""Number of times that the same work may hang before it has failed."""


@dataclass(frozen=True)
class Beat:
    """What a process last said about itself."""

    work: str
    """What it works on, such as the name of a trial."""
    node: str
    """Ray's id of its machine."""
    host: str
    pid: int
    file: int
    """Number of the open file to which it writes its stack when it is asked to."""
    inode: int
    """Of that file; tells the process from a later one with the same id."""
    sent: int
    """Number of times that it has said something: a process that is stopped says nothing."""
    steps: int
    slowest_seconds: float
    is_waiting: bool
    """Whether it waits for the driver; then only a process that says nothing hangs."""

    @property
    def limit(self) -> float:
        """Seconds that it may go without a step."""
        if not self.steps:
            return START_FACTOR * HANG_SECONDS
        return max(HANG_SECONDS, SLOWEST_STEPS * self.slowest_seconds)


class Processes(Protocol):
    """The processes that work for a driver."""

    def beats(self) -> Mapping[str, Beat]:
        """Return what each of them last said, by a key."""
        ...

    def end(self, key: str, beat: Beat) -> str | None:
        """Kill a process and return where it was; None if it had ended."""
        ...

    def give_up(self, work: str, reason: str) -> None:
        """Let the work fail with a reason instead of being repeated; an empty one takes that back."""
        ...


class IdleTimes:
    """How long each process has gone without a step."""

    def __init__(self) -> None:
        self._last_look: float | None = None
        self._beats: dict[str, Beat] = {}
        self._idle: dict[str, float] = {}

    def update(self, beats: Mapping[str, Beat], now: float) -> dict[str, float]:
        """Return the seconds without a step of each process that hangs.

        Args:
            beats: what each process last said, by key.
            now: a monotonic time in seconds. If the last look was long ago, the driver itself was stopped meanwhile,
                most likely together with its processes: no more than two intervals are counted.
        """
        elapsed = 0.0 if self._last_look is None else min(now - self._last_look, 2 * LOOK_SECONDS)
        self._last_look = now
        for key, beat in beats.items():
            before = self._beats.get(key)
            self._idle[key] = self._idle[key] + elapsed if before and not _has_moved(before, beat) else 0.0
        self._beats = dict(beats)
        self._idle = {key: self._idle[key] for key in beats}
        return {key: seconds for key, seconds in self._idle.items() if seconds > beats[key].limit}


def _has_moved(before: Beat, now: Beat) -> bool:
    if now.is_waiting and before.is_waiting:
        return now.sent != before.sent
    return (now.steps, now.is_waiting) != (before.steps, before.is_waiting)


class Watchdog:
    """Looks at the processes of a driver in a thread until it is stopped.

    Args:
        processes: that are watched.
        report: prints a line.
    """

    def __init__(self, processes: Processes, report: Callable[[str], None]) -> None:
        self._processes = processes
        self._report = report
        self._idle_times = IdleTimes()
        self._hangs: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking. A look that has begun may still end a process."""
        self._stopped.set()

    def look(self, now: float) -> None:
        """End the processes that hang.

        Args:
            now: a monotonic time in seconds.
        """
        beats = self._processes.beats()
        for key, seconds in self._idle_times.update(beats, now).items():
            self._end(key, beats[key], seconds)

    def _end(self, key: str, beat: Beat, seconds: float) -> None:
        is_last = self._hangs[beat.work] + 1 >= MAX_HANGS
        reason = f"it made no progress for {seconds:.0f} s, {MAX_HANGS} times" if is_last else ""
        if is_last:
            self._processes.give_up(beat.work, reason)  # first: the work is repeated as soon as the process has ended
        place = self._processes.end(key, beat)
        if place is None:
            if is_last:
                self._processes.give_up(beat.work, "")
            return
        self._hangs[beat.work] += 1
        if is_last:
            self._processes.give_up(beat.work, f"{reason}; the last time {place}")
        self._report(
            f"{beat.work} made no progress for {seconds:.0f} s: process {beat.pid} on {beat.host} {place}; it was "
            + ("ended for the second time" if is_last else "ended, and the work is repeated from its last checkpoint")
        )

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self.look(time.monotonic())
            except Exception:  # Ray is disconnecting, or its head cannot be reached at the moment
                log.debug("the watchdog could not look", exc_info=True)
