"""Detect how a data set is laid out, and read it.

There is one module per layout: `image_folder`, `stanford_cars`, `quickdraw`, `tables`, `torchvision_datasets` and
`huggingface`. To add one, write a function from a URI to a `Source` and add it to `SOURCES` and `LAYOUT_DETECTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fsspec.registry import known_implementations

from xfer.choices import closest_names_message, unknown_name_message
from xfer.data import quickdraw, stanford_cars
from xfer.data.file_gate import usable_files
from xfer.data.huggingface import hub
from xfer.data.image_folder import folder
from xfer.data.source import Source
from xfer.data.tables import csv_table
from xfer.data.tables.columns import NO_GROUP
from xfer.data.torchvision_datasets import torchvision
from xfer.data.uris import URI_FORMATS, DataUri
from xfer.storage import local_cache, object_store
from xfer.text_output import escape_undecoded

SOURCES: dict[str, Callable[[DataUri], Source]] = {
    function.__name__: function
    for function in (
        folder,
        stanford_cars.stanford_cars,
        quickdraw.quickdraw,
        csv_table.table,
        torchvision,
        hub,
    )
}
"""Functions that read a data set, by the name of the layout."""

LAYOUT_DETECTORS: dict[str, Callable[[Path], bool]] = {
    "table": csv_table.is_table,
    "stanford_cars": stanford_cars.is_stanford_cars,
    "quickdraw": quickdraw.is_quickdraw,
}
"""Tests of a local path, in order. A path that matches none is a `folder`."""

SCHEMES = {"hf": "hub", "torchvision": "torchvision"}
"""Layout by URI scheme, for data sets that are not files."""

UNSUPPORTED_SCHEMES = ("http", "https", "ftp", "data", "memory")
"""Schemes of fsspec under which files cannot be listed, or exist in one process only."""


def read_source(
    data: DataUri,
    source: str = "",
    parts: Mapping[str, str] | None = None,
    follow_links: bool = False,
    group: str = "",
) -> Source:
    """Return the data set at a URI.

    Args:
        data: a folder, a table's file, hf://owner/name or torchvision://NAME?root=DIR. Folders and tables may be in an
            object store, as s3://bucket/photos.
        source: the layout, a name in SOURCES; by default the result of `detect_layout`.
        parts: folders of the parts, or values of a table's part column, as `part_names.parse_parts` returns them; only
            for a folder of images or a table.
        follow_links: read images behind links that leave the folder; only for a folder of images.
        group: the column of a table that names the patient, camera, video, ... of each image; `none` ignores columns
            with the usual names of one.

    Raises:
        ValueError: the layout is unknown, the data do not follow it, or an argument does not apply to it.
    """
    try:
        found = usable_files(_read(fetch_data(data), source, parts, follow_links, group.strip()))
    except ValueError as error:  # a message may quote names of files and folders in any encoding
        raise ValueError(escape_undecoded(str(error))) from error
    skipped = tuple(replace(skip, first=tuple(map(escape_undecoded, skip.first))) for skip in found.skipped)
    return replace(found, notes=tuple(map(escape_undecoded, found.notes)), skipped=skipped)


def _read(data: DataUri, source: str, parts: Mapping[str, str] | None, follow_links: bool, group: str) -> Source:
    layout = source or detect_layout(data)
    if layout not in SOURCES:
        raise ValueError(unknown_name_message("source", layout, SOURCES))
    if group not in ("", NO_GROUP) and layout != "table":
        raise ValueError(
            f"--group {group} names a column of a table, but {data} has the layout {layout}: list the images in a "
            f"table FILE.csv with the columns path, label and {group}"
        )
    if layout == "folder":
        return folder(data, parts, follow_links)
    if follow_links:
        raise ValueError(f"--follow-links applies to folders of images only, but {data} has the layout {layout}")
    if layout == "table":
        return csv_table.table(data, parts, group)
    if parts:
        raise ValueError(f"--parts applies to folders of images and tables only, but {data} has the layout {layout}")
    return SOURCES[layout](data)


def fetch_data(data: DataUri, progress: Callable[[int, int], None] = lambda done, total: None) -> DataUri:
    """Return the local copy of data in an object store; any other URI is returned unchanged.

    Args:
        data: see `read_source`.
        progress: called with the number of files present and in total.

    Raises:
        ValueError: there are no files, or the scheme is unknown.
    """
    scheme, separator, _ = str(data).partition("://")
    if not separator or scheme in SCHEMES:
        return data
    if scheme not in known_implementations or scheme in UNSUPPORTED_SCHEMES:
        raise ValueError(_unknown_scheme_message(scheme, [*SCHEMES, "s3", "gs", "file"]))
    return local_cache.sync_down(object_store.as_path(str(data)), progress)


def detect_layout(data: DataUri) -> str:
    """Return the name in SOURCES of the layout of a URI, from its form and the files there; `folder` if unclear.

    >>> detect_layout("hf://owner/name"), detect_layout("birds/labels.csv")
    ('hub', 'table')

    Raises:
        ValueError: the scheme is unknown.
    """
    scheme, separator, _ = str(data).partition("://")
    if separator and scheme not in SCHEMES:
        raise ValueError(_unknown_scheme_message(scheme, [*SCHEMES]))
    if separator:
        return SCHEMES[scheme]
    path = Path(data).expanduser()
    return next((layout for layout, matches in LAYOUT_DETECTORS.items() if matches(path)), "folder")


def _unknown_scheme_message(scheme: str, known: list[str]) -> str:
    return f"{closest_names_message('kind of address', scheme, known)}\n{URI_FORMATS}"
