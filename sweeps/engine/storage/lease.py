"""Lease: one driver at a time works on a sweep."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from sweeps.engine.storage import json_objects
from xfer.storage import object_store

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A lease that has not been renewed for so long is nobody's."""
SETTLE_SECONDS = 2.0
"""In an object store, where nobody can lock, whoever took a lease looks so much later whether it is still theirs."""
RENEW_SECONDS = 10.0
POLL_SECONDS = 1.0


class LeaseHeldError(RuntimeError):
    """Another driver is at work on this sweep."""


class Lease:
    """Held while a driver works: `with Lease(folder): ...`. Renewed in the background, given back at the end.

    A lease left by a killed driver is taken over: at once where that was on this host, else once it has expired.

    Args:
        folder: the sweep's.
        seconds: how long it lasts without being renewed.
        renew_seconds: seconds between two renewals.
        on_wait: told that another host's lease is waited for, until it has run out or shows a sign of life: a head that
            was lost gives none. Unless given, nobody waits.
        on_lost: called, once, should another driver have taken it, because it could not be renewed in time.

    Raises:
        HeldError: another driver holds it; the message says who, and until when.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float = LEASE_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
        on_wait: Callable[[str], None] | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = folder / "lease.json"
        self._seconds = seconds
        self._renewed_every = renew_seconds
        self._waiting = on_wait
        self._lost = on_lost
        self._holder = uuid.uuid4().hex
        self._done = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._wait_for_a_lost_host()
        if object_store.is_remote(self._path):
            self._take_far()
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (self._path.with_name(".lease.lock")).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # between looking and taking; let go of by the system, in any case
                self._check_free()
                json_objects.replace(self._path, self._said())
        self._renewing.start()
        return self

    def _take_far(self) -> None:
        self._check_free()
        if not json_objects.put_if_absent(
            self._path, self._said()
        ):  # of several who find none, the store takes the first
            if self._mine():  # the answer to the first try had been lost
                return
            self._check_free()
            json_objects.replace(self._path, self._said())  # one that has expired: of several the last has it
            time.sleep(SETTLE_SECONDS)
            if not self._mine():
                self._check_free()

    def _check_free(self) -> None:
        held = _read(self._path)
        if held is not None and _alive(held):
            raise LeaseHeldError(
                f"another driver is at work on {self._path.parent.name}: process {held['pid']} on {held['host']}. "
                f"Wait for it or stop it; without a sign of life its lease ends "
                f"{max(0, held['expires'] - time.time()):.0f} s from now"
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._renewing.join()
        with contextlib.suppress(OSError):
            if self._mine():
                object_store.unlink(self._path)

    def _wait_for_a_lost_host(self) -> None:
        held = _read(self._path)
        if self._waiting is None or held is None or not _alive(held) or held["host"] == socket.gethostname():
            return
        self._waiting(f"waiting for a sign of life of the driver on {held['host']}, for a minute at most")
        while (now := _read(self._path)) == held and now["expires"] > time.time():
            time.sleep(POLL_SECONDS)

    def _renew(self) -> None:
        while not self._done.wait(self._renewed_every):
            try:
                if self._mine():
                    json_objects.replace(self._path, self._said())
                elif (held := _read(self._path)) is not None and _alive(held):
                    self._lost()
                    return
            except Exception as error:  # a full disk, a store that is away: the lease has 60 s
                log.warning("the lease could not be renewed: %s", error)

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


def lease_holder(folder: Path) -> dict[str, Any] | None:
    """Who is at work on the sweep in `folder`: host, pid, expires; None where nobody is."""
    held = _read(folder / "lease.json")
    return held if held is not None and _alive(held) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json_objects.read(path)
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
