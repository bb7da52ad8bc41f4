"""Pack: all images of a data set as uint8 on disk, decoded once, named by content, shared by all trials of a node."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xfer import hashing
from xfer.data.copies import (
    COPIES_FILE,
    NO_COPIES,
    Copies,
    Fingerprint,
    find_copies,
    fingerprint,
    image_name,
    join_groups,
    read_copies,
    write_copies,
)
from xfer.data.deep_images import sample_values
from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import LazyImage
from xfer.data.pixel_rules import needs_pixel_rules
from xfer.data.source import Example, Source, check_readable_parts
from xfer.data.value_ranges import NO_RANGES, ValueKind, ValueRanges, estimate_range, ranges_from_json
from xfer.records import Part
from xfer.storage import checked_json, local_cache, object_store
from xfer.storage.atomic import atomic_folder
from xfer.text_output import escape_undecoded

Item = TypeVar("Item")
Result = TypeVar("Result")

FORMAT_VERSION = 2
"""Version of the decoder, part of every pack's hash. Raise it when the same files decode to other pixels."""

PIXEL_RULES_VERSION = 1
"""Version of the rules for more than 8 bits and for transparency, part of the hash of packs with such images only."""

MAX_SAMPLED_IMAGES = 2_000
"""Maximum number of images from which the value ranges of a data set are estimated."""

METADATA_FILE = "pack.json"
"""File that is written last: a folder that has it is a complete pack."""

MAX_METADATA_BYTES = 2**32
"""Maximum size of `METADATA_FILE`; an image takes about 100 bytes of it."""

DECODE_CHUNK = 1024
"""Number of images submitted to the threads at a time, so that a million drawings do not become a million tasks."""

Progress = Callable[[int, int], None]
"""Called with the number of decoded images and of all images."""


@dataclass(frozen=True, eq=False)
class Pack:
    """N labelled images of one size, ordered by their content."""

    folder: Path
    hash: str
    """Content hash of images, labels, parts, groups, class names and size. File and folder names do not change it."""
    classes: tuple[str, ...]
    image_size: int
    images: NDArray[np.uint8]
    """[N, image_size, image_size, 3], memory-mapped: all processes share one copy in memory."""
    labels: NDArray[np.int64]
    """[N], indices into `classes`."""
    parts: tuple[Part | None, ...]
    """Part of each image as the data set gives it; None if it gives none."""
    digests: tuple[str, ...]
    """Content hash of each image: equal for copies."""
    skipped: tuple[str, ...]
    """Images that could not be read, each with the reason."""
    value_ranges: ValueRanges = field(default_factory=dict)
    """Ranges of values that became 0..255, if images have more than 8 bits per channel; for `read_image`."""
    copies: Copies = NO_COPIES
    """Groups of exact and near copies. Without groups in a pack of an earlier version, which did not look for them."""

    groups: tuple[str | None, ...] = ()
    """Name of each image's group, such as a patient; None if it has none of its own. Empty without groups."""
    group_column: str = ""
    """What the groups are: the name of the table's column."""

    @cached_property
    def split_groups(self) -> NDArray[np.int64]:
        """[N], number of each image's set of images that no two drawn parts share: copies and images of one group."""
        numbers = self.copy_groups
        if not self.groups:
            return numbers
        together: dict[str | int, list[int]] = defaultdict(list)
        for index, (group, copies) in enumerate(zip(self.groups, numbers.tolist(), strict=True)):
            together[copies].append(index)
            if group is not None:
                together[group].append(index)
        joined = np.arange(len(numbers))
        for indices in join_groups(len(numbers), together.values()):
            joined[list(indices)] = indices[0]
        return joined

    @cached_property
    def copy_groups(self) -> NDArray[np.int64]:
        """[N], number of each image's group of exact and near copies; most groups are single images."""
        _, numbers = np.unique(np.array(self.digests), return_inverse=True)
        return self.copies.merge_groups(numbers)


def build_pack(source: Source, image_size: int, root: Path, progress: Progress = lambda done, total: None) -> Pack:
    """Return the pack of a source, decoding it unless `root` has it already.

    Images that cannot be read are skipped and listed in `Pack.skipped`; all runs on the same data skip the same images.
    Copies are looked for once, and stored next to the images in a file that does not change the hash.

    Args:
        source: the data set.
        image_size: side of the images in the pack, in pixels.
        root: the folder of all packs, each in a folder named by its hash. Packs in an object store are shared: an
            existing one is downloaded, a new one uploaded.
        progress: called after each decoded image.

    Raises:
        ValueError: no image can be read, or no training image of some class.
    """
    threads = ThreadPoolExecutor(max_workers=os.cpu_count())
    with threads:
        digests = _map_chunks(threads, lambda example: example.image.digest(), source.examples)
        # Ordered by content, so that renaming a file changes neither the hash nor any split.
        ordered = sorted(zip(source.examples, digests, strict=True), key=_content_key)
        # Without groups, the hash is that of versions that had none.
        grouped = any(example.group is not None for example in source.examples)
        content = [
            [example.part, example.label, digest, *([example.group] if grouped else [])] for example, digest in ordered
        ]
        special = any(_map_chunks(threads, lambda example: needs_pixel_rules(example.image.encoded()), source.examples))
        rules = [PIXEL_RULES_VERSION] if special else []
        name = hashing.sha256_json([FORMAT_VERSION, image_size, list(source.classes), content, *rules])
        fingerprints: list[Fingerprint | None] = []
        remote = root / name[:16]
        folder = local_cache.local_path(remote)
        if object_store.is_remote(remote) and object_store.exists(remote / METADATA_FILE):
            folder = _fetch(remote)
        elif not (folder / METADATA_FILE).exists():
            try:
                with atomic_folder(folder) as temporary:
                    # By class and then by hash, so a regular sample is a stratified random one.
                    ranges = estimate_ranges([example.image for example, _ in ordered]) if special else NO_RANGES
                    fingerprints = _decode(temporary, name, source, ordered, image_size, ranges, threads, progress)
            except OSError:
                if not (folder / METADATA_FILE).exists():  # otherwise another process has built the same pack first
                    raise
        local_cache.publish(folder, remote, METADATA_FILE)
        return _with_copies(load_pack(folder), remote, ordered, fingerprints, threads)


def fetch_pack(folder: Path) -> Pack:
    """Load a pack from a folder that may be remote: downloaded and verified once per machine."""
    return load_pack(_fetch(folder))


def load_pack(folder: Path, verify: bool = False) -> Pack:
    """Load a pack from its local folder.

    Args:
        folder: the folder (`Pack.folder`).
        verify: hash the pixels and compare, too; takes seconds for a large pack, so do it once per sweep.

    Raises:
        ValueError: metadata or, with `verify`, pixels are not those that were written.
    """
    try:
        metadata = checked_json.read(folder / METADATA_FILE, MAX_METADATA_BYTES)
        if verify and hashing.sha256_file(folder / "images.npy") != metadata["images_sha256"]:
            raise ValueError("the pixels are not what was written")
        pack = Pack(
            folder=folder,
            hash=metadata["hash"],
            classes=tuple(metadata["classes"]),
            image_size=metadata["image_size"],
            images=np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False),
            labels=np.array(metadata["labels"], dtype=np.int64),
            parts=tuple(metadata["parts"]),
            digests=tuple(metadata["digests"]),
            skipped=tuple(metadata["skipped"]),
            value_ranges=ranges_from_json(metadata.get("value_ranges", {})),
            groups=tuple(metadata.get("groups", ())),
            group_column=metadata.get("group_column", ""),
        )
        if pack.images.shape != (len(pack.labels), pack.image_size, pack.image_size, 3):
            raise ValueError(f"it has {list(pack.images.shape)} pixels for {len(pack.labels)} labels")
    except (ValueError, LookupError, TypeError, EOFError, FileNotFoundError) as error:
        if not (folder / METADATA_FILE).exists():
            raise
        raise ValueError(
            f"the pack {folder} is damaged ({error}): remove that folder, and it is built again"
        ) from error
    return replace(pack, copies=read_copies(folder / COPIES_FILE, pack.hash))


def check_same_images(pack: Pack, other: Pack) -> None:
    """Raise a ValueError if two packs differ in more than the size of their images.

    Packs of the same images have the same split.
    """
    if any(getattr(pack, name) != getattr(other, name) for name in ("classes", "digests", "parts", "groups")) or (
        pack.labels.tolist() != other.labels.tolist()
    ):
        raise ValueError(
            f"the packs of {pack.image_size} px and {other.image_size} px must hold the same images, classes and "
            f"parts, but they hold {len(pack.digests):,} and {len(other.digests):,} images that differ: build both "
            f"from the same data"
        )


def _fetch(folder: Path) -> Path:
    """Return the local copy of a pack, downloaded and verified once per machine."""
    local = local_cache.fetch_cached(folder, METADATA_FILE, _verify)
    if not (local / COPIES_FILE).exists() and object_store.exists(folder / COPIES_FILE):
        local_cache.fetch_file(folder / COPIES_FILE)  # it was added after the pack had been downloaded
    return local


def _verify(folder: Path) -> None:
    load_pack(folder, verify=True)


def _content_key(item: tuple[Example, str]) -> tuple[str, int, str, str]:
    example, digest = item
    return (example.part or "", example.label, digest, example.group or "")


def estimate_ranges(images: Sequence[LazyImage]) -> ValueRanges:
    """Return the value range of each kind of image with more than 8 bits per channel, from `MAX_SAMPLED_IMAGES` images.

    Args:
        images: of all parts and classes, ordered by class: a regular sample of them is used.
    """
    sampled = images[:: max(1, -(-len(images) // MAX_SAMPLED_IMAGES))]
    samples: dict[ValueKind, list[NDArray[Any]]] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for sample in _map_chunks(threads, lambda image: sample_values(image.encoded()), sampled):
            if sample is not None:
                samples.setdefault(sample[0], []).append(sample[1])
    return {kind: estimate_range(samples[kind], kind) for kind in sorted(samples)}


def _decode(
    folder: Path,
    name: str,
    source: Source,
    ordered: list[tuple[Example, str]],
    size: int,
    ranges: ValueRanges,
    threads: ThreadPoolExecutor,
    progress: Progress,
) -> list[Fingerprint | None]:
    """Decode all images of a source, write a pack to `folder`, and return the fingerprints of the readable images."""
    fingerprints: list[Fingerprint | None] = [None] * len(ordered)
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(ordered), size, size, 3)
    )
    if (free := shutil.disk_usage(folder).free) < images.nbytes:  # writing to the mapped file would kill the process
        raise ValueError(
            f"{len(ordered):,} images of {size} px take {images.nbytes / 2**20:,.1f} MB in {folder.parent}, and its "
            f"disk has {free / 2**20:,.1f} MB left. Free some space, or choose a smaller image size"
        )

    def decode(item: tuple[int, Example]) -> str | None:
        index, example = item
        try:
            images[index] = example.image.read(size, ranges)
            fingerprints[index] = fingerprint(example.image, ranges)
        except UnreadableImageError as error:
            return escape_undecoded(f"{source.classes[example.label]}/{example.image.name}: {error}")
        return None

    problems: list[str | None] = []
    for problem in _map_chunks(threads, decode, [*enumerate(example for example, _ in ordered)]):
        problems.append(problem)
        progress(len(problems), len(ordered))
    readable = [index for index, problem in enumerate(problems) if problem is None]
    _check_readable(source, [ordered[index][0] for index in readable], problems)
    if len(readable) < len(ordered):
        _copy_rows(images, readable, folder / "readable.npy")
        (folder / "readable.npy").replace(folder / "images.npy")
    else:
        images.flush()
    metadata = {
        "hash": name,
        "classes": source.classes,
        "image_size": size,
        "labels": [ordered[index][0].label for index in readable],
        "parts": [ordered[index][0].part for index in readable],
        "digests": [ordered[index][1] for index in readable],
        "skipped": [problem for problem in problems if problem],
        "images_sha256": hashing.sha256_file(folder / "images.npy"),
        **({"value_ranges": ranges} if ranges else {}),
        **_group_metadata(source, [ordered[index][0] for index in readable]),
    }
    (folder / METADATA_FILE).write_bytes(checked_json.encode(metadata))
    return [fingerprints[index] for index in readable]


def _group_metadata(source: Source, examples: Sequence[Example]) -> dict[str, Any]:
    if all(example.group is None for example in source.examples):
        return {}
    return {"groups": [example.group for example in examples], "group_column": source.group_column}


def _with_copies(
    pack: Pack,
    remote: Path,
    ordered: Sequence[tuple[Example, str]],
    fingerprints: Sequence[Fingerprint | None],
    threads: ThreadPoolExecutor,
) -> Pack:
    """Return a pack with its copies. They are looked for unless they are stored, and stored with their current names.

    Args:
        pack: the loaded pack.
        remote: its folder in the storage.
        ordered: examples and their content hashes in the order of the pack, with those that cannot be read.
        fingerprints: of the readable images; empty for a pack that was built earlier.
        threads: for reading images.
    """
    known = set(pack.digests)
    examples = [example for example, digest in ordered if digest in known]
    images = [example.image for example in examples]
    copies = pack.copies
    if not (pack.folder / COPIES_FILE).exists():
        found = fingerprints or [*_map_chunks(threads, lambda image: fingerprint(image, pack.value_ranges), images)]
        copies = find_copies(images, found)
    copies = copies.with_names(lambda index: escape_undecoded(image_name(examples[index], pack.classes)))
    if copies != pack.copies or not (pack.folder / COPIES_FILE).exists():
        write_copies(pack.folder / COPIES_FILE, copies, pack.hash)
        local_cache.upload_if_exists(pack.folder / COPIES_FILE, remote / COPIES_FILE)
    return replace(pack, copies=copies)


def _map_chunks(
    threads: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[Result]:
    for start in range(0, len(items), DECODE_CHUNK):
        yield from threads.map(function, items[start : start + DECODE_CHUNK])


def _copy_rows(images: NDArray[np.uint8], indices: list[int], path: Path) -> None:
    """Write some images to a file without holding them all in memory."""
    copy = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(indices), *images.shape[1:]))
    for row, index in enumerate(indices):
        copy[row] = images[index]
    copy.flush()


def _check_readable(source: Source, readable: list[Example], problems: Iterable[str | None]) -> None:
    first = next((problem for problem in problems if problem), "")
    if not readable:
        raise ValueError(f"none of the {len(source.examples)} images of {source.name} can be read; the first: {first}")
    trained = {example.label for example in readable if example.part in (None, "train")}
    for label, name in enumerate(source.classes):
        if label not in trained:
            raise ValueError(f"no training image of class {name!r} can be read; the first unreadable image: {first}")
    check_readable_parts(source, readable, first)
