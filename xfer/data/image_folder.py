"""Layout with one folder per class, optionally inside a folder per part."""

from __future__ import annotations

from pathlib import Path

from xfer.data.images import IMAGE_SUFFIXES, ImageFile
from xfer.data.source import PART_ALIASES, Example, Source, preview, validate_source
from xfer.data.uris import DataUri, resolve_folder
from xfer.records import Part


def folder(uri: DataUri) -> Source:
    """Read DIR/<class>/*.jpg, or DIR/train/<class>, DIR/val/<class>, DIR/test/<class>.

    A train folder without val and test is treated like a single folder without parts. Classes are sorted by name.
    Subfolders of a class folder are searched too. Hidden files, files without the suffix of an image, and symbolic
    links that lead out of DIR are ignored.

    Raises:
        ValueError: no such folder, no images, a single class, or a class without training images.
    """
    root = resolve_folder(uri)
    part_folders = {part: root / name for name, part in PART_ALIASES.items() if (root / name).is_dir()}
    if part_folders and "train" not in part_folders:
        raise ValueError(
            f"{root} has {preview(path.name for path in part_folders.values())} but no train folder. Expected "
            f"{root}/train/<class>/*.jpg, and val and test next to it if you have them"
        )
    tops: dict[Part | None, Path] = (
        dict(part_folders.items()) if len(part_folders) > 1 else {None: part_folders.get("train", root)}
    )
    classes = tuple(sorted({path.name for top in tops.values() for path in _subfolders(top)}))
    examples = [
        Example(ImageFile(path), label, part)
        for part, top in tops.items()
        for label, name in enumerate(classes)
        for path in _images(top / name, root)
    ]
    expected = (
        f"in class folders. Expected {root}/<class>/*.jpg, or {root}/train/<class>/*.jpg with val and test next to it. "
        f"Known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))}"
    )
    return validate_source(Source(root.name, classes, tuple(examples)), root, expected)


def _subfolders(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(top: Path, root: Path) -> list[Path]:
    files = (path for path in sorted(top.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return [path for path in files if not path.name.startswith(".") and path.resolve().is_relative_to(root)]
