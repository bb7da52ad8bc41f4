"""Scratch folder of a driver: the session of a local Ray and the files of Ray Tune, removed with the driver.

A killed driver cannot remove its folder, so the next one does. A driver holds a lock in its folder as long as it lives,
and the system releases the lock however it ends: a folder whose lock is free has no owner. Unlike a process id, a lock
is also seen from other containers that share the folder for temporary files.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from xfer.storage.local_cache import process_exists

PREFIX = "xfer-"
"""Start of the name of a scratch folder; the process id follows. Short, because sockets in it need short paths."""

LOCK_FILE = ".xfer-driver.lock"
"""The file that a driver locks. A folder without it is not taken for a scratch folder."""

DEFAULT_PARENTS = ("/tmp", "/var/tmp")
"""Folders for temporary files if the environment gives none that can be used."""

PARENT_VARIABLES = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
"""Environment variables that choose the parent folder. As in Ray, TMPDIR counts on Linux only: on macOS it is always
set, to a path that is too long."""

MIN_FREE_BYTES = 32 * 2**20
"""Free space below which a parent folder is not used. Ray's logs take a few MB."""

SOCKET_PATH = "/session_2026-11-30_23-59-59_123456_4194304/sockets/plasma_store"
"""Longest path of a socket below Ray's folder."""
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103
"""Maximum length of the path of a socket in bytes; set by the system."""


@dataclass(frozen=True)
class Scratch:
    """A scratch folder, held by this process until `remove`."""

    folder: Path
    _lock: IO[bytes] = field(repr=False)

    def remove(self) -> None:
        """Remove the folder; what other processes still write to it is left to the next driver."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


@functools.cache
def current() -> Scratch:
    """Return the scratch folder of this process, created at the first call and removed when the process exits.

    Raises:
        ValueError: no folder for temporary files can be used.
    """
    created = create(choose_parent()[0])
    atexit.register(remove_current)
    return created


def remove_current() -> None:
    """Remove the scratch folder of this process, if it has one."""
    if current.cache_info().currsize:
        current().remove()
        current.cache_clear()


def choose_parent(environment: Mapping[str, str] | None = None) -> tuple[Path, str]:
    """Choose the folder in which scratch folders are created.

    Args:
        environment: environment variables. Defaults to those of this process.

    Returns:
        The folder, and a note if it is not the one that the environment asks for, "" otherwise.

    Raises:
        ValueError: no folder can be used; the message says why.
    """
    environment = os.environ if environment is None else environment
    requested = {f"{name}={environment[name]}": environment[name] for name in PARENT_VARIABLES if environment.get(name)}
    problems: list[str] = []
    for shown, path in {**requested, **dict(zip(DEFAULT_PARENTS, DEFAULT_PARENTS, strict=True))}.items():
        parent = Path(path)
        problem = _parent_problem(parent)
        if not problem:
            note = f"{problems[0]}, so temporary files go to {parent}" if problems else ""
            return parent.absolute(), note
        problems.append(f"{shown} {problem}")
    raise ValueError(f"no folder for temporary files: {'; '.join(problems)}. Free some space, or set TMPDIR")


def create(parent: Path) -> Scratch:
    """Create the scratch folder of this process, and remove those whose owners have ended.

    Args:
        parent: the folder in which it is created, as returned by `choose_parent`.
    """
    remove_leftovers(parent)
    folder = _create_folder(parent)
    lock = (folder / LOCK_FILE).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return Scratch(folder, lock)


def remove_leftovers(parent: Path) -> None:
    """Remove this user's scratch folders whose owners have ended."""
    for folder in parent.glob(f"{PREFIX}*"):
        match = re.fullmatch(r"(\d+)(-\d+)?", folder.name.removeprefix(PREFIX), re.ASCII)
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if match is None or not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            # A new folder has no locked file for a moment, in which only the process id tells that it has an owner.
            if process_exists(int(match[1])) and int(match[1]) != os.getpid():
                continue
            if _lock_is_free(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _create_folder(parent: Path) -> Path:
    for number in range(1, 1000):  # a name is taken by a driver in another container, or by another user
        folder = parent / f"{PREFIX}{os.getpid()}{f'-{number}' if number > 1 else ''}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise ValueError(f"{parent} has no free name for temporary files: remove {parent / PREFIX}{os.getpid()}-*")


def _lock_is_free(folder: Path) -> bool:
    try:
        with (folder / LOCK_FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is locked, or there is none
        return False
    return True


def _parent_problem(parent: Path) -> str:
    """Return why scratch folders cannot be created in a folder; "" if they can."""
    if not parent.is_dir():
        return "is not a folder"
    if len(os.fsencode(parent.absolute() / f"{PREFIX}{os.getpid()}")) + len(SOCKET_PATH) > MAX_SOCKET_PATH:
        return f"is too long for Ray's sockets, whose paths have at most {MAX_SOCKET_PATH} bytes"
    if not re.fullmatch(r"[\w./-]*", str(parent), re.ASCII):
        return "has other characters than letters, digits and ./_-, which Ray may not handle"
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(2**16))
        free = shutil.disk_usage(parent).free
    except OSError as error:
        return f"cannot be written to ({error.strerror})"
    return f"has only {free >> 20} MB left on its disk" if free < MIN_FREE_BYTES else ""
