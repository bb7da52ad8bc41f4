"""Paths in a table: find the file that each one names."""

from __future__ import annotations

import unicodedata
from pathlib import Path


def resolve_path(folder: Path, name: str) -> Path | None:
    r"""Return the file that a table names, None if there is none.

    Tried in turn: the name as it is, with \ as separator, and in the Unicode normal forms in which systems store names.

    A path that leads out of the folder is returned whether or not there is such a file: the caller has to refuse it.
    """
    slashed = name.replace("\\", "/")
    for candidate in dict.fromkeys(
        (name, slashed, unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed))
    ):
        file = (folder / candidate).resolve()
        if file.is_file() or not file.is_relative_to(folder):
            return file
    return None


def is_image_path(folder: Path, name: str) -> bool:
    """Return whether a name in a table leads to a file."""
    try:
        return bool(name) and resolve_path(folder, name) is not None
    except (OSError, ValueError, RuntimeError):
        return False
