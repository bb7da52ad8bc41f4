"""Immutable JSON objects in a folder: the one way in which a sweep writes anything down.

An object is written under a temporary name, flushed to disk and renamed, so under its own name it is whole or absent,
and `put_if_absent` never changes it afterwards. An object store offers the same by one request, so a sweep can live on one
(`xfer.storage.object_store`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from xfer import hashing
from xfer.storage import object_store

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""No object of ours comes near this; a larger file was not written by us and is not read into memory."""


class CorruptObjectError(ValueError):
    """What stands there is not what was written."""


CHECKSUM_KEY = "sha256"
"""The key under which an object says what the rest of it hashes to: a flipped bit is still JSON."""


def put_if_absent(path: Path, value: Mapping[str, Any]) -> bool:
    """Write `value` as JSON unless an object stands there already; says whether it was written.

    Numbers come back bit for bit. NaN and infinities are refused with a `ValueError`: they are no JSON, and no caller
    has a use for them.
    """
    try:
        if object_store.is_remote(path):
            object_store.write_bytes(path, _sealed(value), exclusive=True)
        elif path.exists():
            return False
        else:
            _write(path, value, os.link)  # unlike a rename, it fails where a name is taken
    except FileExistsError:
        return False
    return True


def replace(path: Path, value: Mapping[str, Any]) -> None:
    """Put `value` at `path` in one step: readers see the old object or the new one, never a part of either."""
    if object_store.is_remote(path):
        object_store.write_bytes(path, _sealed(value))
    else:
        _write(path, value, os.replace)


def read(path: Path) -> dict[str, Any]:
    """The object at `path`.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is damaged.
    """
    if not object_store.is_remote(path) and path.stat().st_size > MAX_BYTES:
        raise CorruptObjectError(f"larger than {MAX_BYTES} bytes")
    content = object_store.read_bytes(path) if object_store.is_remote(path) else path.read_bytes()
    try:
        value = json.loads(content)
    except ValueError as error:
        raise CorruptObjectError(str(error)) from error
    if not isinstance(value, dict) or value.pop(CHECKSUM_KEY, None) != hashing.sha256_json(value):
        raise CorruptObjectError("its content is not what was written")
    return value


def get(path: Path) -> dict[str, Any] | None:
    """The object at `path`; None where there is none.

    A damaged one (torn by a broken disk, edited by hand) is set aside under the name `*.damaged` and named in the log,
    so that whatever it stood for is done again and nobody builds on half an object.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except CorruptObjectError as error:
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged")
        with contextlib.suppress(FileNotFoundError):  # another reader was quicker
            object_store.rename(path, aside)
        log.warning("%s is damaged (%s): set aside as %s", path, error, aside.name)
        return None


def list_objects(folder: Path) -> list[Path]:
    """Where the objects of a folder stand, by name; none where there is no folder."""
    return [
        folder / name for name in object_store.list_names(folder) if name.endswith(".json") and not name.startswith(".")
    ]


def get_all(paths: Iterable[Path]) -> list[dict[str, Any] | None]:
    """`get` for each of some paths, in their order; from an object store many at a time."""
    listed = list(paths)
    return object_store.map_concurrently(get, listed, concurrent=bool(listed) and object_store.is_remote(listed[0]))


def _sealed(value: Mapping[str, Any]) -> bytes:
    sealed = {**value, CHECKSUM_KEY: hashing.sha256_json(dict(value))}
    return json.dumps(sealed, indent=1, allow_nan=False, ensure_ascii=False).encode()


def _write(path: Path, value: Mapping[str, Any], name: Callable[[Path, Path], None]) -> None:
    content = _sealed(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
