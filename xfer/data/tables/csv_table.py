"""Layout with a CSV file that lists images and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from xfer.data.images import ImageFile
from xfer.data.source import Example, Source, preview, validate_source
from xfer.data.tables.columns import TABLE_LAYOUT, choose_part_columns, part_of_row
from xfer.data.tables.labels import check_labels
from xfer.data.tables.parsing import parse_table
from xfer.data.tables.paths import resolve_path
from xfer.data.tables.records import Record
from xfer.data.uris import URI_FORMATS, DataUri

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})


@dataclass
class _FoundFiles:
    """Content of a table: the usable rows by file, and what is wrong with the others."""

    usable: dict[Path, Record] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Why rows were skipped, one sentence each."""
    duplicates: list[int] = field(default_factory=list)
    """Lines that repeat an earlier row."""


def is_table(path: Path) -> bool:
    """Return whether a path is that of a table."""
    return path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir()


def table(uri: DataUri) -> Source:
    r"""Read FILE.csv with the columns path, label and optionally a part (train, val, test).

    Columns. The path may also be called image, file or filename, the label class or target, the part split, subset, set
    or partition. A column whose values are all names of parts is taken as the part too. Columns such as `is_valid` and
    `is_test` hold true or false. A column of folds is refused unless the table gives parts. Other columns are ignored.

    Paths are relative to the table's folder, with / or \. A path that leads out of it is refused, so that a downloaded
    table cannot read other files of this machine: put the table next to the images or above them.

    Labels that differ in surrounding white space or Unicode normal form are merged, with a note. Labels that differ in
    case, in the format of a number or in a separator are refused, and so are missing labels. Rows that say the same
    are merged, with a note. Rows without a path or with a missing file are skipped and counted in the notes.

    If train is the only part, the table is treated like one without parts. Classes are sorted by name.

    Raises:
        ValueError: no such file, not UTF-8 or UTF-16, a line that does not parse, a missing column, an unknown part, a
            path that leads out, missing or look-alike labels, an image with two labels or in two parts.
    """
    path = Path(uri).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is a folder.\n{URI_FORMATS}" if path.exists() else f"there is no file {path}")
    path = path.resolve()
    parsed = parse_table(path)
    columns, notes = choose_part_columns(path, parsed.header, parsed.indices_of, parsed.rows)
    records = [
        Record(line, row[columns.path].strip(), row[columns.label], part_of_row(path, line, row, columns))
        for line, row in parsed.rows
    ]
    label_of, label_notes = check_labels(path, records)
    rows = _find_files(path, records, label_of)
    if not rows.usable:
        raise ValueError(
            f"{path} lists no image that exists: {preview(rows.missing) or 'it has no rows'}.\n{TABLE_LAYOUT}"
        )
    parts = {record.part for record in rows.usable.values()}
    if None in parts and len(parts) > 1:
        line = next(record.line for record in rows.usable.values() if record.part is None)
        raise ValueError(f"{path} line {line} has no part, but other rows have one. Give all rows a part, or none")
    only_train = parts == {"train"}
    classes = tuple(sorted({label_of[record.label] for record in rows.usable.values()}))
    index_of = {name: index for index, name in enumerate(classes)}
    examples = tuple(
        Example(ImageFile(file), index_of[label_of[record.label]], None if only_train else record.part)
        for file, record in rows.usable.items()
    )
    if rows.missing:
        skipped = f"{len(rows.missing)} of {len(records)} rows were skipped: {preview(rows.missing)}"
        notes.append(f"{path.name}: {skipped}.")
    notes.extend(label_notes)
    if rows.duplicates:
        lines = preview(rows.duplicates)
        notes.append(f"{path.name}: {len(rows.duplicates)} rows repeat another one and were merged: line {lines}.")
    return validate_source(Source(path.stem, classes, examples, tuple(notes)), path, TABLE_LAYOUT)


def _find_files(path: Path, records: Sequence[Record], label_of: dict[str, str]) -> _FoundFiles:
    """Find the image of each row.

    Raises:
        ValueError: a path leads out of the table's folder, or an image has two labels or two parts.
    """
    rows = _FoundFiles()
    for record in records:
        if not record.path:
            rows.missing.append(f"line {record.line} has no path")
            continue
        try:
            file = resolve_path(path.parent, record.path)
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, a loop of links
            rows.missing.append(f"line {record.line}: {str(error)[:100]}")
            continue
        if file is None:
            reason = f"there is no {path.parent / record.path}"
            if PureWindowsPath(record.path).drive:
                reason = f"{record.path} is an absolute path of Windows, not one relative to the table's folder"
            rows.missing.append(f"line {record.line}: {reason}")
            continue
        if not file.is_relative_to(path.parent):
            raise ValueError(f"{path} line {record.line}: {record.path} leads out of {path.parent}.\n{TABLE_LAYOUT}")
        first = rows.usable.setdefault(file, record)
        label, other_label = label_of[first.label], label_of[record.label]
        if label != other_label:
            raise ValueError(
                f"{path}: {record.path} is {label} in line {first.line} and {other_label} in line {record.line}. "
                f"Give each image one label"
            )
        if first.part != record.part:
            raise ValueError(
                f"{path}: {record.path} is in part {first.part} in line {first.line} and in part {record.part} in line "
                f"{record.line}. Give each image one part"
            )
        if first is not record:
            rows.duplicates.append(record.line)
    return rows
