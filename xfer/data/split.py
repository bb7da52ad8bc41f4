"""Split: which images are trained on, chosen on and tested on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xfer.data.pack import Pack
from xfer.records import Part
from xfer.seeding import derive_seed

VAL_FRACTION_OF_TRAIN = 0.2
"""The share of the training part that is drawn for validation where train and test are given."""
HOLDOUT_FRACTION = 0.15
"""The share of all images that each of them gets where nothing is given: 70 / 15 / 15."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Places in a pack, each sorted: every image stands in exactly one part."""

    train: Indices
    val: Indices
    test: Indices
    how: str
    """How the parts came about, one sentence for the report."""
    can_redraw: bool
    """Whether another draw gives another validation part."""

    @property
    def train_and_val(self) -> Indices:
        """The places of all that is not tested on: the same for every draw, unless images per class are limited."""
        return np.union1d(self.train, self.val)

    def of(self, part: Part) -> Indices:
        """The places of one part."""
        return {"train": self.train, "val": self.val, "test": self.test}[part]


def split_pack(pack: Pack, seed: int = 0, draw: int = 0) -> Split:
    """Divide a pack into training, validation and test part.

    Train, val and test given: as given, always. Train and val given: val is the test part, and validation is drawn
    from train. Train and test given: likewise. One folder: 70 / 15 / 15. All draws are stratified by class, and copies
    of an image stay together.

    Args:
        pack: the data.
        seed: decides which images are the test part, where that is drawn.
        draw: decides which of the others are the validation part, where that is drawn; the test part never moves.

    Raises:
        ValueError: a part would be empty.
    """
    places = np.arange(len(pack.labels))
    given = np.array([part or "" for part in pack.parts])
    has_val, has_test = "val" in given, "test" in given
    drawn_from_train = ", and a stratified fifth of the training part is drawn for validation"
    if has_val and has_test:
        how = "training, validation and test part are as given"
        train, val, test = places[given == "train"], places[given == "val"], places[given == "test"]
    elif has_val or has_test:
        part = "val" if has_val else "test"
        how = f"the given {part} part is the test part{drawn_from_train}"
        test, rest = places[given == part], places[given == "train"]
        val = _drawn(pack, rest, VAL_FRACTION_OF_TRAIN, derive_seed(seed, "val", draw))
        train = np.setdiff1d(rest, val)
    else:
        how = "70 / 15 / 15, stratified by class"
        test = _drawn(pack, places, HOLDOUT_FRACTION, derive_seed(seed, "test"))
        rest = np.setdiff1d(places, test)
        val = _drawn(pack, rest, HOLDOUT_FRACTION / (1 - HOLDOUT_FRACTION), derive_seed(seed, "val", draw))
        train = np.setdiff1d(rest, val)
    split = Split(train, val, test, how, can_redraw=not (has_val and has_test))
    _check(pack, split)
    return split


def subsample(split: Split, pack: Pack, images_per_class: int | None, seed: int = 0) -> Split:
    """A split whose training part has at most so many images of each class; validation and test part stay.

    The images for a smaller number are among those for a larger one, so that only their number differs.

    Args:
        split: how `pack` was divided.
        pack: the data.
        images_per_class: at least 1; None leaves the split as it is.
        seed: decides which images.
    """
    if images_per_class is None:
        return split
    order = np.random.default_rng(derive_seed(seed, "images per class")).permutation(len(pack.labels))
    taken = [
        of_class[np.argsort(order[of_class])][:images_per_class]
        for label in np.unique(pack.labels[split.train])
        for of_class in [split.train[pack.labels[split.train] == label]]
    ]
    how = f"{split.how}; of the training part {images_per_class:,} images of each class at most"
    return replace(split, train=np.sort(np.concatenate(taken)), how=how)


def duplicates_across_splits(pack: Pack, split: Split) -> int:
    """How many images of the test part stand, byte for byte, in the training or validation part too."""
    seen = {pack.digests[place] for place in (*split.train, *split.val)}
    return sum(pack.digests[place] in seen for place in split.test)


def _drawn(pack: Pack, places: Indices, share: float, seed: int) -> Indices:
    """A stratified share of `places`, at least one of each class that has two different images."""
    generator = np.random.default_rng(seed)
    digests = np.array(pack.digests)[places]
    taken: list[Indices] = []
    for label in np.unique(pack.labels[places]):
        of_class = pack.labels[places] == label
        different = np.unique(digests[of_class])
        count = max(1, round(share * len(different))) if len(different) > 1 else 0
        chosen = generator.permutation(different)[:count]
        taken.append(places[of_class & np.isin(digests, chosen)])
    return np.sort(np.concatenate(taken))


def _check(pack: Pack, split: Split) -> None:
    for name in ("train", "val", "test"):
        if not len(split.of(name)):
            raise ValueError(f"the {name} part would be empty: {len(pack.labels)} images are too few to be divided")
