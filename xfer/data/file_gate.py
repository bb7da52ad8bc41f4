"""File gate: which files of a data set may be opened, whatever its layout.

Only regular files of a sensible size inside the data are read. A pipe would be waited for forever, a link may lead to
any file of the machine, and a sparse file of 200 GiB takes an hour to hash.
"""

from __future__ import annotations

import stat
import zlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from xfer.data.file_tree import LINK_OUT, NO_ACCESS, NOT_REGULAR
from xfer.data.image_formats import MAX_BYTES
from xfer.data.images import ImageFile
from xfer.data.source import MAX_NAMED, Example, SkippedFiles, Source
from xfer.data.tables.paths import NOT_FOUND

TOO_LARGE = f"larger than {MAX_BYTES >> 20} MiB"

MAT_HEADER_BYTES, MAT_COMPRESSED = 128, 15
"""Length of the header of a MATLAB file of version 5, and the type of its compressed elements."""


def usable_files(source: Source, root: Path | None = None) -> Source:
    """Return a source without the files that must not be opened, which are counted by reason.

    Args:
        source: the data set.
        root: the folder that its files, and the files that links lead to, must be in; None if its layout has checked
            links itself.
    """
    folders: dict[Path, bool] = {}
    root = root and root.resolve()
    examples: list[Example] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    for example in source.examples:
        reason = _problem(example.image.path, root, folders) if isinstance(example.image, ImageFile) else ""
        if reason:
            skipped[reason].append(example.image.name)
        else:
            examples.append(example)
    if not skipped:
        return source
    counted = [SkippedFiles(reason, len(names), tuple(names[:MAX_NAMED])) for reason, names in skipped.items()]
    return replace(source, examples=tuple(examples), skipped=(*source.skipped, *counted))


def check_file(path: Path, root: Path, max_bytes: int) -> None:
    """Check a file that is read as a whole, such as a table of labels.

    Raises:
        ValueError: it must not be opened; the message says why.
    """
    reason = _problem(path, root.resolve(), {})
    size = 0 if reason else path.stat().st_size
    if reason or size > max_bytes:
        raise ValueError(f"{path} cannot be used: {reason or f'it has {size:,} bytes, more than {max_bytes:,}'}")


def check_mat_size(path: Path, max_bytes: int) -> None:
    """Check the size of a MATLAB file before anything decompresses it: 2 MiB can hold several GiB of zeros.

    Raises:
        ValueError: its elements have more than `max_bytes` bytes, or cannot be decompressed.
    """
    content = path.read_bytes()
    order = "little" if content[126:128] == b"IM" else "big"
    position, total = MAT_HEADER_BYTES, 0
    while position + 8 <= len(content):
        kind = int.from_bytes(content[position : position + 4], order)  # type: ignore[arg-type]
        length = int.from_bytes(content[position + 4 : position + 8], order)  # type: ignore[arg-type]
        position += 8
        element = content[position : position + length]
        if kind == MAT_COMPRESSED:
            try:
                length_inside = len(zlib.decompressobj().decompress(element, max_bytes - total + 1))
            except zlib.error as error:
                raise ValueError(f"{path} is damaged: {error}") from error
        else:
            length_inside = len(element)
        total += length_inside
        if total > max_bytes:
            raise ValueError(f"{path} holds more than {max_bytes:,} bytes when decompressed, far more than its labels")
        position += length


def _problem(path: Path, root: Path | None, folders: dict[Path, bool]) -> str:
    """Return why a file must not be opened; "" if it may be.

    Args:
        path: the file.
        root: see `usable_files`; without links.
        folders: whether the folders of earlier files are in `root`, to be reused and extended.
    """
    try:
        if root is not None and not _is_inside(path, root, folders):
            return LINK_OUT
        status = path.stat()
    except FileNotFoundError:
        return NOT_FOUND
    except (OSError, RuntimeError):  # also links in a circle
        return NO_ACCESS
    if not stat.S_ISREG(status.st_mode):
        return NOT_REGULAR
    return TOO_LARGE if status.st_size > MAX_BYTES else ""


def _is_inside(path: Path, root: Path, folders: dict[Path, bool]) -> bool:
    if path.is_symlink():
        return path.resolve().is_relative_to(root)
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve().is_relative_to(root)
    return folders[path.parent]
