"""Checks, before anything is computed, that a folder can be written to."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from xfer.storage import object_store

MIN_FREE_BYTES = 32 * 2**20
"""Free space below which a folder is refused. A sweep needs more, but only the data and the networks say how much."""

REASONS = {
    errno.EEXIST: "there is a file of this name, or a link that leads nowhere",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "it is on a read-only file system",
    errno.ENOSPC: "no space is left on its disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links lead in a circle",
}
"""What an error number means to the user of a folder."""


FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a write for which there is no room."""


class MachineFaultError(RuntimeError):
    """The machine keeps a sweep from going on; the message says how to continue."""


def disk_problem(folder: Path) -> str:
    """Return what is wrong with the disk of a local folder; "" if nothing is known to be."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder}: {REASONS.get(error.errno or 0, error.strerror or str(error))}"
    return f"the disk of {folder} has only {free >> 20} MB left" if free < MIN_FREE_BYTES else ""


def check_folder(folder: Path, source: str) -> None:
    """Create a folder unless it exists, and check that files can be written to it.

    Args:
        folder: a local or remote folder.
        source: the flag or the environment variable that gave it, for the message.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    if object_store.is_remote(folder):
        object_store.check_writable(folder)
    elif problem := _local_problem(folder):
        shown = str(folder) if str(folder).isprintable() else ascii(str(folder))
        raise ValueError(f"{source} {shown} cannot be used: {problem}. Give another folder")


def check_local(folder: Path, source: str) -> None:
    """Check that a folder is not an address in an object store, whose slashes `Path` would merge.

    Raises:
        ValueError: it is.
    """
    if match := re.match(r"(\w+):/", str(folder)):
        raise ValueError(f"{source} {match[1]}://...: must be a folder on this machine")


def _local_problem(folder: Path) -> str:
    """Return why nothing can be written to a folder; "" if it can."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if "\0" in str(folder):
        return "its name has a null byte"
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    link = probe.with_name(f"{probe.name}-link")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(2**16))
        try:
            os.link(probe, link)
        except OSError:
            return "its file system has no hard links, which keep two processes from writing the same file"
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return REASONS.get(error.errno or 0, error.strerror or str(error))
    finally:
        for path in (probe, link):
            with suppress(OSError):  # the folder itself is unusable
                path.unlink(missing_ok=True)
    if free < MIN_FREE_BYTES:
        return f"its disk has only {free >> 20} MB left, and even a small sweep needs {MIN_FREE_BYTES >> 20} MB"
    return ""
