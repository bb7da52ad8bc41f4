"""Copies: images of a data set that show the same picture, as files, as pixels, or cropped, compressed, mirrored, ...

Found once per data set. A drawn part holds a group of copies as a whole or not at all (see `xfer.data.split`). Copies
across given parts, and copies under several classes, are reported.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xfer.data import near_copies
from xfer.data.image_formats import IMAGE_FORMATS, EncodedImage
from xfer.data.images import LazyImage
from xfer.data.source import Example, preview
from xfer.data.value_ranges import NO_RANGES, ValueRanges
from xfer.records import Part
from xfer.storage import checked_json
from xfer.storage.atomic import atomic_write

COPIES_FILE = "copies.json"
"""File next to the images of a pack."""

MAX_FILE_BYTES = 2**30
"""Maximum size of `COPIES_FILE`; a larger file is foreign."""

PART_ORDER: tuple[Part, ...] = ("train", "val", "test")

MIN_SIDE = 32
"""Minimum width and height in pixels of images among which near copies are looked for. Smaller ones, such as scans of
digits, hold too little to tell a copy from another picture of the same kind."""

MIN_EXACT_COSINE = 0.98
"""Minimum cosine between the descriptors of images that may have equal pixels; a JPEG is decoded at a smaller size than
the same pixels in a PNG, so that the descriptors differ slightly."""

MAX_COMPARED = 100_000
"""Maximum number of images among which near copies are looked for: the time is quadratic. Beyond it, every image is
decoded in full to find exact copies."""

CHUNK = 512
"""Number of images that are submitted to the threads at a time."""

Group = tuple[int, ...]
"""Indices of images that are copies of each other, ascending."""


@dataclass(frozen=True)
class Copies:
    """Groups of at least two images that are copies of each other. No image is in two groups of one kind."""

    exact: tuple[Group, ...] = ()
    """Images with equal decoded pixels."""
    alike: tuple[Group, ...] = ()
    """Images that are exact or near copies: each group of `exact` lies within one of them."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Names of the images in groups, by index."""
    remark: str = ""
    """Why near copies were not looked for or not used, a sentence; empty if they were."""

    def merge_groups(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return group numbers of all images.

        Args:
            numbers: [N], a number for each image, equal for identical files.
        """
        merged = np.arange(numbers.max(initial=-1) + 1)
        for group in self.alike:
            members = numbers[list(group)]
            merged[members] = members.min()
        return merged[numbers]

    def with_names(self, name: Callable[[int], str]) -> Copies:
        """Return the same groups with names of their images."""
        return replace(self, names={index: name(index) for group in self.alike for index in group})


NO_COPIES = Copies()


@dataclass(frozen=True)
class CopyReport:
    """What readers have to know about the copies in a data set."""

    exact_copies: int
    """Number of images with the pixels of one in an earlier part (train, val, test), or of an earlier one if the data
    set has no parts."""
    near_copies: int
    """The same for images that show the same picture without equal pixels."""
    across_parts: dict[str, dict[str, int]]
    """Number of images of the later part with an `exact`, and with only a `near`, copy in the earlier one, by pair of
    given parts: "train-val", "train-test", "val-test"."""
    exact_groups: list[list[str]]
    """Names of images with equal pixels."""
    near_groups: list[list[str]]
    """Names of images that show the same picture; only groups that are not among the exact ones."""
    conflicts: list[dict[str, Any]]
    """Copies under several classes: names of the `images`, their `classes`, and the `kind`: exact or near."""
    warnings: list[str]
    """Sentences on copies across given parts or that are drawn together, and on conflicts."""

    @property
    def line(self) -> str:
        """The counts in one line."""
        return f"copies: {self.exact_copies:,} exact, {self.near_copies:,} near"


def report_copies(
    copies: Copies, labels: Sequence[int], parts: Sequence[Part | None], classes: Sequence[str]
) -> CopyReport:
    """Count copies, and list those that lie across given parts or under several classes.

    Args:
        copies: the copies of N images, with names.
        labels: [N], indices into the classes.
        parts: [N], as the data set gives them.
        classes: names of the classes.
    """
    copies = _in_order_of_names(copies, parts)
    given = [part for part in PART_ORDER if part in parts]
    order = [PART_ORDER.index(part or "train") for part in parts] if given else range(len(parts))
    exact = _repeated(copies.exact, order)
    near = _repeated(copies.alike, order) - exact
    exact_groups = set(copies.exact)
    conflicts = _list_conflicts(copies, labels, classes)
    across: dict[str, dict[str, int]] = {}
    warnings = [] if given else _notes_on_drawn_parts(copies, labels, classes)
    for earlier, later in combinations(given, 2):
        leaks = _find_leaks(copies, parts, earlier, later)
        if any(leaks.values()):
            across[f"{earlier}-{later}"] = {kind: len(leaked) for kind, leaked in leaks.items()}
            warnings += _leak_warnings(copies, leaks, earlier, later, parts.count(later))
    if conflicts:
        shown = preview([" = ".join(conflict["images"][:3]) for conflict in conflicts])
        warnings.append(
            f"WARNING: {_count(len(conflicts), 'picture is', 'pictures are')} filed under several classes: {shown}. "
            f"Keep each in its right class, or leave it out."
        )
    return CopyReport(
        exact_copies=len(exact),
        near_copies=len(near),
        across_parts=across,
        exact_groups=_named(copies, copies.exact),
        near_groups=_named(copies, [group for group in copies.alike if group not in exact_groups]),
        conflicts=conflicts,
        warnings=[*warnings, *filter(None, [copies.remark])],
    )


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What is measured of an image to find its copies."""

    thumbnail: NDArray[np.float16]
    """Brightness, [32, 32]."""
    comparable: bool
    """Whether it is large enough and has enough contrast to look for near copies."""


def fingerprint(image: LazyImage, ranges: ValueRanges = NO_RANGES) -> Fingerprint | None:
    """Return the fingerprint of an image; None for drawings, whose only copies are equal ones.

    Args:
        image: the image.
        ranges: value ranges of the data set; see `xfer.data.images.to_rgb`.

    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    encoded = image.encoded()
    if encoded is None:
        return None
    thumbnail = near_copies.make_thumbnail(image.read(2 * near_copies.SIDE, ranges))
    with _open(encoded) as opened:
        large = min(opened.size) >= MIN_SIDE
    return Fingerprint(thumbnail, large and near_copies.has_detail(thumbnail))


def find_copies(images: Sequence[LazyImage], fingerprints: Sequence[Fingerprint | None]) -> Copies:
    """Find exact and near copies among the images of a data set.

    Only images that look alike, and those that are too small or plain for near copies, are decoded in full.

    Args:
        images: N images.
        fingerprints: of each.
    """
    # Sorted, so that the result does not depend on the order of the images.
    comparable = sorted(
        (found.thumbnail.tobytes(), index) for index, found in enumerate(fingerprints) if found and found.comparable
    )
    indices = np.array([index for _, index in comparable[:MAX_COMPARED]], dtype=np.int64)
    remark = ""
    if len(comparable) > MAX_COMPARED:
        indices = indices[:0]
        remark = f"Near copies are not looked for among more than {MAX_COMPARED:,} images, only exact ones."
    thumbnails = np.array([found.thumbnail for index in indices if (found := fingerprints[index])], dtype=np.float16)
    thumbnails = thumbnails.reshape(-1, near_copies.SIDE, near_copies.SIDE)
    candidates = near_copies.find_candidates(thumbnails)
    alike = (candidates.turn == 0) & (candidates.score >= MIN_EXACT_COSINE)
    suspects = {*range(len(images))} - {*indices.tolist()}
    suspects.update(*(indices[pair[alike]].tolist() for pair in (candidates.first, candidates.second)))
    exact = _exact_groups(images, sorted(suspects))
    groups = np.arange(len(images))
    for group in exact:
        groups[list(group)] = group[0]
    first, second = indices[candidates.first], indices[candidates.second]
    pairs = near_copies.find_near_copies(thumbnails, candidates.select(groups[first] != groups[second]))
    if pairs is None:
        links = []
        remark = "Near copies are not counted: the images are so much alike that copies cannot be told from others."
    else:
        links = [*zip(indices[pairs.first].tolist(), indices[pairs.second].tolist(), strict=True)]
    return Copies(exact, join_groups(len(images), [*exact, *links]), remark=remark)


def join_groups(count: int, links: Iterable[Sequence[int]]) -> tuple[Group, ...]:
    """Return the connected groups of linked images, each ascending, in ascending order.

    Args:
        count: number of images.
        links: sets of images that belong together.

    >>> join_groups(6, [(4, 1), (2, 5), (1, 5)])
    ((1, 2, 4, 5),)
    """
    parent = [*range(count)]

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for link in links:
        for index in link:
            low, high = sorted((root(link[0]), root(index)))
            parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        if (top := root(index)) != index:
            groups[top].append(index)
    return tuple((top, *members) for top, members in sorted(groups.items()))


def read_copies(file: Path, pack_hash: str) -> Copies:
    """Read the copies of a pack; none if the file does not exist, because an earlier version built the pack.

    Raises:
        ValueError: the file is damaged, or belongs to another pack.
    """
    if not file.exists():
        return NO_COPIES
    try:
        content = checked_json.read(file, MAX_FILE_BYTES)
        if content["pack"] != pack_hash:
            raise ValueError("it belongs to another pack")
        exact, alike = (tuple(map(tuple, content[kind])) for kind in ("exact", "alike"))
        names = {int(index): name for index, name in content["names"].items()}
        return Copies(exact, alike, names, content["remark"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and copies are looked for again") from error


def write_copies(file: Path, copies: Copies, pack_hash: str) -> None:
    """Write the copies of a pack."""
    content = {
        "pack": pack_hash,
        "exact": copies.exact,
        "alike": copies.alike,
        "names": {str(index): name for index, name in copies.names.items()},
        "remark": copies.remark,
    }
    atomic_write(file, checked_json.encode(content))


def _exact_groups(images: Sequence[LazyImage], suspects: Sequence[int]) -> tuple[Group, ...]:
    """Return the groups with equal pixels among some images."""
    groups: dict[str, list[int]] = defaultdict(list)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for start in range(0, len(suspects), CHUNK):
            chunk = suspects[start : start + CHUNK]
            for index, digest in zip(
                chunk, threads.map(lambda index: _pixel_digest(images[index]), chunk), strict=True
            ):
                groups[digest].append(index)
    return tuple(sorted(tuple(group) for group in groups.values() if len(group) > 1))


def _pixel_digest(image: LazyImage) -> str:
    """Return a hash of the decoded pixels; of the content for an image that Pillow does not decode."""
    encoded = image.encoded()
    if encoded is not None:
        try:
            with _open(encoded) as opened:
                upright = ImageOps.exif_transpose(opened)
                # A palette or grey channel may hold the same picture as RGB. Deep and transparent images stay.
                plain = upright.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and "transparency" not in upright.info
                pixels = upright.convert("RGB") if plain else upright
                return hashlib.sha256(f"{pixels.mode} {pixels.size}".encode() + pixels.tobytes()).hexdigest()
        except Exception:  # Pillow's decoders raise many types of errors
            pass
    return image.digest()


def _open(encoded: EncodedImage) -> Any:
    """Open an encoded image as a context; an image that is decoded already stays open."""
    if isinstance(encoded, Image.Image):
        return nullcontext(encoded)
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=IMAGE_FORMATS)


def image_name(example: Example, classes: Sequence[str]) -> str:
    """Return the name of an image with its part and class, as in train/ants/1.jpg."""
    return "/".join(filter(None, (example.part, classes[example.label], example.image.name)))


def _in_order_of_names(copies: Copies, parts: Sequence[Part | None]) -> Copies:
    """Sort groups by part and name, so that reports do not depend on the order of the images."""

    def key(index: int) -> tuple[int, str, int]:
        return PART_ORDER.index(parts[index] or "train"), copies.names[index], index

    exact, alike = (
        tuple(sorted((tuple(sorted(group, key=key)) for group in groups), key=lambda group: key(group[0])))
        for groups in (copies.exact, copies.alike)
    )
    return replace(copies, exact=exact, alike=alike)


def _repeated(groups: Iterable[Group], order: Sequence[int]) -> set[int]:
    """Return the images with a copy that comes earlier in an order."""
    return {index for group in groups for index in group if order[index] > min(order[other] for other in group)}


def _find_leaks(copies: Copies, parts: Sequence[Part | None], earlier: Part, later: Part) -> dict[str, dict[int, int]]:
    """Return the images of the later part with a copy in the earlier one, each with its first copy, by kind of copy."""
    exact, alike = (
        {
            index: next(other for other in group if parts[other] == earlier)
            for group in groups
            if any(parts[other] == earlier for other in group)
            for index in group
            if parts[index] == later
        }
        for groups in (copies.exact, copies.alike)
    )
    return {"exact": exact, "near": {index: first for index, first in alike.items() if index not in exact}}


def _leak_warnings(
    copies: Copies, leaks: Mapping[str, Mapping[int, int]], earlier: Part, later: Part, total: int
) -> list[str]:
    how = {"exact": "with identical pixels", "near": "resized, cropped, compressed or otherwise changed"}
    return [
        f"WARNING: {len(leaked):,} of {total:,} {later} images are copies of {earlier} images, {how[kind]}: "
        f"{preview([f'{copies.names[index]} = {copies.names[first]}' for index, first in leaked.items()])}. "
        f"Accuracy on them says little about new images: remove them from one of the parts."
        for kind, leaked in leaks.items()
        if leaked
    ]


def _notes_on_drawn_parts(copies: Copies, labels: Sequence[int], classes: Sequence[str]) -> list[str]:
    if not copies.alike:
        return []
    images, largest = sum(map(len, copies.alike)), max(copies.alike, key=len)
    notes = [
        f"{images:,} images are exact or near copies of others, in {_count(len(copies.alike), 'group', 'groups')} of "
        f"up to {len(largest):,}: each group stays in one part. The largest: "
        f"{preview(copies.names[index] for index in largest)}."
    ]
    counts = np.bincount(np.asarray(labels), minlength=len(classes))
    for group in copies.alike:
        for label in sorted({labels[index] for index in group}):
            if sum(labels[index] == label for index in group) == counts[label]:
                notes.append(
                    f"WARNING: all {counts[label]:,} images of class {classes[label]} are copies of one picture, so "
                    f"the class is in the training part only. Add other images of it."
                )
    return notes


def _list_conflicts(copies: Copies, labels: Sequence[int], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the groups with several classes; a group of near copies only if its exact copies do not show them all."""

    def conflict(kind: str, group: Group) -> dict[str, Any]:
        names = sorted({classes[labels[index]] for index in group})
        return {"images": [copies.names[index] for index in group], "classes": names, "kind": kind}

    exact = [group for group in copies.exact if len({labels[index] for index in group}) > 1]
    explained = {index: {labels[other] for other in group} for group in exact for index in group}
    near = [
        group
        for group in copies.alike
        if len(found := {labels[index] for index in group}) > 1
        and not any(explained.get(index) == found for index in group)
    ]
    return [*(conflict("exact", group) for group in exact), *(conflict("near", group) for group in near)]


def _named(copies: Copies, groups: Iterable[Group]) -> list[list[str]]:
    return [[copies.names[index] for index in group] for group in groups]


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"
