"""Layout with a CSV file that lists images and their labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xfer.data.images import ImageFile
from xfer.data.source import (
    MAX_NAMED,
    Example,
    SkippedFiles,
    Source,
    describe_skipped,
    missing_class_notes,
    validate_source,
)
from xfer.data.tables.columns import NO_GROUP, TABLE_LAYOUT, choose_columns, choose_group, part_of_row
from xfer.data.tables.labels import check_labels
from xfer.data.tables.parsing import parse_table
from xfer.data.tables.paths import NOT_FOUND, find_image, similar_file
from xfer.data.tables.records import Record
from xfer.data.uris import URI_FORMATS, DataUri

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
MIN_IMAGES = 20
"""Number of images from which many classes of one image are suspicious."""
OUTSIDE_PARTS = "outside the values of --parts"
REPEATED = "repeated row"


@dataclass
class _SortedRows:
    """Rows of a table: the usable ones by file, and the others by the reason why they are not used."""

    usable: dict[Path, Record] = field(default_factory=dict)
    skipped: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))


def is_table(path: Path) -> bool:
    """Return whether a path is that of a table."""
    return path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir()


def table(uri: DataUri, parts: Mapping[str, str] | None = None, group: str = "") -> Source:
    r"""Read FILE.csv with the columns path, label and optionally a part (train, val, test).

    Columns. The path may also be called image, file or filename, the label class or target, the part split, subset, set
    or partition; `columns.RARER_ALIASES` has further names. A column whose values are all names of parts is taken as
    the part too. Columns such as `is_valid` and `is_test` hold true or false. A column of folds is refused unless the
    table gives parts. A column that names the patient, camera or video of each image (`columns.GROUP_COLUMNS`) gives
    groups, none of which spans two drawn parts. Other columns are ignored.

    Paths are relative to the table's folder, with / or \. A path that leads out of it is refused, so that a downloaded
    table cannot read other files of this machine: put the table next to the images or above them.

    Labels that differ in surrounding white space or Unicode normal form are merged, with a note. Labels that differ in
    case, in the format of a number or in a separator are refused, and so are missing labels. Rows that say the same
    are merged. Every row that is not used is counted in `Source.skipped`.

    If train is the only part, the table is treated like one without parts. Classes are sorted by name.

    Args:
        uri: the table.
        parts: the value of the part column for each part, or column=value, as `part_names.parse_parts` returns them;
            rows with other values are left out. Detected by default.
        group: the column that names the group of each image, or none. Detected by default.

    Raises:
        ValueError: no such file, not UTF-8 or UTF-16, a line that does not parse, a missing column, an unknown part, a
            path that leads out, missing or look-alike labels, an image with two labels, two groups or in two parts, or
            a class or part without any usable row.
    """
    path = Path(uri).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is a folder.\n{URI_FORMATS}" if path.exists() else f"there is no file {path}")
    path = path.resolve()
    parsed = parse_table(path)
    columns, notes = choose_columns(path, parsed.header, parsed.rows, parts or {})
    kept = [(line, row) for line, row in parsed.rows if not columns.leaves_out(row)]
    columns, group_notes = choose_group(path, columns, kept, group)
    notes += group_notes
    left_out = [
        Record(line, row[columns.path].strip(), row[columns.label], None)
        for line, row in parsed.rows
        if columns.leaves_out(row)
    ]
    records = [
        Record(
            *(line, row[columns.path].strip(), row[columns.label], part_of_row(path, line, row, columns)),
            columns.group_of(row),
        )
        for line, row in kept
    ]
    label_of, label_notes = check_labels(path, records)
    rows = _sort_rows(path, records, label_of)
    if left_out:
        rows.skipped[OUTSIDE_PARTS] = left_out
    skipped = tuple(_skipped(path.parent, reason, records) for reason, records in rows.skipped.items())
    _check_parts(path, records, rows, skipped)
    only_train = {record.part for record in records} == {"train"}
    classes = tuple(sorted({label_of[record.label] for record in records}))
    index_of = {name: index for index, name in enumerate(classes)}
    examples = tuple(
        Example(ImageFile(file), index_of[label_of[record.label]], None if only_train else record.part, record.group)
        for file, record in rows.usable.items()
    )
    source = Source(path.stem, classes, examples, (), skipped, unit="rows", group_column=columns.group_name)
    try:
        validate_source(source, path, f"with a label.\n{TABLE_LAYOUT}")
    except ValueError as error:
        raise ValueError(f"{error}{_reasons(skipped)}") from None
    if len(examples) >= MIN_IMAGES and 2 * len(classes) > len(examples):
        notes.append(
            f"WARNING: {path.name}: {len(classes)} classes for {len(examples)} images. A column of measurements or of "
            f"names of images is not a label."
        )
    notes += [*label_notes, *_skip_notes(path, len(parsed.rows), skipped), *missing_class_notes(source)]
    return replace(source, notes=tuple(notes))


def _sort_rows(path: Path, records: Sequence[Record], label_of: Mapping[str, str]) -> _SortedRows:
    """Find the image of each row.

    Raises:
        ValueError: a path leads out of the table's folder, or an image has two labels or two parts.
    """
    rows = _SortedRows()
    for record in records:
        file = find_image(path.parent, record.path)
        if isinstance(file, str):
            rows.skipped[file].append(record)
            continue
        if not file.is_relative_to(path.parent):
            inside = find_image(path.parent, record.path.lstrip("/"))
            slash = record.path.startswith("/") and isinstance(inside, Path) and inside.is_relative_to(path.parent)
            hint = " Without the leading slash it is a file of this folder" if slash else ""
            raise ValueError(
                f"{path} line {record.line}: {record.path} leads out of {path.parent}.{hint}\n{TABLE_LAYOUT}"
            )
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
        if first.group != record.group:
            raise ValueError(
                f"{path}: {record.path} is in group {first.group} in line {first.line} and in group {record.group} in "
                f"line {record.line}. Give each image one group, or ignore them with --group {NO_GROUP}"
            )
        if first is not record:
            rows.skipped[REPEATED].append(record)
    return rows


def _check_parts(path: Path, records: Sequence[Record], rows: _SortedRows, skipped: Sequence[SkippedFiles]) -> None:
    """Check that all rows or none have a part, and that no part is lost.

    Raises:
        ValueError: some rows have no part, or no row of a part can be used.
    """
    parts = {record.part for record in records}
    if None in parts and len(parts) > 1:
        line = next(record.line for record in records if record.part is None)
        raise ValueError(f"{path} line {line} has no part, but other rows have one. Give all rows a part, or none")
    if not rows.usable:
        raise ValueError(f"{path} lists no image that exists{_reasons(skipped) or ': it has no rows'}\n{TABLE_LAYOUT}")
    for part in ("val", "test"):
        if part in parts and part not in {record.part for record in rows.usable.values()}:
            raise ValueError(
                f"{path}: no row of the {part} set can be used{_reasons(skipped)}\nCorrect these rows; --parts "
                f"train=VALUE leaves out rows with other values in the part column"
            )


def _skipped(folder: Path, reason: str, records: Sequence[Record]) -> SkippedFiles:
    """Return the rows that are skipped for one reason; the first ones with a file that may be meant."""
    names = []
    for record in records[:MAX_NAMED]:
        similar = similar_file(folder, record.path) if reason == NOT_FOUND else ""
        hint = f" (there is {similar})" if similar else ""
        names.append(f"line {record.line}: {record.path[:200]}{hint}" if record.path else f"line {record.line}")
    return SkippedFiles(reason, len(records), tuple(names))


def _reasons(skipped: Sequence[SkippedFiles]) -> str:
    return f". Rows that are not used: {'; '.join(map(describe_skipped, skipped))}." if skipped else ""


def _skip_notes(path: Path, count: int, skipped: Sequence[SkippedFiles]) -> list[str]:
    """Return a warning about the rows that were probably meant to be used, and a note about repeated ones."""
    notes = []
    lost = [skip for skip in skipped if skip.reason not in (REPEATED, OUTSIDE_PARTS)]
    if lost:
        total = sum(skip.count for skip in lost)
        notes.append(
            f"WARNING: {path.name}: {total} of {count} rows are skipped: {'; '.join(map(describe_skipped, lost))}."
        )
    for skip in skipped:
        if skip.reason == REPEATED:
            notes.append(f"{path.name}: {skip.count} rows repeat another one and are merged: {skip.names}.")
    return notes
