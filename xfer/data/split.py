"""Split a pack into training, validation and test part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xfer.data.pack import Pack
from xfer.records import Part
from xfer.seeding import derive_seed

VAL_FRACTION_OF_TRAIN = 0.2
"""Fraction of the training part that is drawn for validation if the data set has a training and a test part."""
HOLDOUT_FRACTION = 0.15
"""Fraction of all images drawn for each of validation and test if the data set has no parts: 70 / 15 / 15."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Sorted indices into a pack. The parts are disjoint, and without a limit per class they cover the pack."""

    train: Indices
    val: Indices
    test: Indices
    description: str
    """How the parts were made, one sentence for the report. It is part of a sweep's plan, so rewording it would make
    existing sweeps look changed."""
    can_redraw: bool
    """Whether another draw gives another validation part."""

    @property
    def train_and_val(self) -> Indices:
        """Indices outside the test part: the same for every draw, unless images per class are limited."""
        return np.union1d(self.train, self.val)

    def of(self, part: Part) -> Indices:
        """Return the indices of a part."""
        return {"train": self.train, "val": self.val, "test": self.test}[part]


def split_pack(pack: Pack, seed: int = 0, draw: int = 0, images_per_class: int | None = None) -> Split:
    """Split a pack into training, validation and test part.

    Parts of the data set are kept if it has all three. If it has a training and one other part, the other one is the
    test part and validation is drawn from training. If it has none, the split is 70 / 15 / 15. Draws are stratified by
    class, and copies of an image stay in one part.

    Args:
        pack: the data.
        seed: determines the test part, if it is drawn, and the images that `images_per_class` keeps.
        draw: determines the validation part, if it is drawn; the test part is the same for all draws.
        images_per_class: maximum number of training images per class, at least 1; None keeps all. The images of a
            smaller number are a subset of those of a larger one. Validation and test part are not affected.

    Raises:
        ValueError: a part would be empty.
    """
    indices = np.arange(len(pack.labels))
    parts = np.array([part or "" for part in pack.parts])
    has_val, has_test = "val" in parts, "test" in parts
    if has_val and has_test:
        description = "training, validation and test part are as given"
        train, val, test = indices[parts == "train"], indices[parts == "val"], indices[parts == "test"]
    elif has_val or has_test:
        part = "val" if has_val else "test"
        description = (
            f"the given {part} part is the test part, "
            "and a stratified fifth of the training part is drawn for validation"
        )
        test, rest = indices[parts == part], indices[parts == "train"]
        val = _stratified_sample(pack, rest, VAL_FRACTION_OF_TRAIN, derive_seed(seed, "val", draw))
        train = np.setdiff1d(rest, val)
    else:
        description = "70 / 15 / 15, stratified by class"
        test = _stratified_sample(pack, indices, HOLDOUT_FRACTION, derive_seed(seed, "test"))
        rest = np.setdiff1d(indices, test)
        val = _stratified_sample(pack, rest, HOLDOUT_FRACTION / (1 - HOLDOUT_FRACTION), derive_seed(seed, "val", draw))
        train = np.setdiff1d(rest, val)
    for name, part_indices in (("train", train), ("val", val), ("test", test)):
        if not len(part_indices):
            raise ValueError(f"the {name} part would be empty: {len(indices)} images are too few to be divided")
    split = Split(train, val, test, description, can_redraw=not (has_val and has_test))
    return split if images_per_class is None else _limit_per_class(split, pack, images_per_class, seed)


def stratified_sample(labels: Indices, indices: Indices, cap: int, seed: int) -> Indices:
    """Return a sample of images with every class in proportion.

    Args:
        labels: classes of all images of the pack.
        indices: the images to draw from.
        cap: maximum number of images.
        seed: determines the sample. A larger sample contains a smaller one.

    Returns:
        At most `cap` of the indices, sorted; all of them if there are not more.
    """
    order = np.random.default_rng(seed).permutation(indices)
    rank = np.empty(len(order))
    for label in np.unique(labels[order]):
        of_class = labels[order] == label
        rank[of_class] = np.arange(of_class.sum()) / of_class.sum()
    return np.sort(order[np.argsort(rank, kind="stable")[:cap]])


def duplicates_across_splits(pack: Pack, split: Split) -> int:
    """Return the number of test images with an identical file in the training or validation part."""
    seen = {pack.digests[index] for index in (*split.train, *split.val)}
    return sum(pack.digests[index] in seen for index in split.test)


def _limit_per_class(split: Split, pack: Pack, images_per_class: int, seed: int) -> Split:
    rank = np.random.default_rng(derive_seed(seed, "images per class")).permutation(len(pack.labels))
    selected = []
    for label in np.unique(pack.labels[split.train]):
        of_class = split.train[pack.labels[split.train] == label]
        selected.append(of_class[np.argsort(rank[of_class])][:images_per_class])
    description = f"{split.description}; of the training part {images_per_class:,} images of each class at most"
    return replace(split, train=np.sort(np.concatenate(selected)), description=description)


def _stratified_sample(pack: Pack, indices: Indices, fraction: float, seed: int) -> Indices:
    """Draw a fraction of the distinct images per class, at least one of each class that has two distinct images."""
    rng = np.random.default_rng(seed)
    digests = np.array(pack.digests)[indices]
    selected: list[Indices] = []
    for label in np.unique(pack.labels[indices]):
        of_class = pack.labels[indices] == label
        distinct = np.unique(digests[of_class])
        count = max(1, round(fraction * len(distinct))) if len(distinct) > 1 else 0
        drawn = rng.permutation(distinct)[:count]
        selected.append(indices[of_class & np.isin(digests, drawn)])
    return np.sort(np.concatenate(selected))
