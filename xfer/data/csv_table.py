"""Tables: a CSV file that says which image shows what."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from xfer.data.images import ImageFile
from xfer.data.source import PART_ALIASES, Example, Source, preview, validate_source
from xfer.data.uris import URI_FORMATS, DataUri
from xfer.records import Part

COLUMN_ALIASES = {
    "path": ("path", "image", "file", "filename"),
    "label": ("label", "class", "target"),
    "part": ("part", "split"),
}
"""What a column may be called, in small or capital letters. The last one may be absent."""
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
MAX_BYTES = 256 * 2**20
TABLE_LAYOUT = """A table is expected as FILE.csv or FILE.tsv, separated by commas, semicolons or tabs, in UTF-8:
    path,label,part
    photos/1.jpg,cat,train
Paths begin at the table's folder and stay in it; part (train, val, test) may be absent"""


def table(address: DataUri) -> Source:
    """A table of images: FILE.csv with the columns path and label, and part (train, val, test) where there are parts.

    The columns may also be called image, file or filename; class or target; split. Others are not looked at. Paths are
    relative to the table's folder, and one that leads out of it is refused, so that a table from elsewhere cannot name
    what is none of its business: lay the table beside the images or above them. Where `train` is the only part, it is
    divided like a folder. Classes are in alphabetical order.

    Rows without label, or whose file is absent, or with fewer or more fields than the header, are skipped and counted
    in the notes.

    Raises:
        ValueError: no such file, no such columns, an unknown part, a path that leads out, an image with two labels.
    """
    path = Path(address).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is a folder.\n{URI_FORMATS}" if path.exists() else f"there is no file {path}")
    path = path.resolve()
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES // 2**20} MiB")
    try:
        rows, wrong, total = _rows(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.\n{TABLE_LAYOUT}") from error
    if not rows:
        raise ValueError(f"{path} names no image that is there: {preview(wrong) or 'it has no rows'}.\n{TABLE_LAYOUT}")
    parts = {part for _, _, part in rows.values()}
    if None in parts and len(parts) > 1:
        line = next(line for line, (_, _, part) in rows.items() if part is None)
        raise ValueError(f"{path} line {line} names no part, but others do. Give all rows one, or none")
    alone = parts == {"train"}
    classes = tuple(sorted({label for _, label, _ in rows.values()}))
    place = {name: label for label, name in enumerate(classes)}
    examples = tuple(
        Example(ImageFile(file), place[name], None if alone else part) for file, name, part in rows.values()
    )
    notes = (f"{path.name}: {len(wrong)} of {total} rows were skipped: {preview(wrong)}.",) if wrong else ()
    return validate_source(Source(path.stem, classes, examples, notes), path, TABLE_LAYOUT)


def _rows(path: Path) -> tuple[dict[int, tuple[Path, str, Part | None]], list[str], int]:
    """By line number what is said there, then what is wrong with the others, then how many there are."""
    rows: dict[int, tuple[Path, str, Part | None]] = {}
    wrong: list[str] = []
    total = 0
    said: dict[Path, tuple[str, int]] = {}
    for line, fields in _fields(path):
        total += 1
        if fields is None or not fields["path"] or not fields["label"]:
            lacking = "other fields than the header" if fields is None else "no path" if fields["label"] else "no label"
            wrong.append(f"line {line} has {lacking}")
            continue
        try:
            file = (path.parent / fields["path"]).resolve()
            there = file.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a loop of links
            wrong.append(f"line {line}: {str(error)[:100]}")
            continue
        if not file.is_relative_to(path.parent):
            raise ValueError(f"{path} line {line}: {fields['path']} leads out of {path.parent}.\n{TABLE_LAYOUT}")
        if not there:
            wrong.append(f"line {line}: there is no {file}")
            continue
        label, before = said.setdefault(file, (fields["label"], line))
        if label != fields["label"]:
            raise ValueError(
                f"{path}: {fields['path']} is {label} in line {before} and {fields['label']} in line {line}. "
                f"An image has one label here"
            )
        part = fields.get("part", "").lower()
        if part and part not in PART_ALIASES:
            raise ValueError(f"{path} line {line}: unknown part {part!r}. Known: {', '.join(PART_ALIASES)}")
        rows[line] = (file, label, PART_ALIASES.get(part))
    return rows, wrong, total


def _fields(path: Path) -> Iterator[tuple[int, dict[str, str] | None]]:
    """Of each row its line number and what stands in the columns wanted; None where it does not fit the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        found = {delimiter: _columns(next(csv.reader([header], delimiter=delimiter), [])) for delimiter in ",;\t"}
        fitting = [delimiter for delimiter, columns in found.items() if {"path", "label"} <= columns.keys()]
        if not fitting:
            named = " or ".join("/".join(names) for names in COLUMN_ALIASES.values())
            raise ValueError(f"{path} begins with {header.strip()[:200]!r}, not with {named}.\n{TABLE_LAYOUT}")
        columns = found[fitting[0]]
        width = len(next(csv.reader([header], delimiter=fitting[0])))
        for kind, places in columns.items():
            if len(places) > 1:
                raise ValueError(f"{path} has {len(places)} columns for the {kind}. Rename those that are not meant")
        reader = csv.reader(file, delimiter=fitting[0])
        for row in reader:
            if row:
                fits = len(row) == width
                yield reader.line_num + 1, {kind: row[at[0]].strip() for kind, at in columns.items()} if fits else None


def _columns(header: list[str]) -> dict[str, list[int]]:
    """For each kind of column the places where it stands.

    >>> _columns(["Image", "class", "photographer"])
    {'path': [0], 'label': [1]}
    """
    words = [word.strip().lower() for word in header]
    places = {kind: [at for at, word in enumerate(words) if word in names] for kind, names in COLUMN_ALIASES.items()}
    return {kind: found for kind, found in places.items() if found}
