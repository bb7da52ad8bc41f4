"""Folders: images as most people have them, a folder for each class."""

from __future__ import annotations

from pathlib import Path

from xfer.data.images import IMAGE_SUFFIXES, ImageFile
from xfer.data.source import PART_ALIASES, Example, Source, preview, validate_source
from xfer.data.uris import DataUri, resolve_folder
from xfer.records import Part


def folder(address: DataUri) -> Source:
    """Images in a folder per class: DIR/<class>/*.jpg, or DIR/train/<class>, DIR/val/<class>, DIR/test/<class>.

    A train folder alone is divided like a single folder. Classes are in alphabetical order. Hidden files, files that
    are no images by name and symbolic links that lead out of DIR are passed over; folders inside a class folder are
    searched too.

    Raises:
        ValueError: no such folder, no images, a single class, or a class without images in the part trained on.
    """
    root = resolve_folder(address)
    given = {part: root / name for name, part in PART_ALIASES.items() if (root / name).is_dir()}
    if given and "train" not in given:
        raise ValueError(
            f"{root} has {preview(path.name for path in given.values())} but no train folder. Expected "
            f"{root}/train/<class>/*.jpg, and val and test beside it if you have them"
        )
    alone = root / "train" if given else root
    tops: dict[Part | None, Path] = dict(given.items()) if len(given) > 1 else {None: alone}
    classes = tuple(sorted({each.name for top in tops.values() for each in _subfolders(top)}))
    examples = [
        Example(ImageFile(path), label, part)
        for part, top in tops.items()
        for label, name in enumerate(classes)
        for path in _images(top / name, root)
    ]
    expected = (
        f"in class folders. Expected {root}/<class>/*.jpg, or {root}/train/<class>/*.jpg and val, test beside it. "
        f"Read are: {' '.join(sorted(IMAGE_SUFFIXES))}"
    )
    return validate_source(Source(root.name, classes, tuple(examples)), root, expected)


def _subfolders(top: Path) -> list[Path]:
    return sorted(each for each in top.iterdir() if each.is_dir() and not each.name.startswith("."))


def _images(top: Path, root: Path) -> list[Path]:
    files = (path for path in sorted(top.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return [path for path in files if not path.name.startswith(".") and path.resolve().is_relative_to(root)]
