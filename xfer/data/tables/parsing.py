"""Parse a table strictly: every fault is refused with its line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.data.source import preview
from xfer.data.tables.columns import BOOLEANS, COLUMN_ALIASES, TABLE_LAYOUT, Row, find_columns, normalize_column
from xfer.data.tables.paths import is_image_path

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16, so it is tried first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DELIMITERS = ",;\t|"
MAX_BYTES = 256 * 2**20
"""Maximum size of a table's file."""


@dataclass(frozen=True)
class ParsedTable:
    """Content of a table, before its values are checked."""

    header: tuple[str, ...]
    """Names of the columns, in lower case and with underscores."""
    rows: list[Row]


def parse_table(path: Path) -> ParsedTable:
    """Return the rows of a table that are not empty.

    Raises:
        ValueError: the table is too large, not in UTF-8 or UTF-16, lacks a column, or holds a line that does not parse.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES // 2**20} MiB")
    text = _decode(path)
    lines = io.StringIO(text, newline="").readlines()
    first = 1 if lines and re.fullmatch(r"sep=.\s*", lines[0]) else 0  # written by Excel
    while first < len(lines) and not lines[first].strip():
        first += 1
    delimiter, header = _parse_header(path, lines[first:])
    rows: list[Row] = []
    indices_of = find_columns(header)
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
        rows.append((line, row[: len(header)]))
    return ParsedTable(header, rows)


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


def _parse_header(path: Path, lines: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return a table's delimiter and the names of its columns, in lower case.

    Args:
        path: the table, for messages.
        lines: the lines from the header on.
    """
    header = lines[0] if lines else ""
    for delimiter in DELIMITERS:
        words = [normalize_column(name) for name in _split(header, delimiter)]
        while words and not words[-1]:  # the header ends with delimiters
            words.pop()
        if {"path", "label"} <= find_columns(words).keys():
            return delimiter, tuple(words)
    expected = " or ".join("/".join(COLUMN_ALIASES[name]) for name in ("path", "label"))
    if classes := _one_hot_columns(lines[:50]):
        raise ValueError(
            f"{path} has no column with labels, but columns of 0 and 1: {preview(classes)}. Each image has one label: "
            f"add a column 'label' with the name of the column that is 1.\n{TABLE_LAYOUT}"
        )
    raise ValueError(f"{path} begins with {header.strip()[:200]!r}, not with {expected}.\n{TABLE_LAYOUT}")


def _one_hot_columns(lines: Sequence[str]) -> list[str]:
    """Return the columns, at least two, that hold only 0 and 1 in the first lines of a table."""
    for delimiter in DELIMITERS:
        header, *rows = [_split(line, delimiter) for line in lines if line.strip()] or [[]]
        if rows and all(len(row) == len(header) for row in rows):
            columns = [
                name
                for name, *values in zip(header, *rows, strict=True)
                if all(value.strip() in BOOLEANS for value in values)
            ]
            if len(columns) > 1:
                return columns
    return []


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a line too long for a header
        return []


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
        if len(fields) == width and is_image_path(path.parent, fields[path_index].strip().strip('"')):
            raise ValueError(_stray_quote_message(path, line, last, lines[0]))
    raw = "".join(lines)
    if any('"' in row[index] and row[index].replace('"', '""') not in raw for index in required):
        raise ValueError(
            f"{path} line {line} has a double quote inside a value: {_shown(lines[0])}. Remove it, or put the value in "
            f"double quotes and write each quote inside it twice"
        )


def _stray_quote_message(path: Path, first: int, last: int, text: str) -> str:
    return (
        f"{path} line {first}: a double quote is opened and not closed in this line (read up to line {last}): "
        f"{_shown(text)}. Remove the stray quote, or close it in its line"
    )


def _shown(text: str) -> str:
    return repr(text.strip()[:80])


def _delimiter_name(delimiter: str) -> str:
    return {",": "a comma", ";": "a semicolon", "\t": "a tab"}.get(delimiter, delimiter)
