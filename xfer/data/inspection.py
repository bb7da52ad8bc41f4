"""Inspect a data set before anything is trained: counts, sizes, skipped files, and copies of the same picture.

Needs no network. Each image is decoded once at a small size; only images that look alike are decoded in full.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xfer.data.deep_images import MISSING_VALUES, pixel_mode
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

NEAR_COPY_BITS = 8
"""Maximum number of differing bits, of 64, between the perceptual hashes of near copies. Among 400 photos of
Hymenoptera and 400 of dogs and cats no two differ in fewer than 12; copies cropped by up to 6% of each side and
compressed again differ in 6 in the median."""

MIN_CONTRAST = 2.0
"""Minimum standard deviation of brightness, of 255, below which a picture is too plain for a perceptual hash."""

MAX_PAIRWISE = 30_000
"""Maximum number of images that are compared with each other; beyond it, near copies are those of equal hash."""

THUMBNAIL_SIDE = 64
"""Side in pixels of the images that are hashed."""

CHUNK = 512
"""Number of images that are submitted to the threads, or compared with all others, at a time."""

PART_ORDER = ("train", "val", "test")

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
    """The same for images that look alike without equal pixels."""
    near_copy_bits: int
    """Maximum number of differing bits, of 64, between near copies."""
    copies: list[list[str]]
    """Groups of images with equal pixels."""
    conflicts: list[dict[str, list[str]]]
    """Groups of images with equal pixels in several classes: their `images` and `classes`."""
    warnings: list[str]
    summary: str
    """The balance of the files in one line."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _View:
    """What is measured of one image."""

    size: str
    mode: str
    format: str
    bits: int
    """Perceptual hash of 64 bits."""
    plain: bool
    """Whether the picture has too little contrast for its hash to mean anything."""


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
    groups = _exact_groups(examples, views)
    exact, near = _count_copies(examples, views, groups)
    conflicts = [
        {
            "images": [_image_name(source, examples[index]) for index in group],
            "classes": sorted({source.classes[examples[index].label] for index in group}),
        }
        for group in groups
        if len({examples[index].label for index in group}) > 1
    ]
    given = any(example.part for example in examples)
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
        exact_copies=exact,
        near_copies=near,
        near_copy_bits=NEAR_COPY_BITS,
        copies=[[_image_name(source, examples[index]) for index in group] for group in groups],
        conflicts=conflicts,
        warnings=[
            *dict.fromkeys((*source.notes, *missing_class_notes(readable))),
            *_copy_warnings(exact, near, len(conflicts), given),
            *_shortcut_warnings(source.classes, examples, views),
        ],
        summary=summary_line(source, skipped),
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


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """Return a hash of 64 bits that hardly changes when an image is resized, compressed or slightly cropped.

    The signs of the lowest 8 x 8 frequencies of a cosine transform, relative to their median (pHash, Zauner 2010).

    Args:
        pixels: [64, 64, 3].
    """
    grey = _grey(pixels).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    frequencies = (_COSINES @ grey @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies[1:])).tobytes(), "big")


_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    grey: NDArray[np.float64] = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return grey


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
                    problems.append(f"{_image_name(source, example)}: {view}")
                else:
                    examples.append(example)
                    views.append(view)
            progress(min(start + CHUNK, len(source.examples)), len(source.examples))
    return examples, views, unreadable(source, problems)


def _view(image: LazyImage, ranges: ValueRanges) -> _View | str:
    """Return what is measured of an image, or why it cannot be read."""
    try:
        pixels = image.read(THUMBNAIL_SIDE, ranges)
        size, mode, file_format = "", "", ""
        if isinstance(image, ImageFile):
            with Image.open(image.path, formats=IMAGE_FORMATS) as header:
                size, mode = f"{header.width} x {header.height}", pixel_mode(header)
                file_format = "JPEG" if header.format == "MPO" else header.format or ""
    except UnreadableImageError as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error}"
    return _View(size, mode, file_format, perceptual_hash(pixels), plain=bool(_grey(pixels).std() < MIN_CONTRAST))


def _exact_groups(examples: Sequence[Example], views: Sequence[_View]) -> list[list[int]]:
    """Return groups of images with equal pixels. Only images that look alike are decoded in full."""
    alike = _has_near(examples, views, lambda rows, columns: rows[:, None] != columns[None, :])
    suspects = [index for index, view in enumerate(views) if view.plain or alike[index]]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        digests = threads.map(lambda index: _pixel_digest(examples[index].image) or str(index), suspects)
        groups: dict[str, list[int]] = defaultdict(list)
        for index, digest in zip(suspects, digests, strict=True):
            groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _pixel_digest(image: LazyImage) -> str:
    """Return a hash of the decoded pixels; of those at 256 px for images that are not in files of their own.

    Empty for an image that can be decoded at a small size only.
    """
    try:
        if not isinstance(image, ImageFile):
            return hashlib.sha256(image.read(256).tobytes()).hexdigest()
        with Image.open(image.path, formats=IMAGE_FORMATS) as opened:
            upright = ImageOps.exif_transpose(opened)
            # A palette or grey channel may hold the same picture as RGB. Deep and transparent images stay as they are.
            plain = upright.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and "transparency" not in upright.info
            pixels = upright.convert("RGB") if plain else upright
            return hashlib.sha256(f"{pixels.mode} {pixels.size}".encode() + pixels.tobytes()).hexdigest()
    except Exception:  # Pillow's decoders raise many types of errors
        return ""


def _count_copies(
    examples: Sequence[Example], views: Sequence[_View], groups: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """Return the number of exact and of other near copies; see `Inspection.exact_copies`."""
    order = _copy_order(examples)
    exact = {index for group in groups for index in group if order[index] > min(order[other] for other in group)}
    near = _has_near(examples, views, lambda rows, columns: order[rows][:, None] > order[columns][None, :])
    return len(exact), int(near.sum()) - sum(1 for index in exact if near[index])


def _copy_order(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Return numbers such that an image counts as a copy of those with a lower number."""
    if any(example.part for example in examples):
        return np.array([PART_ORDER.index(example.part or "train") for example in examples])
    return np.arange(len(examples))


def _has_near(
    examples: Sequence[Example],
    views: Sequence[_View],
    eligible: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]],
) -> NDArray[np.bool_]:
    """Return for each image whether it has a near copy among the eligible images.

    Args:
        examples: N images.
        views: what was measured of each.
        eligible: from indices of rows and columns to whether each column is eligible for each row.
    """
    result = np.zeros(len(examples), dtype=bool)
    indices = np.array([index for index, view in enumerate(views) if not view.plain], dtype=np.int64)
    bits = np.array([views[index].bits for index in indices], dtype=np.uint64)
    if len(indices) > MAX_PAIRWISE:
        _, inverse = np.unique(bits, return_inverse=True)
        members: dict[int, list[int]] = defaultdict(list)
        for index, group in zip(indices.tolist(), inverse.tolist(), strict=True):
            members[group].append(index)
        for equal in members.values():
            if len(equal) > 1:
                columns = np.array(equal)
                result[columns] = eligible(columns, columns).any(axis=1)
        return result
    for start in range(0, len(indices), CHUNK):
        rows = indices[start : start + CHUNK]
        distance = np.bitwise_count(bits[start : start + CHUNK][:, None] ^ bits[None, :])
        result[rows] = ((distance <= NEAR_COPY_BITS) & eligible(rows, indices)).any(axis=1)
    return result


def _count_parts(source: Source) -> dict[str, dict[str, int]]:
    counts = Counter((example.part or NO_PART, example.label) for example in source.examples)
    present = {part for part, _ in counts}
    parts = [part for part in (*PART_ORDER, NO_PART) if part in present]
    return {part: {name: counts[part, label] for label, name in enumerate(source.classes)} for part in parts}


def _image_name(source: Source, example: Example) -> str:
    return "/".join(filter(None, (example.part, source.classes[example.label], example.image.name)))


def _copy_warnings(exact: int, near: int, conflicts: int, given: bool) -> list[str]:
    scope = "images of one part stand in an earlier part (train, val, test) too" if given else "images are repeated"
    warnings = []
    if exact:
        warnings.append(f"WARNING: {exact:,} {scope}, with identical pixels.")
    if near:
        warnings.append(f"WARNING: {near:,} {scope}, as near copies (at most {NEAR_COPY_BITS} of 64 hash bits differ).")
    if conflicts:
        warnings.append(f"WARNING: {conflicts:,} pictures are filed under several classes.")
    return warnings


def _shortcut_warnings(classes: Sequence[str], examples: Sequence[Example], views: Sequence[_View]) -> list[str]:
    properties = {
        "file format": [view.format for view in views],
        "pixel format": [view.mode for view in views],
        "image size": [view.size for view in views],
    }
    return shortcut_warnings(classes, [example.label for example in examples], properties)
