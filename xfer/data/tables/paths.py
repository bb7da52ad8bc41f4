"""Paths in a table: find the file that each one names, or say why there is none."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PureWindowsPath

from xfer.data.image_formats import IMAGE_SUFFIXES

NO_PATH = "no path"
NOT_FOUND = "file not found"
NOT_A_FILE = "not a file"
WINDOWS_PATH = "absolute path of Windows"
WEB_ADDRESS = "web address instead of a file"
IMPOSSIBLE_PATH = "impossible path"
NO_ACCESS = "no permission to read it"

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def find_image(folder: Path, name: str) -> Path | str:
    r"""Return the file that a table names, or why there is none.

    Tried in turn: the name as it is, with \ as separator, and in the Unicode normal forms in which systems store names.

    Args:
        folder: the folder of the table, without links.
        name: the path in the table.

    Returns:
        The file, or the reason. A path that leads out of the folder is returned whether or not there is such a file:
        the caller has to refuse it.
    """
    if not name:
        return NO_PATH
    if _ADDRESS.match(name):
        return WEB_ADDRESS
    windows = PureWindowsPath(name).drive != ""
    slashed = name.replace("\\", "/")
    candidates = [name, slashed, unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed)]
    folders = 0
    try:
        for candidate in dict.fromkeys(candidates[:1] if windows else candidates):
            file = (folder / candidate).resolve()
            if file.is_file() or not file.is_relative_to(folder):
                return file if os.access(file, os.R_OK) or not file.is_relative_to(folder) else NO_ACCESS
            folders += file.exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, a loop of links
        return IMPOSSIBLE_PATH
    if windows:
        return WINDOWS_PATH
    return NOT_A_FILE if folders else NOT_FOUND


def is_image_path(folder: Path, name: str) -> bool:
    """Return whether a name in a table leads to a file."""
    return isinstance(find_image(folder, name), Path)


def similar_file(folder: Path, name: str) -> str:
    """Return the path of a file that a table may mean by a name that is not found; empty if there is none.

    It differs in case, lacks the suffix in the table, or is in another folder next to the table.
    """
    wanted = folder / name.replace("\\", "/")
    try:
        for parent in (wanted.parent, folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
            if not parent.resolve().is_relative_to(folder) or not parent.is_dir():
                continue
            if parent != wanted.parent and (parent / wanted.name).is_file():
                return str((parent / wanted.name).relative_to(folder))
            for suffix in sorted(IMAGE_SUFFIXES):
                if (parent / f"{wanted.name}{suffix}").is_file():
                    return str((parent / f"{wanted.name}{suffix}").relative_to(folder))
        siblings = [file.name for file in wanted.parent.iterdir()] if wanted.parent.is_dir() else []
    except (OSError, ValueError, RuntimeError):
        return ""
    same = [name for name in siblings if name != wanted.name and name.casefold() == wanted.name.casefold()]
    return str((wanted.parent / same[0]).relative_to(folder)) if same else ""
