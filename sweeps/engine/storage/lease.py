"""Lease: a lock file that expires, so that only one driver works on a sweep."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import subprocess
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
UNKNOWN = "unknown"
"""Holder, host and process of a damaged lease."""

POLL_SECONDS = 1.0
"""Seconds between two looks at another host's lease."""


class LeaseHeldError(RuntimeError):
    """Another driver is working on this sweep."""


class Lease:
    """Hold the lease of a sweep while a driver works: `with Lease(folder): ...`.

    The lease is renewed in the background and released at the end. The lease of a killed driver is taken over: at once
    on the same machine, otherwise once it has expired. On the same machine, a lease is held as long as its process
    exists, whatever the clock says: the process may be suspended, the laptop's lid closed, or the clock set.

    Args:
        folder: the sweep's folder.
        seconds: seconds that the lease lasts without renewal.
        renew_seconds: seconds between renewals.
        on_wait: called with a message before waiting for another host's lease to expire or be renewed (a lost host does
            not renew it). By default an unexpired lease is refused without waiting.
        on_lost: called once if another driver has taken the lease because it could not be renewed in time, or if the
            folder has been removed.

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
        self._renewed = time.time()
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
        if lease is None or not _is_active(lease):
            return
        name, seconds = self._path.parent.name, max(0, lease["expires"] - time.time())
        if lease["holder"] == UNKNOWN:
            raise LeaseHeldError(
                f"{self._path} is damaged, so another driver may be at work on {name}. It would repair its lease; if "
                f"the file is still damaged in {seconds:.0f} s, the same command takes the lease over"
            )
        raise LeaseHeldError(
            f"another driver is at work on {name}: process {lease['pid']} on {lease['host']}. Wait for it or stop it; "
            + (
                "its lease ends with the process"
                if _is_on_this_machine(lease)
                else f"unless renewed, its lease expires in {seconds:.0f} s"
            )
        )

    def _wait_for_other_host(self) -> None:
        if self._on_wait is None:
            return
        lease = _read(self._path)
        if lease is None or not _is_active(lease) or lease["host"] == socket.gethostname():
            return
        where = "that holds a damaged lease" if lease["holder"] == UNKNOWN else f"on {lease['host']}"
        self._on_wait(f"waiting up to a minute for the driver {where} to show that it is alive")
        while (latest := _read(self._path)) == lease and latest["expires"] > time.time():
            time.sleep(POLL_SECONDS)

    def _renew(self) -> None:
        while not self._released.wait(self._renew_seconds):
            try:
                if not self._renew_once():
                    self._on_lost()
                    return
            except Exception as error:  # a full disk or an unavailable store: the lease lasts 60 s
                log.warning("the lease could not be renewed: %s", error)

    def _renew_once(self) -> bool:
        """Renew the lease; return False if it is lost to another driver, or if the folder has been removed."""
        local = not object_store.is_remote(self._path)
        if local and not self._path.with_name(LOCK_FILE).exists():
            return False
        with _lock(self._path.with_name(LOCK_FILE)) if local else contextlib.nullcontext():
            lease = _read(self._path)
            # A lease that is gone was removed by hand, or another driver has taken it over and ended meanwhile.
            mine = time.time() < self._renewed + self._seconds if lease is None else lease["holder"] == self._holder
            if mine or (lease is not None and lease["holder"] == UNKNOWN):
                json_objects.replace(self._path, self._content())
                self._renewed = time.time()
                return True
        return lease is not None and not _is_active(lease)

    def _is_mine(self) -> bool:
        lease = _read(self._path)
        return lease is not None and lease["holder"] == self._holder

    def _content(self) -> dict[str, Any]:
        return {
            "holder": self._holder,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _start_of(os.getpid()),
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
    """Return a lease; None without one. A damaged one has the holder `UNKNOWN` and expires after the usual time."""
    try:
        return json_objects.read(path)
    except FileNotFoundError:
        return None
    except ValueError:
        written = object_store.last_written_ms(path)
        expires = LEASE_SECONDS + (time.time() if written is None else written / 1000)
        return {"holder": UNKNOWN, "host": UNKNOWN, "pid": UNKNOWN, "expires": expires}


def _is_active(lease: dict[str, Any]) -> bool:
    if _is_on_this_machine(lease):
        return bool(process_exists(lease["pid"]) and _start_of(lease["pid"]) == lease["started"])
    if lease["expires"] < time.time():
        return False
    # A lease of an earlier version does not name its machine.
    return lease["host"] != socket.gethostname() or "machine" in lease or process_exists(lease["pid"])


def _is_on_this_machine(lease: dict[str, Any]) -> bool:
    return lease["host"] == socket.gethostname() and lease.get("machine") == _machine()


def _machine() -> str:
    """Return what tells this machine from others with its name, and from itself before a restart: process ids differ.

    In a container, it also tells the container's processes from others.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return "without /proc"


def _start_of(pid: int) -> str:
    """Return when a process was started, which tells it from a later one with the same id; "" if unknown or ended."""
    with contextlib.suppress(OSError, IndexError):
        # The name of the program, in parentheses, may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a killed process remains until its parent asks for its status
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=10).stdout.strip()
    return ""
