"""Pack: a data set decoded once into uint8 on disk, named by its content, shared by every trial of a node."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from xfer import hashing
from xfer.data.images import UnreadableImageError
from xfer.data.source import Example, Source
from xfer.records import Part
from xfer.storage import local_cache, object_store

Item = TypeVar("Item")
Result = TypeVar("Result")

FORMAT_VERSION = 2
"""Part of every pack's hash: raised when the same files would be decoded to other pixels."""

METADATA_FILE = "pack.json"
"""The file that is written last: where it is, the pack is whole."""

DECODE_CHUNK = 1024
"""How many images are on their way at a time: a million drawings must not become a million waiting tasks."""

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True, eq=False)
class Pack:
    """Labelled images of one size, ready to be trained on. N images, in an order that follows from their content."""

    folder: Path
    hash: str
    """Content hash of images, labels, parts, class names and size. Names of files and folders do not enter it."""
    classes: tuple[str, ...]
    image_size: int
    images: NDArray[np.uint8]
    """[N, image_size, image_size, 3], memory-mapped: one copy in memory however many processes read it."""
    labels: NDArray[np.int64]
    """[N], index into `classes`."""
    parts: tuple[Part | None, ...]
    """The part each image was given for; None where that was left to us."""
    digests: tuple[str, ...]
    """The content hash of each image: equal for copies."""
    skipped: tuple[str, ...]
    """Images that could not be read, each with the reason."""


def build_pack(source: Source, image_size: int, root: Path, progress: Progress = lambda done, total: None) -> Pack:
    """The pack of a source, decoded unless `root` holds it already.

    Images that cannot be read are skipped, listed in `Pack.skipped`, and the same in every run on this data.

    Args:
        source: where the images are.
        image_size: their side in the pack, in pixels.
        root: the folder of all packs; each is a folder in it, named by its hash. One in an object store is shared: what
            others have built is brought here, and what is built here is put there.
        progress: told how far it is.

    Raises:
        ValueError: no image could be read, or none of some class.
    """
    threads = ThreadPoolExecutor(max_workers=os.cpu_count())
    with threads:
        hashes = _mapped(threads, lambda example: example.image.digest(), source.examples)
        # In the order of their content, so that renaming a file changes neither the hash nor any draw.
        ordered = sorted(zip(source.examples, hashes, strict=True), key=_by_content)
        content = [[example.part, example.label, hash] for example, hash in ordered]
        name = hashing.sha256_json([FORMAT_VERSION, image_size, list(source.classes), content])
        there = root / name[:16]
        folder = local_cache.local_path(there)
        if object_store.is_remote(there) and object_store.exists(there / METADATA_FILE):
            folder = local_cache.fetch_cached(there, METADATA_FILE, _check_pixels)
        elif not (folder / METADATA_FILE).exists():
            _decode(folder, name, source, ordered, image_size, threads, progress)
    local_cache.publish(folder, there, METADATA_FILE)
    return load_pack(folder)


def fetch_pack(folder: Path) -> Pack:
    """A pack from a folder that may be in an object store: brought to this machine and checked, by whoever is first."""
    return load_pack(local_cache.fetch_cached(folder, METADATA_FILE, _check_pixels))


def _check_pixels(folder: Path) -> None:
    load_pack(folder, verify=True)


def load_pack(folder: Path, verify: bool = False) -> Pack:
    """A pack from its folder.

    Args:
        folder: what `Pack.folder` said.
        verify: whether to hash everything and compare: seconds for a large pack, so once per sweep, not per trial.

    Raises:
        ValueError: pixels or labels are not those that were written.
    """
    meta = json.loads((folder / METADATA_FILE).read_bytes())
    if verify:
        said = {name: value for name, value in meta.items() if name != "sha256"}
        if (
            hashing.sha256_json(said) != meta["sha256"]
            or hashing.sha256_file(folder / "images.npy") != meta["images_sha256"]
        ):
            raise ValueError(f"the pack {folder} is damaged: remove that folder, and it is built again")
    return Pack(
        folder=folder,
        hash=meta["hash"],
        classes=tuple(meta["classes"]),
        image_size=meta["image_size"],
        images=np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False),
        labels=np.array(meta["labels"], dtype=np.int64),
        parts=tuple(meta["parts"]),
        digests=tuple(meta["digests"]),
        skipped=tuple(meta["skipped"]),
    )


def _by_content(item: tuple[Example, str]) -> tuple[str, int, str]:
    example, hash = item
    return (example.part or "", example.label, hash)


def _decode(
    folder: Path,
    name: str,
    source: Source,
    ordered: list[tuple[Example, str]],
    size: int,
    threads: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    """Write the pack beside `folder` and move it there in one step."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        images = np.lib.format.open_memmap(
            temporary / "images.npy", mode="w+", dtype=np.uint8, shape=(len(ordered), size, size, 3)
        )

        def decode(item: tuple[int, Example]) -> str | None:
            index, example = item
            try:
                images[index] = example.image.read(size)
            except UnreadableImageError as error:
                return f"{source.classes[example.label]}/{example.image.name}: {error}"
            return None

        problems: list[str | None] = []
        for problem in _mapped(threads, decode, [*enumerate(example for example, _ in ordered)]):
            problems.append(problem)
            progress(len(problems), len(ordered))
        kept = [index for index, problem in enumerate(problems) if problem is None]
        _check(source, [ordered[index][0] for index in kept], problems)
        if len(kept) < len(ordered):
            _copy(images, kept, temporary / "kept.npy")
            (temporary / "kept.npy").replace(temporary / "images.npy")
        else:
            images.flush()
        meta = {
            "hash": name,
            "classes": source.classes,
            "image_size": size,
            "labels": [ordered[index][0].label for index in kept],
            "parts": [ordered[index][0].part for index in kept],
            "digests": [ordered[index][1] for index in kept],
            "skipped": [problem for problem in problems if problem],
            "images_sha256": hashing.sha256_file(temporary / "images.npy"),
        }
        (temporary / METADATA_FILE).write_text(json.dumps({**meta, "sha256": hashing.sha256_json(meta)}))
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / METADATA_FILE).exists():  # otherwise another process was quicker; its pack is the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mapped(threads: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    for start in range(0, len(items), DECODE_CHUNK):
        yield from threads.map(function, items[start : start + DECODE_CHUNK])


def _copy(images: NDArray[np.uint8], kept: list[int], path: Path) -> None:
    """Write some of the images to a file, without holding them all."""
    shape = (len(kept), *images.shape[1:])
    copied = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for place, index in enumerate(kept):
        copied[place] = images[index]
    copied.flush()


def _check(source: Source, readable: list[Example], problems: Iterable[str | None]) -> None:
    first = next((problem for problem in problems if problem), "")
    if not readable:
        raise ValueError(f"none of the {len(source.examples)} images of {source.name} can be read; the first: {first}")
    trained = {example.label for example in readable if example.part in (None, "train")}
    for label, name in enumerate(source.classes):
        if label not in trained:
            raise ValueError(f"no training image of class {name!r} can be read; the first that could not be: {first}")
