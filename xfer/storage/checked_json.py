"""JSON objects that hold the checksum of their own content: damage is recognized when they are read."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xfer import hashing

CHECKSUM_KEY = "sha256"
"""Key of the hash of an object's other values. Without it a flipped bit would go unnoticed: it is often still JSON."""


class CorruptObjectError(ValueError):
    """An object's content is not what was written."""


def encode(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return an object as JSON with its checksum.

    Floats are read back bit for bit.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    with_checksum = {**value, CHECKSUM_KEY: hashing.sha256_json(dict(value))}
    return json.dumps(with_checksum, indent=indent, allow_nan=False, ensure_ascii=False).encode()


def decode(content: bytes) -> dict[str, Any]:
    """Return the object that `encode` wrote, without the checksum.

    >>> decode(encode({"epoch": 1}))
    {'epoch': 1}

    Raises:
        CorruptObjectError: it is not JSON, no object, or does not match its checksum.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptObjectError(str(error)) from error
    if not isinstance(value, dict) or value.pop(CHECKSUM_KEY, None) != hashing.sha256_json(value):
        raise CorruptObjectError("its content is not what was written")
    return value


def read(path: Path, max_bytes: int) -> dict[str, Any]:
    """Return the object in a local file.

    Args:
        path: the file.
        max_bytes: its maximum size. A larger file is foreign and not read into memory.

    Raises:
        FileNotFoundError: it does not exist.
        CorruptObjectError: it is not a file, too large, or its content is not what was written.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait forever
        raise CorruptObjectError("not a regular file")
    if status.st_size > max_bytes:
        raise CorruptObjectError(f"larger than {max_bytes} bytes")
    return decode(path.read_bytes())
