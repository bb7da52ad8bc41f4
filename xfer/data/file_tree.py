"""List every file below a folder, with the reason if it cannot be used as an image.

Content decides what is an image: the suffix only spares opening files that carry a usual one.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from xfer.data.image_formats import IMAGE_FORMATS, IMAGE_SUFFIXES

Prefix = tuple[str, ...]
"""Path relative to the root, as its components."""

JUNK_FOLDERS = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@__thumb", "$recycle.bin"),
        *("system volume information", "lost+found", "__pycache__", "thumbnails", "_thumbnails", "_thumbs"),
    )
)
"""Folders, in lower case, that programs create next to images. Hidden folders are junk too."""

RAW_SUFFIXES = frozenset(
    (".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".orf", ".pef", ".rw2", ".srw", ".raf", ".3fr", ".iiq")
)
"""Suffixes of camera raw files. Many are TIFF containers, in which Pillow would find only a thumbnail."""

FTYP_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
}
"""Image format by the brand of an ISO base media file."""

OTHER_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    ".svg": "SVG",
    ".pdf": "PDF",
    ".exr": "OpenEXR",
    ".jxl": "JPEG XL",
    ".nii": "NIfTI",
    ".xcf": "GIMP",
}
"""Image formats that Pillow does not know, by suffix."""

JPEG_2000_SIGNATURES = (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")

LINK_OUT = "link out of the folder"
BROKEN_LINK = "broken link"
INNER_LINK = "link to another folder of the data"
HIDDEN_FILE = "hidden file"
JUNK = "in the junk folder"
"""Start of the reason for files in a junk folder; its name follows."""
NOT_REGULAR = "not a regular file"
NOT_AN_IMAGE = "not an image"
EMPTY_FILE = "empty file"
NO_ACCESS = "no permission to read it"
UNREADABLE_FOLDER = "folder that cannot be read"
UNSUPPORTED = "image format that cannot be decoded here"
"""Start of the reason for images in a format that Pillow does not decode; the format follows."""


@dataclass(frozen=True, slots=True)
class TreeFile:
    """One file below the root."""

    path: Path
    names: Prefix
    """The path relative to the root."""
    reason: str
    """Why it cannot be used; empty for an image."""
    link_depth: int = 0
    """Number of components up to and including a link to another folder below the root; 0 without such a link."""


@dataclass(frozen=True)
class FileTree:
    """All files and folders below a root; every file is listed once."""

    root: Path
    files: tuple[TreeFile, ...]
    folders: dict[Prefix, tuple[str, ...]]
    """Names of the subfolders of each folder, without junk folders."""
    images: Counter[Prefix] = field(default_factory=Counter)
    """Number of images below each folder, at any depth."""
    direct_images: Counter[Prefix] = field(default_factory=Counter)
    """Number of images directly in each folder."""

    def subfolders(self, prefix: Prefix) -> tuple[str, ...]:
        """Return the names of all subfolders, sorted."""
        return self.folders.get(prefix, ())

    def image_folders(self, prefix: Prefix) -> tuple[str, ...]:
        """Return the names of the subfolders that hold images at any depth."""
        return tuple(name for name in self.subfolders(prefix) if self.images[(*prefix, name)])


def scan(root: Path, follow_links: bool = False) -> FileTree:
    """List the files below a folder.

    Args:
        root: an absolute path without links.
        follow_links: read files and folders behind links that lead out of `root`, and behind nested links.
    """
    folders: dict[Prefix, tuple[str, ...]] = {}
    files = tuple(_Scanner(root, follow_links, folders).walk(root, (), (os.path.realpath(root),), 0))
    tree = FileTree(root, files, folders)
    for file in files:
        if not file.reason:
            tree.direct_images[file.names[:-1]] += 1
            tree.images.update(file.names[:depth] for depth in range(len(file.names)))
    return tree


def image_problem(path: Path) -> str:
    """Return why a regular file cannot be decoded as an image, judged by its first bytes; empty for an image."""
    suffix = path.suffix.lower()
    if not os.access(path, os.R_OK):
        return NO_ACCESS
    if suffix in IMAGE_SUFFIXES:
        return ""  # the decoder names damaged ones
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return EMPTY_FILE
    if suffix in RAW_SUFFIXES:
        return f"{UNSUPPORTED}: camera raw"
    try:
        with Image.open(path, formats=IMAGE_FORMATS):
            return ""
    except Exception:  # Pillow's plugins raise many types of errors
        kind = FTYP_BRANDS.get(head[8:12], "") if head[4:8] == b"ftyp" else ""
        if head.startswith(JPEG_2000_SIGNATURES):
            kind = "JPEG 2000"
        kind = kind or OTHER_SUFFIXES.get(suffix, "") or ("DICOM" if head[128:] == b"DICM" else "")
        if not kind:
            Image.init()
            kind = Image.registered_extensions().get(suffix, "") if suffix not in (".mpg", ".mpeg") else ""
            kind = "" if kind in ("HDF5", "GRIB", "BUFR") else kind
        return f"{UNSUPPORTED}: {kind}" if kind else NOT_AN_IMAGE


def is_junk_folder(name: str) -> bool:
    """Return whether a folder of this name is left out."""
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


@dataclass(frozen=True)
class _Scanner:
    root: Path
    follow_links: bool
    folders: dict[Prefix, tuple[str, ...]]

    def walk(self, path: Path, names: Prefix, ancestors: tuple[str, ...], link_depth: int) -> Iterator[TreeFile]:
        """Yield the files below a folder; `ancestors` are the resolved folders above it, which must not be entered."""
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            yield TreeFile(path, names, UNREADABLE_FOLDER)
            return
        subfolders = []
        for entry in entries:
            child, child_names, depth = path / entry.name, (*names, entry.name), link_depth
            reason, is_folder, target = "", entry.is_dir(follow_symlinks=False), ""
            if entry.is_symlink():
                reason, is_folder, target = self._link(child)
                if is_folder and not reason and not self.follow_links:
                    reason, depth = (INNER_LINK, 0) if link_depth else ("", len(child_names))
                if is_folder and target in ancestors:
                    reason = INNER_LINK
            if is_folder and is_junk_folder(entry.name):
                yield from _junk(child, child_names, f"{JUNK} {entry.name}")
                continue
            if is_folder:
                subfolders.append(entry.name)
            if is_folder and not reason:
                below = target or str(Path(ancestors[-1], entry.name))
                yield from self.walk(child, child_names, (*ancestors, below), depth)
            else:
                yield TreeFile(child, child_names, reason or _file_problem(child, entry.name), link_depth)
        self.folders[names] = tuple(subfolders)

    def _link(self, path: Path) -> tuple[str, bool, str]:
        """Return why a link is not read, whether it leads to a folder, and its target."""
        try:
            target = path.resolve(strict=True)
            is_folder = target.is_dir()
        except (OSError, RuntimeError):  # a loop
            return BROKEN_LINK, False, ""
        outside = not target.is_relative_to(self.root)
        return (LINK_OUT if outside and not self.follow_links else ""), is_folder, str(target)


def _file_problem(path: Path, name: str) -> str:
    if name.startswith("."):
        return HIDDEN_FILE
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return NOT_REGULAR
    except PermissionError:
        return NO_ACCESS
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return image_problem(path)


def _junk(path: Path, names: Prefix, reason: str) -> Iterator[TreeFile]:
    """Yield the files of a folder that is left out, without opening them or following links."""
    if path.is_symlink():
        yield TreeFile(path, names, reason)
        return
    for folder, subfolders, files in os.walk(path):
        links = [name for name in subfolders if Path(folder, name).is_symlink()]
        subfolders.sort()
        for name in sorted((*files, *links)):
            file = Path(folder, name)
            yield TreeFile(file, (*names, *file.relative_to(path).parts), reason)
