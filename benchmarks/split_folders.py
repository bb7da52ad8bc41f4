"""Scratch folders with a train, val and test part, so that both sides see the same images."""

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
"""Pairs of part name and image."""


def write_split(data: Path, scratch: Path) -> Path:
    """Write a folder of images in the parts that `xfer.data.split` assigns."""

    def assign_parts(source: Source) -> Iterator[tuple[str, Example]]:
        pack = build_pack(source, 32, scratch / "packs")  # only for the split, which does not depend on the image size
        split = split_pack(pack)
        files: dict[str, list[Example]] = {}
        for example in source.examples:
            files.setdefault(example.image.digest(), []).append(example)
        for part in ("train", "val", "test"):
            yield from ((part, files[pack.digests[index]].pop()) for index in split.of(part))

    source = read_source(data)
    return _write_folder(scratch / "data" / source.name, source, assign_parts(source))


def write_fold(data: Path, scratch: Path, classes: int, fold: int, count: int = 3, tested: int = 2) -> Path:
    """Write the first classes of a data set, with one of `count` stratified folds as the val part.

    A small test part of `tested` images per class is the same in every fold. Every other image is in the val part of
    exactly one fold.
    """
    source = read_source(data)

    def assign_parts() -> Iterator[tuple[str, Example]]:
        for label in range(classes):
            images = [example for example in source.examples if example.label == label]
            order = np.random.default_rng(label).permutation(len(images))
            yield from (("test", images[index]) for index in order[:tested])
            for rank, index in enumerate(order[tested:]):
                yield "val" if rank % count == fold else "train", images[index]

    return _write_folder(scratch / "data" / f"{source.name}-{classes}-fold{fold}", source, assign_parts())


def write_drawings(data: Path, scratch: Path, seed: int, train: int, val: int, test: int = 10) -> Path:
    """Write random drawings of every class, sampled by seed; `train`, `val` and `test` are numbers per class."""
    source = read_source(data)

    def assign_parts() -> Iterator[tuple[str, Example]]:
        parts = ["train"] * train + ["val"] * val + ["test"] * test
        for label in range(len(source.classes)):
            images = [example for example in source.examples if example.label == label]
            order = np.random.default_rng([seed, label]).permutation(len(images))
            yield from ((part, images[index]) for part, index in zip(parts, order, strict=False))

    return _write_folder(scratch / "data" / f"{source.name}-{train}-{val}-seed{seed}", source, assign_parts())


def count_images(folder: Path, part: str) -> int:
    """Number of images in a part."""
    return sum(path.is_file() for path in (folder / part).rglob("*"))


def _write_folder(folder: Path, source: Source, examples: PartExamples) -> Path:
    """Write a folder unless it exists. Copies files, because a sweep ignores links that lead out of a folder."""
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for number, (part, example) in enumerate(examples):
        class_folder = temporary / part / source.classes[example.label].replace("/", "_")
        class_folder.mkdir(parents=True, exist_ok=True)
        if isinstance(example.image, ImageFile):
            shutil.copyfile(example.image.path, class_folder / f"{number:05d}{example.image.path.suffix}")
        elif isinstance(example.image, BitmapDrawing):
            pixels = np.asarray(example.image.rows[example.image.index]).reshape(BITMAP_SIZE, BITMAP_SIZE)
            Image.fromarray(pixels).save(class_folder / f"{number:05d}.png")
        else:
            raise ValueError(
                f"{example.image.name}: must be an image file or a bitmap drawing, got {type(example.image).__name__}"
            )
    temporary.rename(folder)
    return folder
