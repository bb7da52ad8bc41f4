"""Sources: where images come from. One function per layout, and which of them fits what a person says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fsspec.registry import known_implementations

from xfer.choices import closest_names_message, unknown_name_message
from xfer.data import csv_table
from xfer.data.csv_table import table
from xfer.data.huggingface import hub
from xfer.data.image_folder import folder
from xfer.data.images import ImageFile, LazyImage
from xfer.data.quickdraw import READERS, quickdraw
from xfer.data.source import PART_ALIASES, Example, Source, filter_labels
from xfer.data.stanford_cars import STANFORD_CARS_LAYOUT, stanford_cars
from xfer.data.torchvision_datasets import torchvision
from xfer.data.uris import URI_FORMATS, DataUri
from xfer.storage import local_cache, object_store

__all__ = [
    "PART_ALIASES",
    "SOURCES",
    "STANFORD_CARS_LAYOUT",
    "Example",
    "ImageFile",
    "LazyImage",
    "Source",
    "detect_layout",
    "folder",
]
__all__ += ["hub", "quickdraw", "read_source", "select_classes", "stanford_cars", "table", "torchvision"]

SOURCES: dict[str, Callable[[DataUri], Source]] = {
    f.__name__: f for f in (folder, stanford_cars, quickdraw, table, torchvision, hub)
}

SCHEMES = {"hf": "hub", "torchvision": "torchvision"}
"""Which source an address with `://` is for."""

UNSUPPORTED_SCHEMES = ("http", "https", "ftp", "data", "memory")
"""Kinds of address of fsspec where photos cannot be listed, or are nobody else's."""


def fetch_data(data: DataUri, progress: Callable[[int, int], None] = lambda done, total: None) -> DataUri:
    """Where data are on this machine: photos in an object store are brought here, everything else stays as it is said.

    Args:
        data: see `read_source`.
        progress: told how many files are here, of how many.

    Raises:
        ValueError: there is nothing, or no such kind of address.
    """
    scheme, colon, _ = str(data).partition("://")
    if not colon or scheme in SCHEMES:
        return data
    if scheme not in known_implementations or scheme in UNSUPPORTED_SCHEMES:
        raise ValueError(
            f"{closest_names_message('kind of address', scheme, [*SCHEMES, 's3', 'gs', 'file'])}\n{URI_FORMATS}"
        )
    return local_cache.sync_down(object_store.as_path(str(data)), progress)


def read_source(data: DataUri, source: str = "") -> Source:
    """The data set at an address.

    Args:
        data: a folder, a table's file, hf://owner/name or torchvision://NAME?root=DIR. Folders and tables may be in an
            object store, as s3://bucket/photos.
        source: how the data are laid out, a name in SOURCES; what `detect_layout` sees unless given.

    Raises:
        ValueError: no such source, or the data are not as that source wants them.
    """
    data = fetch_data(data)
    name = source or detect_layout(data)
    if name not in SOURCES:
        raise ValueError(unknown_name_message("source", name, SOURCES))
    return SOURCES[name](data)


def detect_layout(data: DataUri) -> str:
    """Which of SOURCES fits an address, judged by its form and by what lies there; `folder` where nothing speaks.

    >>> detect_layout("hf://owner/name"), detect_layout("birds/labels.csv")
    ('hub', 'table')

    Raises:
        ValueError: an address of a kind that is not known.
    """
    scheme, colon, _ = str(data).partition("://")
    if colon and scheme not in SCHEMES:
        raise ValueError(f"{closest_names_message('kind of address', scheme, SCHEMES)}\n{URI_FORMATS}")
    if colon:
        return SCHEMES[scheme]
    path = Path(data).expanduser()
    return next((name for name, fits in LAYOUT_DETECTORS.items() if fits(path)), "folder")


def select_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """Only some classes of a source, in its order; all of them where none are named.

    Args:
        source: the data.
        classes: their names, or a single whole number N for the first N in alphabetical order.

    Raises:
        ValueError: fewer than two, more than there are, one twice, or a name that the source has not.
    """
    if not classes:
        return source
    alone = classes[0].strip()
    if len(classes) == 1 and alone.lstrip("+-").isdecimal():
        if not 2 <= int(alone) <= len(source.classes):
            raise ValueError(f"{source.name} has {len(source.classes)} classes: {alone} of them cannot be told apart")
        classes = tuple(sorted(source.classes)[: int(alone)])
    for name in classes:
        if name not in source.classes:
            listing = unknown_name_message if len(source.classes) <= 20 else closest_names_message
            raise ValueError(listing(f"class of {source.name}", name, source.classes))
    if len(set(classes)) < max(2, len(classes)):
        raise ValueError(f"of {source.name} at least two different classes are wanted: {', '.join(classes)}")
    kept = filter_labels(source, [label for label, name in enumerate(source.classes) if name in classes])
    note = f"{len(kept.classes)} of {len(source.classes)} classes were chosen; the images of the others are left out."
    return dataclasses.replace(kept, notes=(*source.notes, note)) if len(kept.classes) < len(source.classes) else kept


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in csv_table.TABLE_SUFFIXES and not path.is_dir()


def _has_cars(path: Path) -> bool:
    return any((path / inside / "devkit" / "cars_meta.mat").is_file() for inside in ("", "stanford_cars"))


def _has_drawings(path: Path) -> bool:
    return path.is_dir() and any(each.suffix.lower() in READERS and each.is_file() for each in path.iterdir())


LAYOUT_DETECTORS: dict[str, Callable[[Path], bool]] = {
    "table": _is_table,
    "stanford_cars": _has_cars,
    "quickdraw": _has_drawings,
}
"""By which a layout is known, in the order in which they are asked."""
