"""Parted: scratch folders with train, val and test part, so that both sides see the same images."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from xfer.data.images import ImageFile
from xfer.data.layouts import read_source
from xfer.data.pack import build_pack
from xfer.data.quickdraw import BITMAP_SIZE, BitmapDrawing
from xfer.data.source import Example, Source
from xfer.data.split import split_pack

PartExamples = Iterable[tuple[str, Example]]
"""Images, each with the name of its part."""


def write_split(data: Path, scratch: Path) -> Path:
    """A folder of images as `xfer.data.split` divides it."""

    def divided(source: Source) -> Iterator[tuple[str, Example]]:
        pack = build_pack(source, 32, scratch / "packs")  # for the split alone, which knows nothing of the size
        split = split_pack(pack)
        files: dict[str, list[Example]] = {}
        for example in source.examples:
            files.setdefault(example.image.digest(), []).append(example)
        for part in ("train", "val", "test"):
            yield from ((part, files[pack.digests[place]].pop()) for place in split.of(part))

    source = read_source(data)
    return _written(scratch / "data" / source.name, source, divided(source))


def write_fold(data: Path, scratch: Path, classes: int, fold: int, count: int = 3, tested: int = 2) -> Path:
    """The first classes of a data set, one of `count` stratified folds as val part.

    Every image but the `tested` a class that make up a small test part, the same in every fold, stands in the val part
    of exactly one fold.
    """
    source = read_source(data)

    def divided() -> Iterator[tuple[str, Example]]:
        for label in range(classes):
            images = [example for example in source.examples if example.label == label]
            order = np.random.default_rng(label).permutation(len(images))
            yield from (("test", images[place]) for place in order[:tested])
            for rank, place in enumerate(order[tested:]):
                yield "val" if rank % count == fold else "train", images[place]

    return _written(scratch / "data" / f"{source.name}-{classes}-fold{fold}", source, divided())


def write_drawings(data: Path, scratch: Path, seed: int, train: int, val: int, test: int = 10) -> Path:
    """Drawings, so many a class in each part, another draw for each seed."""
    source = read_source(data)

    def divided() -> Iterator[tuple[str, Example]]:
        parts = ["train"] * train + ["val"] * val + ["test"] * test
        for label in range(len(source.classes)):
            images = [example for example in source.examples if example.label == label]
            order = np.random.default_rng([seed, label]).permutation(len(images))
            yield from ((part, images[place]) for part, place in zip(parts, order, strict=False))

    return _written(scratch / "data" / f"{source.name}-{train}-{val}-seed{seed}", source, divided())


def count_images(folder: Path, part: str) -> int:
    """How many images a part has."""
    return sum(path.is_file() for path in (folder / part).rglob("*"))


def _written(folder: Path, source: Source, parted: PartExamples) -> Path:
    """The folder, made unless it is there. Copies, for links that lead out of a folder are passed over by a sweep."""
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for number, (part, example) in enumerate(parted):
        top = temporary / part / source.classes[example.label].replace("/", "_")
        top.mkdir(parents=True, exist_ok=True)
        if isinstance(example.image, ImageFile):
            shutil.copyfile(example.image.path, top / f"{number:05d}{example.image.path.suffix}")
        elif isinstance(example.image, BitmapDrawing):
            pixels = np.asarray(example.image.rows[example.image.index]).reshape(BITMAP_SIZE, BITMAP_SIZE)
            Image.fromarray(pixels).save(top / f"{number:05d}.png")
        else:
            raise ValueError(f"{example.image.name}: files and bitmaps are compared, nothing else")
    temporary.rename(folder)
    return folder
