"""Lease: a lock file that expires, so that only one driver works on a sweep."""

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
from typing import IO, Any

from sweeps.engine.storage import json_objects
from xfer.storage import object_store
from xfer.storage.local_cache import process_exists

log = logging.getLogger(__name__)

LEASE_FILE, LOCK_FILE = "lease.json", ".lease.lock"
"""The lease of a sweep's folder, and the file that is locked while it is checked and written."""

LEASE_SECONDS = 60.0
"""Seconds after the last renewal at which a lease expires."""
SETTLE_SECONDS = 2.0
"""Seconds after which a taken lease is checked again. Object stores have no locks, so two drivers may replace an
expired lease at the same time; the last writer wins."""
RENEW_SECONDS = 10.0
"""Seconds between renewals."""
POLL_SECONDS = 1.0
"""Seconds between two looks at another host's lease."""


class LeaseHeldError(RuntimeError):
    """Another driver is working on this sweep."""


class Lease:
    """Hold the lease of a sweep while a driver works: `with Lease(folder): ...`.

    The lease is renewed in the background and released at the end. The lease of a killed driver is taken over: at once
    on the same host, otherwise once it has expired.

    Args:
        folder: the sweep's folder.
        seconds: seconds that the lease lasts without renewal.
        renew_seconds: seconds between renewals.
        on_wait: called with a message before waiting for another host's lease to expire or be renewed (a lost host does
            not renew it). By default an unexpired lease is refused without waiting.
        on_lost: called once if another driver has taken the lease because it could not be renewed in time.

    Raises:
        LeaseHeldError: another driver holds the lease; the message names its process, host and expiry.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float = LEASE_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
        on_wait: Callable[[str], None] | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = folder / LEASE_FILE
        self._seconds = seconds
        self._renew_seconds = renew_seconds
        self._on_wait = on_wait
        self._on_lost = on_lost
        self._holder = uuid.uuid4().hex
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._wait_for_other_host()
        if object_store.is_remote(self._path):
            self._acquire_remote()
        else:
            with _lock(self._path.with_name(LOCK_FILE)):  # between check and write
                self._check_free()
                json_objects.replace(self._path, self._content())
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._released.set()
        self._renewer.join()
        with contextlib.suppress(OSError):
            if self._is_mine():
                object_store.unlink(self._path)
                if not object_store.is_remote(self._path):
                    self._remove_empty_folder()

    def _remove_empty_folder(self) -> None:
        """Remove the sweep's folder if nothing was written to it, so that its name stays free."""
        folder = self._path.parent
        if object_store.list_names(folder) == [LOCK_FILE]:
            with _lock(folder / LOCK_FILE):
                if object_store.list_names(folder) == [LOCK_FILE]:
                    (folder / LOCK_FILE).unlink()
                    folder.rmdir()

    def _acquire_remote(self) -> None:
        self._check_free()
        if json_objects.put_if_absent(self._path, self._content()):  # of several drivers, the store accepts the first
            return
        if self._is_mine():  # written by a first attempt whose answer was lost
            return
        self._check_free()
        json_objects.replace(
            self._path, self._content()
        )  # replaces an expired lease; of several drivers, the last wins
        time.sleep(SETTLE_SECONDS)
        if not self._is_mine():
            self._check_free()

    def _check_free(self) -> None:
        lease = _read(self._path)
        if lease is not None and _is_active(lease):
            raise LeaseHeldError(
                f"another driver is at work on {self._path.parent.name}: process {lease['pid']} on {lease['host']}. "
                f"Wait for it or stop it; unless renewed, its lease expires in "
                f"{max(0, lease['expires'] - time.time()):.0f} s"
            )

    def _wait_for_other_host(self) -> None:
        if self._on_wait is None:
            return
        lease = _read(self._path)
        if lease is None or not _is_active(lease) or lease["host"] == socket.gethostname():
            return
        self._on_wait(f"waiting up to a minute for the driver on {lease['host']} to show that it is alive")
        while (latest := _read(self._path)) == lease and latest["expires"] > time.time():
            time.sleep(POLL_SECONDS)

    def _renew(self) -> None:
        while not self._released.wait(self._renew_seconds):
            try:
                if self._is_mine():
                    json_objects.replace(self._path, self._content())
                elif (lease := _read(self._path)) is not None and _is_active(lease):
                    self._on_lost()
                    return
            except Exception as error:  # a full disk or an unavailable store: the lease lasts 60 s
                log.warning("the lease could not be renewed: %s", error)

    def _is_mine(self) -> bool:
        lease = _read(self._path)
        return lease is not None and lease["holder"] == self._holder

    def _content(self) -> dict[str, Any]:
        return {
            "holder": self._holder,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "expires": time.time() + self._seconds,
        }


def is_unused(folder: Path) -> bool:
    """Return whether a sweep's folder does not exist, or holds nothing but what an interrupted first start left."""
    names = object_store.list_names(folder)
    return set(names) <= {LOCK_FILE, LEASE_FILE} and lease_holder(folder) is None


def lease_holder(folder: Path) -> dict[str, Any] | None:
    """Return holder, host, pid and expiry (`expires`) of the active lease of a sweep's folder, if there is one."""
    lease = _read(folder / LEASE_FILE)
    return lease if lease is not None and _is_active(lease) else None


def _lock(path: Path) -> IO[str]:
    """Open a file and lock it until it is closed; the system releases the lock if this process is killed."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file = path.open("w", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()  # another driver has removed it, together with an empty folder, before it was locked here


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json_objects.read(path)
    except (FileNotFoundError, ValueError):
        return None


def _is_active(lease: dict[str, Any]) -> bool:
    if lease["expires"] < time.time():
        return False
    return lease["host"] != socket.gethostname() or process_exists(lease["pid"])
