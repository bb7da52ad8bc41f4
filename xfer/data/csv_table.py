"""Layout with a CSV file that lists images and their labels."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from xfer.data.images import ImageFile
from xfer.data.label_names import find_lookalikes, is_missing, normalize_label
from xfer.data.source import PART_ALIASES, Example, Source, preview, validate_source
from xfer.data.uris import URI_FORMATS, DataUri
from xfer.records import Part

COLUMN_ALIASES = {
    "path": ("path", "image", "file", "filename"),
    "label": ("label", "class", "target"),
    "part": ("part", "split", "subset", "set", "partition"),
}
"""Accepted names of each column, in lower case. The part column is optional."""
FLAG_COLUMNS: dict[str, Part] = {
    "is_train": "train",
    "is_training": "train",
    "is_valid": "val",
    "is_val": "val",
    "is_validation": "val",
    "is_test": "test",
}
"""Columns of true or false that put a row into a part."""
PLAIN_FLAG_COLUMNS: dict[str, Part] = {"train": "train", "val": "val", "validation": "val", "test": "test"}
"""Names that may mean something else: these columns count as `FLAG_COLUMNS` only if all their values are booleans."""
FOLD_COLUMNS = ("fold", "folds", "kfold", "k_fold", "cv_fold", "fold_id")
PART_NAMES: dict[str, Part] = {
    **PART_ALIASES,
    "training": "train",
    "dev": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "testing": "test",
}
"""Part by its name in a table, in lower case and without a suffix such as `_set`."""
BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16, so it is tried first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
DELIMITERS = ",;\t|"
MAX_BYTES = 256 * 2**20
TABLE_LAYOUT = """A table is expected as FILE.csv or FILE.tsv, separated by commas, semicolons or tabs, in UTF-8:
    path,label,part
    photos/1.jpg,cat,train
Paths are relative to the table's folder and stay in it; part (train, val, test) may be absent"""


@dataclass(frozen=True)
class _Record:
    """One row of a table that names an image and a label."""

    line: int
    path: str
    label: str
    part: Part | None


@dataclass
class _Rows:
    """Content of a table: the usable rows by file, and what is wrong with the others."""

    usable: dict[Path, _Record] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Why rows were skipped, one sentence each."""
    duplicates: list[int] = field(default_factory=list)
    """Lines that repeat an earlier row."""


@dataclass(frozen=True)
class _Columns:
    """Indices of the fields that a table's header names."""

    header: tuple[str, ...]
    path: int
    label: int
    part: int | None = None
    flags: tuple[tuple[int, Part], ...] = ()
    """Columns of booleans, each with the part of a row for which it is true."""


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
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES // 2**20} MiB")
    records, notes = _read_records(path)
    label_of, label_notes = _check_labels(path, records)
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


def _decode(path: Path) -> str:
    """Return the text of a table in UTF-8, or in UTF-16 or UTF-32 with a byte order mark."""
    content = path.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            start = content.rfind(b"\n", 0, error.start) + 1
            line, wrong = content.count(b"\n", 0, error.start) + 1, content[start : error.end][-60:]
            raise ValueError(
                f"{path} line {line} is not UTF-8: {wrong!r}. Save the table again as UTF-8.\n{TABLE_LAYOUT}"
            ) from error
        line = content[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise ValueError(
            f"{path} line {line} is not {encoding.upper()}, which the file's first bytes announce: {error.reason}. "
            f"Save the table again as UTF-8.\n{TABLE_LAYOUT}"
        ) from error
    if "\0" in text[:4] and encoding == "utf-8":
        raise ValueError(f"{path} line 1 holds null bytes, as UTF-16 without a byte order mark does. Save it as UTF-8")
    return text


def _read_records(path: Path) -> tuple[list[_Record], list[str]]:
    """Return the rows of a table, and notes about its columns."""
    text = _decode(path)
    lines = io.StringIO(text, newline="").readlines()
    first = 1 if lines and re.fullmatch(r"sep=.\s*", lines[0]) else 0  # written by Excel
    while first < len(lines) and not lines[first].strip():
        first += 1
    delimiter, header = _parse_header(path, lines[first] if first < len(lines) else "")
    table_rows: list[tuple[int, list[str]]] = []
    indices_of = _find_columns(header)
    for name, indices in indices_of.items():
        if len(indices) > 1:
            raise ValueError(f"{path} has {len(indices)} columns for the {name}. Rename all but one")
    required = [indices[0] for indices in indices_of.values()]
    for line, last, row in _parse_lines(path, lines, first + 1, delimiter):
        if not any(value.strip() for value in row):
            continue
        if len(row) != len(header) and (len(row) < len(header) or any(map(str.strip, row[len(header) :]))):
            raise ValueError(
                f"{path} line {line} has another number of fields ({len(row)}) than the header ({len(header)}): "
                f"{_shown(lines[line - 1])}. Put a value that contains {_delimiter_name(delimiter)} in double quotes"
            )
        _check_quotes(path, lines[line - 1 : last], line, row, required, delimiter, len(header), indices_of["path"][0])
        table_rows.append((line, row[: len(header)]))
    columns, notes = _choose_part_columns(path, header, indices_of, table_rows)
    records = [
        _Record(line, row[columns.path].strip(), row[columns.label], _part(path, line, row, columns))
        for line, row in table_rows
    ]
    return records, notes


def _parse_header(path: Path, header: str) -> tuple[str, tuple[str, ...]]:
    """Return a table's delimiter and the names of its columns, in lower case."""
    for delimiter in DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        words = [re.sub(r"[\s_-]+", "_", name.strip().casefold()) for name in names]
        while words and not words[-1]:  # the header ends with delimiters
            words.pop()
        if {"path", "label"} <= _find_columns(words).keys():
            return delimiter, tuple(words)
    expected = " or ".join("/".join(COLUMN_ALIASES[name]) for name in ("path", "label"))
    raise ValueError(f"{path} begins with {header.strip()[:200]!r}, not with {expected}.\n{TABLE_LAYOUT}")


def _parse_lines(path: Path, lines: list[str], start: int, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield first line, last line and fields of each record after the header; lines are counted from 1."""
    reader = csv.reader(iter(lines[start:]), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = start + 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = start + reader.line_num
            if last > line or str(error) == "unexpected end of data":
                raise ValueError(_stray_quote_message(path, line, last, lines[line - 1])) from error
            raise ValueError(f"{path} line {line} cannot be read: {error}: {_shown(lines[line - 1])}") from error
        if row:
            yield line, start + reader.line_num, row
        line = start + reader.line_num + 1


def _check_quotes(
    path: Path,
    lines: Sequence[str],
    line: int,
    row: Sequence[str],
    required: Sequence[int],
    delimiter: str,
    width: int,
    path_index: int,
) -> None:
    """Raise a ValueError if a quote of a record seems to be a stray one.

    Args:
        path: the table.
        lines: physical lines of the record.
        line: number of the first of them.
        row: fields of the record.
        required: indices of fields that must be in one line.
        delimiter: the table's delimiter.
        width: number of the table's columns.
        path_index: index of the path among them.
    """
    last = line + len(lines) - 1
    if any("\n" in row[index].strip() or "\r" in row[index].strip() for index in required):
        raise ValueError(_stray_quote_message(path, line, last, lines[0]))
    for swallowed in lines[1:]:
        # A description may contain line breaks. A line of it that names an image in the right column is a row.
        fields = swallowed.split(delimiter)
        if len(fields) == width and _is_image_path(path.parent, fields[path_index].strip().strip('"')):
            raise ValueError(_stray_quote_message(path, line, last, lines[0]))
    raw = "".join(lines)
    if any('"' in row[index] and row[index].replace('"', '""') not in raw for index in required):
        raise ValueError(
            f"{path} line {line} has a double quote inside a value: {_shown(lines[0])}. Remove it, or put the value in "
            f"double quotes and write each quote inside it twice"
        )


def _choose_part_columns(
    path: Path, header: tuple[str, ...], indices_of: dict[str, list[int]], rows: Sequence[tuple[int, list[str]]]
) -> tuple[_Columns, list[str]]:
    """Return the columns that are read, and notes about those that give the part."""
    path_index, label_index = indices_of["path"][0], indices_of["label"][0]
    fixed = (path_index, label_index, *indices_of.get("part", ()))
    others = [index for index in range(len(header)) if index not in fixed]
    flags = tuple(
        (index, (FLAG_COLUMNS | PLAIN_FLAG_COLUMNS)[header[index]])
        for index in others
        if header[index] in FLAG_COLUMNS
        or (
            rows
            and header[index] in PLAIN_FLAG_COLUMNS
            and all(row[index].strip().lower() in BOOLEANS for _, row in rows)
        )
    )
    part = indices_of["part"][0] if "part" in indices_of else None
    notes: list[str] = []
    if part is None and not flags:
        named = [index for index in others if _holds_part_names(rows, index)]
        if len(named) > 1:
            raise ValueError(
                f"{path} has several columns that hold names of parts: {_quoted(header[index] for index in named)}. "
                f"Rename the one to use to 'part'"
            )
        if named:
            part = named[0]
            notes.append(f"{path.name}: the part of each image is read from the column {header[part]!r}.")
    elif part is not None and flags:
        names = _quoted(header[index] for index in (part, *(index for index, _ in flags)))
        raise ValueError(f"{path} gives the part in more than one way: {names}. Remove or rename all but one")
    folds = [header[index] for index in others if header[index] in FOLD_COLUMNS and index != part]
    if folds and part is None and not flags:
        raise ValueError(
            f"{path} has a column {folds[0]!r}, but folds are not used: each image has one part. Add a column 'part' "
            f"with train, val or test (for example val for one fold and train for the others), or rename {folds[0]!r} "
            f"to have the parts drawn at random"
        )
    if folds:
        notes.append(f"{path.name}: the column {folds[0]!r} is ignored, because another column gives the part.")
    return _Columns(header, path_index, label_index, part, flags), notes


def _holds_part_names(rows: Sequence[tuple[int, list[str]]], index: int) -> bool:
    """Return whether all values of a column are names of parts, at least two different ones."""
    parts = {_part_by_name(row[index]) for _, row in rows}
    return None not in parts and "train" in parts and len(parts) > 1


def _part_by_name(name: str) -> Part | None:
    """Return the part of a name, None if it is unknown.

    >>> _part_by_name("Training set"), _part_by_name("DEV"), _part_by_name("A")
    ('train', 'val', None)
    """
    word = name.strip().casefold()
    return PART_NAMES.get(word) or PART_NAMES.get(re.sub(r"[\s_-]*(set|split|data|part)$", "", word))


def _part(path: Path, line: int, row: Sequence[str], columns: _Columns) -> Part | None:
    """Return the part of a row, None if it has none."""
    if columns.part is not None:
        name = row[columns.part].strip()
        part = _part_by_name(name)
        if part is None and not is_missing(name):
            raise ValueError(
                f"{path} line {line}: unknown part {name!r}. Known: {', '.join(PART_NAMES)}. "
                f"If the column {columns.header[columns.part]!r} does not give the part, rename it"
            )
        return part
    if not columns.flags:
        return None
    parts: set[Part] = set()
    for index, flag_part in columns.flags:
        value = BOOLEANS.get(row[index].strip().lower())
        if value is None:
            raise ValueError(
                f"{path} line {line}: {columns.header[index]} must be true or false, not {row[index].strip()!r}. "
                f"If this column does not give the part, rename it"
            )
        if value:
            parts.add(flag_part)
    if len(parts) > 1:
        raise ValueError(f"{path} line {line} is in several parts: {', '.join(sorted(parts))}. Give it one")
    flag_parts = {part for _, part in columns.flags}
    if not parts and "train" in flag_parts:
        if len(flag_parts) > 1:
            names = _quoted(columns.header[index] for index, _ in columns.flags)
            raise ValueError(f"{path} line {line} is in no part: {names} are all false. Give it one")
        return "test"
    return parts.pop() if parts else "train"


def _check_labels(path: Path, records: Sequence[_Record]) -> tuple[dict[str, str], list[str]]:
    """Return the class name of each label as written, and notes about labels that were merged.

    Raises:
        ValueError: labels are missing, or look like two spellings of one class.
    """
    missing = [record.line for record in records if is_missing(record.label)]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(records)} rows have no label (empty, nan, None, NA, null): line "
            f"{preview(missing)}. Remove these rows or give them a label; if one of these words is a class, write "
            f"another word, such as no_defect"
        )
    label_of = {record.label: normalize_label(record.label) for record in records}
    count = Counter(label_of[record.label] for record in records)
    first_line: dict[str, int] = {}
    for record in records:
        first_line.setdefault(label_of[record.label], record.line)
    if groups := find_lookalikes(count):
        shown = preview(
            " and ".join(f"{name!r} ({count[name]} rows, first in line {first_line[name]})" for name in group)
            for group in groups
        )
        raise ValueError(
            f"{path}: labels look like spellings of one class: {shown}. Write each class in one way; if they are "
            f"different classes, give them names that differ in more than this"
        )
    spellings: dict[str, set[str]] = defaultdict(set)
    for written, name in label_of.items():
        spellings[name].add(written)
    merged = sorted(name for name, variants in spellings.items() if len(variants) > 1)
    notes = (
        [
            f"{path.name}: labels that differ only in surrounding white space or Unicode normal form were merged: "
            f"{preview(merged)}."
        ]
        if merged
        else []
    )
    return label_of, notes


def _find_files(path: Path, records: Sequence[_Record], label_of: dict[str, str]) -> _Rows:
    """Find the image of each row.

    Raises:
        ValueError: a path leads out of the table's folder, or an image has two labels or two parts.
    """
    rows = _Rows()
    for record in records:
        if not record.path:
            rows.missing.append(f"line {record.line} has no path")
            continue
        try:
            file = _resolve(path.parent, record.path)
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


def _resolve(folder: Path, name: str) -> Path | None:
    r"""Return the file that a table names, None if there is none.

    Tried in turn: the name as it is, with \ as separator, and in the Unicode normal forms in which systems store names.

    A path that leads out of the folder is returned whether or not there is such a file: the caller has to refuse it.
    """
    slashed = name.replace("\\", "/")
    for candidate in dict.fromkeys(
        (name, slashed, unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed))
    ):
        file = (folder / candidate).resolve()
        if file.is_file() or not file.is_relative_to(folder):
            return file
    return None


def _is_image_path(folder: Path, name: str) -> bool:
    try:
        return bool(name) and _resolve(folder, name) is not None
    except (OSError, ValueError, RuntimeError):
        return False


def _stray_quote_message(path: Path, first: int, last: int, text: str) -> str:
    return (
        f"{path} line {first}: a double quote is opened and not closed in this line (read up to line {last}): "
        f"{_shown(text)}. Remove the stray quote, or close it in its line"
    )


def _shown(text: str) -> str:
    return repr(text.strip()[:80])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _delimiter_name(delimiter: str) -> str:
    return {",": "a comma", ";": "a semicolon", "\t": "a tab"}.get(delimiter, delimiter)


def _find_columns(header: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the fields in a header, in lower case, that name each column.

    >>> _find_columns(["image", "class", "photographer"])
    {'path': [0], 'label': [1]}
    """
    columns = {
        name: [index for index, word in enumerate(header) if word in aliases]
        for name, aliases in COLUMN_ALIASES.items()
    }
    return {name: indices for name, indices in columns.items() if indices}
