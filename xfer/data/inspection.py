"""Inspect a data set before anything is trained: counts, sizes, skipped files, and copies of the same picture.

Needs no network. Each image is decoded once at a small size; only images that look alike are decoded in full.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from xfer.data.class_balance import find_imbalance
from xfer.data.copies import PART_ORDER, Fingerprint, find_copies, fingerprint, image_name, report_copies
from xfer.data.deep_images import MISSING_VALUES, pixel_mode
from xfer.data.groups import report_groups
from xfer.data.image_formats import IMAGE_FORMATS, UnreadableImageError
from xfer.data.images import ImageFile, LazyImage
from xfer.data.pack import estimate_ranges
from xfer.data.shortcuts import shortcut_warnings
from xfer.data.source import (
    Example,
    SkippedFiles,
    Source,
    check_readable_parts,
    missing_class_notes,
    validate_source,
)
from xfer.data.value_ranges import ValueRanges

DRAWING_SIDE = 64
"""Side in pixels at which drawings are read to see whether they can be."""

CHUNK = 512
"""Number of images that are submitted to the threads at a time."""

NO_PART = "all"
"""Name of the part of images in a data set without parts."""

Progress = Callable[[int, int], None]
"""Called with the number of images that have been read and of all images."""


@dataclass(frozen=True)
class Inspection:
    """What a data set holds, and where each of its files went: seen = used + all skipped."""

    name: str
    classes: list[str]
    parts: dict[str, dict[str, int]]
    """Number of images by part and class. The only part is NO_PART if the data set has none."""
    seen: int
    """Number of files, or of rows for data that are not files."""
    used: int
    skipped: dict[str, int]
    """Number of files by the reason why they are not used."""
    skipped_first: dict[str, list[str]]
    """Names of the first few files by reason."""
    sizes: dict[str, int]
    """Number of images by width x height."""
    modes: dict[str, int]
    """Number of images by Pillow's mode, such as RGB, L (grey) or I;16."""
    exact_copies: int
    """Number of images with the pixels of one in an earlier part (train, val, test), or of an earlier one if the data
    set has no parts."""
    near_copies: int
    """The same for images that show the same picture without equal pixels."""
    copies_across_parts: dict[str, dict[str, int]]
    """Number of images of the later part with an `exact`, and with only a `near`, copy in the earlier one, by pair of
    parts: "train-val", "train-test", "val-test"."""
    copies: list[list[str]]
    """Groups of images with equal pixels."""
    near_groups: list[list[str]]
    """Groups of images that show the same picture, with those of equal pixels among them."""
    conflicts: list[dict[str, Any]]
    """Groups of copies in several classes: their `images`, `classes` and `kind` (exact or near)."""
    warnings: list[str]
    summary: str
    """The balance of the files in one line."""
    groups: dict[str, Any]
    """Number of groups, such as patients: see `GroupReport.as_dict`. Empty without groups."""
    group_line: str
    """The groups in one line; empty without groups."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _View:
    """What is measured of one image."""

    size: str
    mode: str
    format: str
    fingerprint: Fingerprint | None


def inspect_source(source: Source, progress: Progress = lambda done, total: None) -> Inspection:
    """Inspect a data set.

    Args:
        source: the data set.
        progress: called while images are read.

    Raises:
        ValueError: no classifier can be trained on it, because images of a class cannot be read.
    """
    examples, views, skipped = _read_all(source, progress)
    readable = Source(source.name, source.classes, tuple(examples))
    first = skipped[-1].first[0] if len(skipped) > len(source.skipped) else ""
    validate_source(readable, source.name, f"that can be read; the first unreadable one: {first}")
    check_readable_parts(source, examples, first)
    images = [example.image for example in examples]
    copies = find_copies(images, [view.fingerprint for view in views]).with_names(
        lambda index: image_name(examples[index], source.classes)
    )
    labels, parts = [example.label for example in examples], [example.part for example in examples]
    report = report_copies(copies, labels, parts, source.classes)
    groups = report_groups([example.group for example in examples], labels, parts, source.classes, source.group_column)
    return Inspection(
        name=source.name,
        classes=list(source.classes),
        parts=_count_parts(readable),
        seen=len(source.examples) + sum(skip.count for skip in source.skipped),
        used=len(examples),
        skipped={skip.reason: skip.count for skip in skipped},
        skipped_first={skip.reason: list(skip.first) for skip in skipped},
        sizes=dict(Counter(view.size for view in views if view.size).most_common()),
        modes=dict(Counter(view.mode for view in views if view.mode).most_common()),
        exact_copies=report.exact_copies,
        near_copies=report.near_copies,
        copies_across_parts=report.across_parts,
        copies=report.exact_groups,
        near_groups=report.near_groups,
        conflicts=report.conflicts,
        warnings=[
            *dict.fromkeys((*source.notes, *missing_class_notes(readable))),
            *report.warnings,
            *(groups.warnings if groups else ()),
            *_imbalance_warnings(readable),
            *_shortcut_warnings(source.classes, examples, views),
        ],
        summary=summary_line(source, skipped),
        groups=groups.as_dict() if groups else {},
        group_line=groups.line if groups else "",
    )


def summary_line(source: Source, skipped: Sequence[SkippedFiles] | None = None) -> str:
    """Return the balance of a data set's files in one line.

    Args:
        source: the data set.
        skipped: all files that are not used; by default those of the source.
    """
    skipped = source.skipped if skipped is None else skipped
    seen = len(source.examples) + sum(skip.count for skip in source.skipped)
    total = sum(skip.count for skip in skipped)
    reasons = f" ({', '.join(f'{skip.count:,} {skip.reason}' for skip in skipped)})" if skipped else ""
    return f"{source.unit}: {seen:,} seen = {seen - total:,} used + {total:,} skipped{reasons}"


def unreadable(source: Source, names: Sequence[str]) -> tuple[SkippedFiles, ...]:
    """Return the skipped files of a source, with its images that could not be read among them."""
    by_reason: dict[str, list[str]] = {}
    for name in names:
        by_reason.setdefault(MISSING_VALUES if f": {MISSING_VALUES}: " in name else "unreadable", []).append(name)
    return (*source.skipped, *(SkippedFiles(why, len(some), tuple(some[:5])) for why, some in by_reason.items()))


def _read_all(source: Source, progress: Progress) -> tuple[list[Example], list[_View], tuple[SkippedFiles, ...]]:
    """Return the readable examples, their views, and all files that are not used."""
    examples: list[Example] = []
    views: list[_View] = []
    problems: list[str] = []
    ranges = estimate_ranges([example.image for example in source.examples])
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for start in range(0, len(source.examples), CHUNK):
            chunk = source.examples[start : start + CHUNK]
            found = threads.map(lambda example: _view(example.image, ranges), chunk)
            for example, view in zip(chunk, found, strict=True):
                if isinstance(view, str):
                    problems.append(f"{image_name(example, source.classes)}: {view}")
                else:
                    examples.append(example)
                    views.append(view)
            progress(min(start + CHUNK, len(source.examples)), len(source.examples))
    return examples, views, unreadable(source, problems)


def _view(image: LazyImage, ranges: ValueRanges) -> _View | str:
    """Return what is measured of an image, or why it cannot be read."""
    try:
        found = fingerprint(image, ranges)
        if found is None:
            image.read(DRAWING_SIDE, ranges)  # whether it can be read
        size, mode, file_format = "", "", ""
        if isinstance(image, ImageFile):
            with Image.open(image.path, formats=IMAGE_FORMATS) as header:
                size, mode = f"{header.width} x {header.height}", pixel_mode(header)
                file_format = "JPEG" if header.format == "MPO" else header.format or ""
    except UnreadableImageError as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error}"
    return _View(size, mode, file_format, found)


def _count_parts(source: Source) -> dict[str, dict[str, int]]:
    counts = Counter((example.part or NO_PART, example.label) for example in source.examples)
    present = {part for part, _ in counts}
    parts = [part for part in (*PART_ORDER, NO_PART) if part in present]
    return {part: {name: counts[part, label] for label, name in enumerate(source.classes)} for part in parts}


def _imbalance_warnings(source: Source) -> list[str]:
    """Return a warning if some class has far fewer training images than another."""
    counts = Counter(example.label for example in source.examples if example.part in (None, "train"))
    imbalance = find_imbalance([counts[label] for label in range(len(source.classes))], source.classes)
    if imbalance is None:
        return []
    return [
        f"WARNING: classes are imbalanced: {imbalance.line}. A sweep tries every `balance` by default; with "
        f"--objective balanced_accuracy it ranks by the mean over classes."
    ]


def _shortcut_warnings(classes: Sequence[str], examples: Sequence[Example], views: Sequence[_View]) -> list[str]:
    properties = {
        "file format": [view.format for view in views],
        "pixel format": [view.mode for view in views],
        "image size": [view.size for view in views],
    }
    return shortcut_warnings(classes, [example.label for example in examples], properties)
