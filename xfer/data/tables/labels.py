"""Labels of a table: missing ones, and those that look like two spellings of one class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from xfer.data.label_names import find_lookalikes, is_missing, normalize_label
from xfer.data.source import preview
from xfer.data.tables.records import Record


def check_labels(path: Path, records: Sequence[Record]) -> tuple[dict[str, str], list[str]]:
    """Return the class name of each label as written, and notes about labels that were merged.

    Raises:
        ValueError: labels are missing, or look like two spellings of one class.
    """
    problems = []
    missing = [record.line for record in records if is_missing(record.label)]
    if missing:
        parts = {record.part for record in records if is_missing(record.label)}
        unlabelled = all(is_missing(record.label) for record in records if record.part in parts)
        hint = f" --parts with the other parts leaves out the {preview(parts)} set." if None not in parts else ""
        problems.append(
            f"{path}: {len(missing)} of {len(records)} rows have no label (empty, nan, None, NA, null): line "
            f"{preview(missing)}. Remove these rows or give them a label; if one of these words is a class, write "
            f"another word, such as no_defect.{hint if unlabelled else ''}"
        )
    labelled = [record for record in records if not is_missing(record.label)]
    label_of = {record.label: normalize_label(record.label) for record in labelled}
    count = Counter(label_of[record.label] for record in labelled)
    first_line: dict[str, int] = {}
    for record in labelled:
        first_line.setdefault(label_of[record.label], record.line)
    if groups := find_lookalikes(count):
        shown = preview(
            " and ".join(f"{name!r} ({count[name]} rows, first in line {first_line[name]})" for name in group)
            for group in groups
        )
        problems.append(
            f"{path}: labels look like spellings of one class: {shown}. Write each class in one way; if they are "
            f"different classes, give them names that differ in more than this"
        )
    if problems:
        raise ValueError("\n".join(problems))
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
