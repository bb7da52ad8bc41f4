"""Columns of a table: which hold the path, the label and the part of an image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.data.source import PART_ALIASES
from xfer.data.tables.label_names import is_missing
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
TABLE_LAYOUT = """A table is expected as FILE.csv or FILE.tsv, separated by commas, semicolons or tabs, in UTF-8:
    path,label,part
    photos/1.jpg,cat,train
Paths are relative to the table's folder and stay in it; part (train, val, test) may be absent"""


@dataclass(frozen=True)
class Columns:
    """Indices of the fields that a table's header names."""

    header: tuple[str, ...]
    path: int
    label: int
    part: int | None = None
    flags: tuple[tuple[int, Part], ...] = ()
    """Columns of booleans, each with the part of a row for which it is true."""


def find_columns(header: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the fields in a header, in lower case, that name each column.

    >>> find_columns(["image", "class", "photographer"])
    {'path': [0], 'label': [1]}
    """
    columns = {
        name: [index for index, word in enumerate(header) if word in aliases]
        for name, aliases in COLUMN_ALIASES.items()
    }
    return {name: indices for name, indices in columns.items() if indices}


def choose_part_columns(
    path: Path, header: tuple[str, ...], indices_of: dict[str, list[int]], rows: Sequence[tuple[int, list[str]]]
) -> tuple[Columns, list[str]]:
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
    return Columns(header, path_index, label_index, part, flags), notes


def _holds_part_names(rows: Sequence[tuple[int, list[str]]], index: int) -> bool:
    """Return whether all values of a column are names of parts, at least two different ones."""
    parts = {part_by_name(row[index]) for _, row in rows}
    return None not in parts and "train" in parts and len(parts) > 1


def part_by_name(name: str) -> Part | None:
    """Return the part of a name, None if it is unknown.

    >>> part_by_name("Training set"), part_by_name("DEV"), part_by_name("A")
    ('train', 'val', None)
    """
    word = name.strip().casefold()
    return PART_NAMES.get(word) or PART_NAMES.get(re.sub(r"[\s_-]*(set|split|data|part)$", "", word))


def part_of_row(path: Path, line: int, row: Sequence[str], columns: Columns) -> Part | None:
    """Return the part of a row, None if it has none."""
    if columns.part is not None:
        name = row[columns.part].strip()
        part = part_by_name(name)
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


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
