"""Immutable JSON objects in a folder: the only format in which a sweep stores its state.

An object is written atomically (`xfer.storage.object_store.write_bytes`), so it is complete or absent under its name,
and `put_if_absent` never changes it afterwards. This holds for local folders and object stores alike.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xfer import hashing
from xfer.storage import object_store

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""Maximum size of an object. Ours are far smaller, so a larger file is foreign and not read into memory."""

CHECKSUM_KEY = "sha256"
"""Key of the hash of an object's other values. Without it a flipped bit would go unnoticed: it is often still JSON."""


class CorruptObjectError(ValueError):
    """An object's content is not what was written."""


def put_if_absent(path: Path, value: Mapping[str, Any]) -> bool:
    """Write `value` as JSON unless `path` exists; return whether it was written.

    Floats are read back bit for bit.

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
    if not object_store.is_remote(path) and path.stat().st_size > MAX_BYTES:
        raise CorruptObjectError(f"larger than {MAX_BYTES} bytes")
    content = object_store.read_bytes(path)
    try:
        value = json.loads(content)
    except ValueError as error:
        raise CorruptObjectError(str(error)) from error
    if not isinstance(value, dict) or value.pop(CHECKSUM_KEY, None) != hashing.sha256_json(value):
        raise CorruptObjectError("its content is not what was written")
    return value


def get(path: Path) -> dict[str, Any] | None:
    """Return the object at `path`; None if it does not exist or is corrupt.

    A corrupt object (damaged by a broken disk, edited by hand) is renamed to `*.damaged` and logged, so that its
    work is done again and nothing builds on half an object.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except CorruptObjectError as error:
        damaged = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged")
        with contextlib.suppress(FileNotFoundError):  # another reader has renamed it first
            object_store.rename(path, damaged)
        log.warning("%s is damaged (%s): renamed to %s", path, error, damaged.name)
        return None


def list_objects(folder: Path) -> list[Path]:
    """Return the paths of the objects in a folder, sorted by name; empty if it does not exist."""
    names = object_store.list_names(folder)
    return [folder / name for name in names if name.endswith(".json") and not name.startswith(".")]


def get_all(paths: Iterable[Path]) -> list[dict[str, Any] | None]:
    """Return the result of `get` for each path, in order; concurrently if they are remote."""
    paths = list(paths)
    return object_store.map_concurrently(get, paths, concurrent=bool(paths) and object_store.is_remote(paths[0]))


def _encode(value: Mapping[str, Any]) -> bytes:
    with_checksum = {**value, CHECKSUM_KEY: hashing.sha256_json(dict(value))}
    return json.dumps(with_checksum, indent=1, allow_nan=False, ensure_ascii=False).encode()
