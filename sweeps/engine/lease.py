"""Lease: one driver at a time works on a sweep."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from sweeps.engine import objects
from xfer import places

SECONDS = 60.0
"""A lease that has not been renewed for so long is nobody's."""
SETTLES = 2.0
"""In an object store, where nobody can lock, whoever took a lease looks so much later whether it is still theirs."""
RENEWED_EVERY = 10.0


class HeldError(RuntimeError):
    """Another driver is at work on this sweep."""


class Lease:
    """Held while a driver works: `with Lease(folder): ...`. Renewed in the background, given back at the end.

    A lease left by a killed driver is taken over: at once where that was on this host, else once it has expired.

    Raises:
        HeldError: another driver holds it; the message says who, and until when.
    """

    def __init__(self, folder: Path, seconds: float = SECONDS, renewed_every: float = RENEWED_EVERY) -> None:
        self._path = folder / "lease.json"
        self._seconds = seconds
        self._renewed_every = renewed_every
        self._holder = uuid.uuid4().hex
        self._done = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        if places.is_far(self._path):
            self._take_far()
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (self._path.with_name(".lease.lock")).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # between looking and taking; let go of by the system, in any case
                self._check_free()
                objects.replace(self._path, self._said())
        self._renewing.start()
        return self

    def _take_far(self) -> None:
        self._check_free()
        if not objects.put(self._path, self._said()):  # of several who find none, the store takes the first
            self._check_free()
            objects.replace(self._path, self._said())  # one that has expired: of several the last has it
            time.sleep(SETTLES)
            if not self._mine():
                self._check_free()

    def _check_free(self) -> None:
        held = _read(self._path)
        if held is not None and _alive(held):
            raise HeldError(
                f"another driver is at work on {self._path.parent.name}: process {held['pid']} on {held['host']}. "
                f"Wait for it or stop it; without a sign of life its lease ends "
                f"{max(0, held['expires'] - time.time()):.0f} s from now"
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._renewing.join()
        if self._mine():
            self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._done.wait(self._renewed_every):
            if self._mine():
                with contextlib.suppress(Exception):  # a full disk, a store that is away: the lease has 60 s
                    objects.replace(self._path, self._said())

    def _mine(self) -> bool:
        held = _read(self._path)
        return held is not None and held["holder"] == self._holder

    def _said(self) -> dict[str, Any]:
        return {
            "holder": self._holder,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "expires": time.time() + self._seconds,
        }


def holder(folder: Path) -> dict[str, Any] | None:
    """Who is at work on the sweep in `folder`: host, pid, expires; None where nobody is."""
    held = _read(folder / "lease.json")
    return held if held is not None and _alive(held) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return objects.read(path)
    except (FileNotFoundError, ValueError):
        return None


def _alive(held: dict[str, Any]) -> bool:
    if held["expires"] < time.time():
        return False
    if held["host"] != socket.gethostname():
        return True
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
