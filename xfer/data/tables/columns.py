"""Columns of a table: which hold the path, the label and the part of an image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xfer.data.label_names import is_missing
from xfer.data.part_names import NO_PARTS, part_named
from xfer.data.source import preview
from xfer.records import Part

COLUMN_ALIASES = {
    "path": ("path", "image", "file", "filename"),
    "label": ("label", "class", "target"),
    "part": ("part", "split", "subset", "set", "partition"),
}
"""Accepted names of each column, in lower case. The part column is optional."""
RARER_ALIASES = {
    "path": ("filepath", "file_path", "file_name", "image_path", "imagepath", "image_name", "image_file", "img"),
    "label": ("labels", "class_name", "classname", "label_name", "category"),
}
"""Names that count if a table has none of `COLUMN_ALIASES`."""
FLAG_COLUMNS: dict[str, Part] = {
    "is_train": "train",
    "is_training": "train",
    "is_valid": "val",
    "is_val": "val",
    "is_validation": "val",
    "is_test": "test",
}
"""Columns of true or false that put a row into a part."""
PLAIN_FLAG_COLUMNS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names that may mean something else: these columns count as `FLAG_COLUMNS` only if all their values are booleans."""
GROUP_COLUMNS = (
    *("patient", "patient_id", "patientid", "subject_id", "subjectid", "group", "group_id"),
    *("video", "video_id", "camera", "camera_id"),
)
"""Names of columns that give the group of an image without `--group`, in order of precedence."""
NO_GROUP = "none"
"""Value of `--group` that ignores such columns."""
FOLD_COLUMNS = ("fold", "folds", "kfold", "k_fold", "cv_fold", "fold_id", "cv")
BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
TABLE_LAYOUT = """A table is expected as FILE.csv or FILE.tsv, separated by commas, semicolons or tabs, in UTF-8:
    path,label,part
    photos/1.jpg,cat,train
Paths are relative to the table's folder and stay in it; part (train, val, test) may be absent"""

Row = tuple[int, list[str]]
"""Line of a row, counted from 1, and its fields."""


@dataclass(frozen=True)
class Columns:
    """Indices of the columns that are read."""

    header: tuple[str, ...]
    path: int
    label: int
    part: int | None = None
    flags: tuple[tuple[int, Part], ...] = ()
    """Columns of booleans, each with the part of a row for which it is true."""
    part_values: Mapping[str, Part] = field(default_factory=dict)
    """Part by value of the part column, from `--parts`. Rows with other values are left out. Empty without the flag."""
    group: int | None = None
    """Column that names the patient, camera, video, ... of an image."""

    @property
    def group_name(self) -> str:
        """Name of the group column; empty without one."""
        return "" if self.group is None else self.header[self.group]

    def group_of(self, row: Sequence[str]) -> str | None:
        """Return the group of a row, None if it has none."""
        value = "" if self.group is None else row[self.group].strip()
        return None if is_missing(value) else value

    def leaves_out(self, row: Sequence[str]) -> bool:
        """Return whether `--parts` leaves a row out."""
        return bool(self.part_values) and self.part is not None and row[self.part].strip() not in self.part_values


def normalize_column(name: str) -> str:
    """Return the name of a column in lower case, with underscores between words.

    >>> normalize_column(" Is-Valid ")
    'is_valid'
    """
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def find_columns(header: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the fields in a header, in lower case, that name each column.

    >>> find_columns(["image", "class", "photographer"])
    {'path': [0], 'label': [1]}
    """
    columns: dict[str, list[int]] = {}
    for name, aliases in COLUMN_ALIASES.items():
        for accepted in (aliases, RARER_ALIASES.get(name, ())):
            if indices := [index for index, word in enumerate(header) if word in accepted]:
                columns[name] = indices
                break
    return columns


def choose_columns(
    path: Path, header: tuple[str, ...], rows: Sequence[Row], parts: Mapping[str, str]
) -> tuple[Columns, list[str]]:
    """Return the columns that are read, and notes about those that give the part.

    Args:
        path: the table, for messages.
        header: names of the columns.
        rows: all rows.
        parts: value of the part column for each part, or column=value; as `part_names.parse_parts` returns them.

    Raises:
        ValueError: it is unclear which columns to read.
    """
    indices_of = find_columns(header)
    for name in ("path", "label"):
        _check_single(path, header, name, indices_of[name])
    path_index, label_index = indices_of["path"][0], indices_of["label"][0]
    others = [index for index in range(len(header)) if index not in (path_index, label_index)]
    if parts == NO_PARTS:
        return Columns(header, path_index, label_index), []
    if parts:
        given, values = _given_part_column(path, header, rows, others, parts)
        return Columns(header, path_index, label_index, given, part_values=values), []
    _check_single(path, header, "part", indices_of.get("part", []))
    part, flags, notes = _part_columns(path, header, rows, others, indices_of.get("part", []))
    return Columns(header, path_index, label_index, part, flags), notes


def choose_group(path: Path, columns: Columns, rows: Sequence[Row], group: str = "") -> tuple[Columns, list[str]]:
    """Return the columns with the one that gives the group of each image, and notes about it.

    Args:
        path: the table, for messages.
        columns: the other columns that are read.
        rows: the rows that are used.
        group: name of the column; by default one of `GROUP_COLUMNS` that the table has, unless some class would then
            be in a single group; `NO_GROUP` for none.

    Raises:
        ValueError: there is no such column, or it is read as something else.
    """
    header = columns.header
    taken = {columns.path, columns.label, columns.part, *(index for index, _ in columns.flags)}
    if group and group != NO_GROUP:
        found = [index for index, name in enumerate(header) if name == normalize_column(group)]
        others = [name for index, name in enumerate(header) if index not in taken]
        if not found:
            raise ValueError(
                f"{path} has no column {group!r}, which --group names. Its other columns: "
                f"{preview(others) if others else 'none'}"
            )
        if len(found) > 1:
            raise ValueError(f"{path} has {len(found)} columns {group!r}, which --group names. Rename all but one")
        if found[0] in taken:
            raise ValueError(f"--group {group}: {path} reads this column as path, label or part. Name another column")
        return replace(columns, group=found[0]), []
    named = [header.index(name) for name in GROUP_COLUMNS if name in header and header.index(name) not in taken]
    if group or not named:
        return columns, []
    index = named[0]
    chosen = replace(columns, group=index)
    groups_of_class: dict[str, set[str]] = {}
    for line, row in rows:
        name = chosen.group_of(row) or f"line {line}"
        groups_of_class.setdefault(row[columns.label].strip(), set()).add(name)
    single = [label for label, names in sorted(groups_of_class.items()) if len(names) == 1]
    if single:
        return columns, [
            f"{path.name}: the column {header[index]!r} is not read as groups, because all images of {preview(single)} "
            f"would be in one group; --group {header[index]} reads it."
        ]
    if len({chosen.group_of(row) for _, row in rows}) == len(rows):  # it numbers the images
        return columns, []
    unread = f" {_quoted(header[other] for other in named[1:])} not;" if named[1:] else ""
    return chosen, [
        f"{path.name}: the column {header[index]!r} is read as groups,{unread} and no group spans two drawn parts. "
        f"--group none ignores it."
    ]


def part_of_row(path: Path, line: int, row: Sequence[str], columns: Columns) -> Part | None:
    """Return the part of a row, None if it has none.

    Raises:
        ValueError: it has an unknown or several parts.
    """
    if columns.part is not None:
        return _named_part(path, line, row[columns.part].strip(), columns)
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


def _named_part(path: Path, line: int, name: str, columns: Columns) -> Part | None:
    if columns.part_values:
        return columns.part_values[name]
    part = part_named(name)
    if part is None and not is_missing(name):
        assert columns.part is not None
        column = columns.header[columns.part]
        raise ValueError(
            f"{path} line {line}: unknown part {name!r}. Known: train, val, test and their usual other names, such as "
            f"Training or dev. Say which values of the column {column!r} are the parts, as in --parts train={name}; "
            f"--parts none ignores it. If the column does not give the part, rename it"
        )
    return part


def _check_single(path: Path, header: Sequence[str], name: str, indices: Sequence[int]) -> None:
    if len(indices) > 1:
        columns = _quoted(header[index] for index in indices)
        raise ValueError(f"{path} has {len(indices)} columns for the {name}. Rename all but one of {columns}")


def _given_part_column(
    path: Path, header: Sequence[str], rows: Sequence[Row], others: Sequence[int], parts: Mapping[str, str]
) -> tuple[int, dict[str, Part]]:
    """Return the column that `--parts` means, and the part by its value."""
    named = {name.strip() for text in parts.values() for name, equals, _ in [text.partition("=")] if equals}
    given = {text.partition("=")[2].strip() if "=" in text else text.strip(): part for part, text in parts.items()}
    values: dict[str, Part] = dict(given)  # type: ignore[arg-type]
    if len(values) < len(parts):
        raise ValueError(f"--parts: every part needs a value of its own, got {preview(parts.values())}")
    wanted = {normalize_column(name) for name in named}
    if len(wanted) > 1:
        raise ValueError(f"--parts names several columns: {preview(sorted(wanted))}. Give one")
    columns = [index for index in others if not wanted or header[index] in wanted]
    present = {index: Counter(row[index].strip() for _, row in rows) for index in columns}
    matching = [index for index in columns if values.keys() <= present[index].keys()]
    if len(matching) != 1:
        shown = "; ".join(
            f"{header[index]}: {preview(value for value, _ in present[index].most_common())}" for index in columns
        )
        problem = f"{len(matching)} columns hold" if matching else "no column holds"
        raise ValueError(
            f"{path}: {problem} the values {preview(values)} that --parts names. Columns and their values: "
            f"{shown or 'none besides path and label'}. --parts train=COLUMN=VALUE names the column too"
        )
    return matching[0], values


def _part_columns(
    path: Path, header: Sequence[str], rows: Sequence[Row], others: Sequence[int], named: Sequence[int]
) -> tuple[int | None, tuple[tuple[int, Part], ...], list[str]]:
    """Return the part column, the columns of booleans that give the part, and notes about them."""
    others = [index for index in others if index not in named]
    flags = tuple(
        (index, (FLAG_COLUMNS | PLAIN_FLAG_COLUMNS)[header[index]])
        for index in others
        if header[index] in FLAG_COLUMNS or (header[index] in PLAIN_FLAG_COLUMNS and _holds_booleans(rows, index))
    )
    part = named[0] if named else None
    notes: list[str] = []
    if part is None and not flags:
        by_value = [index for index in others if _holds_part_names(rows, index)]
        if len(by_value) > 1:
            raise ValueError(
                f"{path} has several columns that hold names of parts: {_quoted(header[index] for index in by_value)}. "
                f"Rename the one to use to 'part'"
            )
        if by_value:
            part = by_value[0]
            notes.append(f"{path.name}: the part of each image is read from the column {header[part]!r}.")
    elif part is not None and flags:
        names = _quoted(header[index] for index in (part, *(index for index, _ in flags)))
        raise ValueError(f"{path} gives the part in more than one way: {names}. Remove or rename all but one")
    folds = [header[index] for index in others if header[index] in FOLD_COLUMNS and index != part]
    if part is None and not flags:
        if folds:
            raise ValueError(
                f"{path} has a column {folds[0]!r}, but folds are not used: each image has one part. Add a column "
                f"'part' with train, val or test (for example val for one fold and train for the others), or have the "
                f"parts drawn at random with --parts none"
            )
        if "valid" in (header[index] for index in others if _holds_booleans(rows, index)):
            raise ValueError(
                f"{path} has a column 'valid' with true and false. If these are the images for validation, rename it "
                f"to 'is_valid'; --parts none ignores it"
            )
    if folds:
        notes.append(f"{path.name}: the column {folds[0]!r} is ignored, because another column gives the part.")
    return part, flags, notes


def _holds_booleans(rows: Sequence[Row], index: int) -> bool:
    return bool(rows) and all(row[index].strip().lower() in BOOLEANS for _, row in rows)


def _holds_part_names(rows: Sequence[Row], index: int) -> bool:
    """Return whether all values of a column are names of parts, at least two different ones."""
    parts = {part_named(row[index]) for _, row in rows}
    return None not in parts and "train" in parts and len(parts) > 1


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
