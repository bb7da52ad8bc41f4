"""Write files and folders so that readers see the complete new content or what was there before."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path: Path, content: bytes | Callable[[Path], object], exclusive: bool = False) -> None:
    """Write a local file under a temporary name in the same folder, flush it to disk, then rename it to `path`.

    Args:
        path: the file to write; missing parent folders are created.
        content: the bytes, or a function that writes them to the temporary path it is given.
        exclusive: fail if `path` exists, even if another process creates it in the meantime.

    Raises:
        FileExistsError: `exclusive` is set and `path` exists.
    """
    if exclusive and path.exists():
        raise FileExistsError(path)
    temporary = _temporary_name(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if exclusive:
            os.link(temporary, path)  # unlike a rename, a link fails if the name is taken
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` that is renamed to `path` at the end, or removed after an error.

    Raises:
        OSError: `path` exists and is not an empty folder.
    """
    temporary = _temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
