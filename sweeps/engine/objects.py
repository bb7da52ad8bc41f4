"""Immutable JSON objects in a folder: the one way in which a sweep writes anything down.

An object is written under a temporary name, flushed to disk and renamed, so under its own name it is whole or absent,
and `put` never changes it afterwards. That is also what an object store offers, so a sweep can live on one.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""No object of ours comes near this; a larger file was not written by us and is not read into memory."""


def put(path: Path, value: Any) -> bool:
    """Write `value` as JSON unless an object stands there already; says whether it was written.

    Numbers come back bit for bit. NaN and infinities are refused with a `ValueError`: they are no JSON, and no caller
    has a use for them.
    """
    if path.exists():
        return False
    replace(path, value)
    return True


def replace(path: Path, value: Any) -> None:
    """Put `value` at `path` in one step: readers see the old object or the new one, never a part of either."""
    content = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def get(path: Path) -> Any | None:
    """The object at `path`; None where there is none.

    A damaged one (torn by a broken disk, edited by hand) is set aside under the name `*.damaged` and named in the log,
    so that whatever it stood for is done again and nobody builds on half an object.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError) as error:
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged")
        path.replace(aside)
        log.warning("%s is damaged (%s): set aside as %s", path, error, aside.name)
        return None
