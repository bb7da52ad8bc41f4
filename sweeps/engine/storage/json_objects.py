"""Immutable JSON objects in a folder: the only format in which a sweep stores its state.

An object is written atomically (`xfer.storage.object_store.write_bytes`), so it is complete or absent under its name,
and `put_if_absent` never changes it afterwards. This holds for local folders and object stores alike.
"""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xfer.storage import checked_json, object_store
from xfer.storage.checked_json import CorruptObjectError
from xfer.storage.redaction import redact_all

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""Maximum size of an object. Ours are far smaller, so a larger file is foreign and not read into memory."""

NUMBERED = re.compile(r"\d{4,}\.json")
"""Names of objects with a number, such as an epoch."""


def put_if_absent(path: Path, value: Mapping[str, Any]) -> bool:
    """Write `value` as JSON unless `path` exists; return whether it was written.

    Floats are read back bit for bit. Passwords and tokens are removed from texts.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    try:
        object_store.write_bytes(path, _encode(value), exclusive=True)
    except FileExistsError:
        return False
    return True


def replace(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON atomically: readers see the old object or the new one, never a part of either."""
    object_store.write_bytes(path, _encode(value))


def read(path: Path) -> dict[str, Any]:
    """Return the object at `path`.

    Raises:
        FileNotFoundError: it does not exist.
        CorruptObjectError: its content is not what was written.
    """
    if not object_store.is_remote(path):
        return checked_json.read(path, MAX_BYTES)
    return checked_json.decode(object_store.read_bytes(path))


def get(path: Path) -> dict[str, Any] | None:
    """Return the object at `path`; None if it does not exist or is corrupt.

    A corrupt object (damaged by a broken disk, edited by hand) is renamed to `*.damaged` and logged, so that its
    work is done again and nothing builds on half an object.
    """
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):  # a foreign file may have the name of a folder
        return None
    except CorruptObjectError as error:
        damaged = set_aside(path)
        log.warning("%s is damaged (%s): renamed to %s", path, error, damaged.name)
        return None


def set_aside(path: Path) -> Path:
    """Rename an object or a folder of objects to `*.damaged` if it exists; return the new path."""
    damaged = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged")
    with contextlib.suppress(FileNotFoundError):  # another reader has renamed it first
        object_store.rename(path, damaged)
    return damaged


def list_objects(folder: Path, names: re.Pattern[str] = NUMBERED) -> list[Path]:
    """Return the paths of the objects in a folder, sorted by name; empty if it does not exist.

    Args:
        folder: the folder.
        names: matches the names of the objects. File managers and people leave other files next to them.
    """
    return [folder / name for name in object_store.list_names(folder) if names.fullmatch(name)]


def get_all(paths: Iterable[Path]) -> list[dict[str, Any] | None]:
    """Return the result of `get` for each path, in order; concurrently if they are remote."""
    paths = list(paths)
    return object_store.map_concurrently(get, paths, concurrent=bool(paths) and object_store.is_remote(paths[0]))


def _encode(value: Mapping[str, Any]) -> bytes:
    return checked_json.encode(redact_all(value), indent=1)
