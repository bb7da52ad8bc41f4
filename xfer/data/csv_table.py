"""Layout with a CSV file that lists images and their labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
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
"""Accepted names of each column, in lower case. The part column is optional."""
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
MAX_BYTES = 256 * 2**20
TABLE_LAYOUT = """A table is expected as FILE.csv or FILE.tsv, separated by commas, semicolons or tabs, in UTF-8:
    path,label,part
    photos/1.jpg,cat,train
Paths are relative to the table's folder and stay in it; part (train, val, test) may be absent"""


@dataclass
class _Rows:
    """Content of a table: the usable rows by line number, and what is wrong with the others."""

    usable: dict[int, tuple[Path, str, Part | None]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    total: int = 0


def is_table(path: Path) -> bool:
    """Return whether a path is that of a table."""
    return path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir()


def table(uri: DataUri) -> Source:
    """Read FILE.csv with the columns path, label and optionally part (train, val, test).

    The columns may also be called image, file or filename; class or target; split. Other columns are ignored. Paths are
    relative to the table's folder. A path that leads out of it is refused, so that a downloaded table cannot read other
    files of this machine: put the table next to the images or above them. If train is the only part, the table is
    treated like one without parts. Classes are sorted by name.

    Rows without label, with a missing file, or with another number of fields than the header are skipped and counted in
    the notes.

    Raises:
        ValueError: no such file, a missing column, an unknown part, a path that leads out, an image with two labels.
    """
    path = Path(uri).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is a folder.\n{URI_FORMATS}" if path.exists() else f"there is no file {path}")
    path = path.resolve()
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES // 2**20} MiB")
    try:
        rows = _read_rows(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.\n{TABLE_LAYOUT}") from error
    if not rows.usable:
        raise ValueError(
            f"{path} lists no image that exists: {preview(rows.problems) or 'it has no rows'}.\n{TABLE_LAYOUT}"
        )
    parts = {part for _, _, part in rows.usable.values()}
    if None in parts and len(parts) > 1:
        line = next(line for line, (_, _, part) in rows.usable.items() if part is None)
        raise ValueError(f"{path} line {line} has no part, but other rows have one. Give all rows a part, or none")
    only_train = parts == {"train"}
    classes = tuple(sorted({label for _, label, _ in rows.usable.values()}))
    label_of = {name: label for label, name in enumerate(classes)}
    examples = tuple(
        Example(ImageFile(file), label_of[name], None if only_train else part)
        for file, name, part in rows.usable.values()
    )
    notes = (
        (f"{path.name}: {len(rows.problems)} of {rows.total} rows were skipped: {preview(rows.problems)}.",)
        if rows.problems
        else ()
    )
    return validate_source(Source(path.stem, classes, examples, notes), path, TABLE_LAYOUT)


def _read_rows(path: Path) -> _Rows:
    rows = _Rows()
    label_lines: dict[Path, tuple[str, int]] = {}
    for line, fields in _read_fields(path):
        rows.total += 1
        if fields is None or not fields["path"] or not fields["label"]:
            problem = "another number of fields than the header"
            if fields is not None:
                problem = "no path" if fields["label"] else "no label"
            rows.problems.append(f"line {line} has {problem}")
            continue
        try:
            file = (path.parent / fields["path"]).resolve()
            is_file = file.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, a loop of links
            rows.problems.append(f"line {line}: {str(error)[:100]}")
            continue
        if not file.is_relative_to(path.parent):
            raise ValueError(f"{path} line {line}: {fields['path']} leads out of {path.parent}.\n{TABLE_LAYOUT}")
        if not is_file:
            rows.problems.append(f"line {line}: there is no {file}")
            continue
        label, first_line = label_lines.setdefault(file, (fields["label"], line))
        if label != fields["label"]:
            raise ValueError(
                f"{path}: {fields['path']} is {label} in line {first_line} and {fields['label']} in line {line}. "
                f"Give each image one label"
            )
        part = fields.get("part", "").lower()
        if part and part not in PART_ALIASES:
            raise ValueError(f"{path} line {line}: unknown part {part!r}. Known: {', '.join(PART_ALIASES)}")
        rows.usable[line] = (file, label, PART_ALIASES.get(part))
    return rows


def _read_fields(path: Path) -> Iterator[tuple[int, dict[str, str] | None]]:
    """Yield each row's line number and its fields by column; None if their number differs from the header's."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        headers = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in ",;\t"}
        columns_of = {delimiter: _find_columns(names) for delimiter, names in headers.items()}
        delimiter = next((key for key, columns in columns_of.items() if {"path", "label"} <= columns.keys()), None)
        if delimiter is None:
            expected = " or ".join("/".join(names) for names in COLUMN_ALIASES.values())
            raise ValueError(f"{path} begins with {header.strip()[:200]!r}, not with {expected}.\n{TABLE_LAYOUT}")
        columns, width = columns_of[delimiter], len(headers[delimiter])
        for name, indices in columns.items():
            if len(indices) > 1:
                raise ValueError(f"{path} has {len(indices)} columns for the {name}. Rename all but one")
        reader = csv.reader(file, delimiter=delimiter)
        for row in reader:
            if row:
                fields = (
                    {name: row[indices[0]].strip() for name, indices in columns.items()} if len(row) == width else None
                )
                yield reader.line_num + 1, fields


def _find_columns(header: list[str]) -> dict[str, list[int]]:
    """Return the indices of the fields in a header that name each column.

    >>> _find_columns(["Image", "class", "photographer"])
    {'path': [0], 'label': [1]}
    """
    words = [word.strip().lower() for word in header]
    columns = {
        name: [index for index, word in enumerate(words) if word in aliases] for name, aliases in COLUMN_ALIASES.items()
    }
    return {name: indices for name, indices in columns.items() if indices}
