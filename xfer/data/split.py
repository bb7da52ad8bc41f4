"""Split a pack into training, validation and test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    class. Exact and near copies of an image, and images of one patient, video, ..., are drawn together, also across
    classes (`Pack.split_groups`).

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
        divided = indices[:0]
        train, val, test = indices[parts == "train"], indices[parts == "val"], indices[parts == "test"]
    elif has_val or has_test:
        part = "val" if has_val else "test"
        description = (
            f"the given {part} part is the test part, "
            "and a stratified fifth of the training part is drawn for validation"
        )
        test, divided = indices[parts == part], indices[parts == "train"]
        val = _stratified_sample(pack, divided, VAL_FRACTION_OF_TRAIN, derive_seed(seed, "val", draw))
        train = np.setdiff1d(divided, val)
    else:
        description = "70 / 15 / 15, stratified by class"
        divided = indices
        test = _stratified_sample(pack, indices, HOLDOUT_FRACTION, derive_seed(seed, "test"))
        rest = np.setdiff1d(indices, test)
        val = _stratified_sample(pack, rest, HOLDOUT_FRACTION / (1 - HOLDOUT_FRACTION), derive_seed(seed, "val", draw))
        train = np.setdiff1d(rest, val)
    copies = _describe_copies(pack, divided) + _describe_groups(pack, divided)
    description += copies
    for name, part_indices in (("train", train), ("val", val), ("test", test)):
        if not len(part_indices):
            remedy = ". Add other images, or put the images into train, val and test yourself" if copies else ""
            if pack.groups:
                remedy += f". --group none ignores {pack.group_column}"
            raise ValueError(
                f"the {name} part would be empty: {len(indices)} images are too few to be divided{copies}{remedy}"
            )
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


def _limit_per_class(split: Split, pack: Pack, images_per_class: int, seed: int) -> Split:
    rank = np.random.default_rng(derive_seed(seed, "images per class")).permutation(len(pack.labels))
    selected = []
    for label in np.unique(pack.labels[split.train]):
        of_class = split.train[pack.labels[split.train] == label]
        selected.append(of_class[np.argsort(rank[of_class])][:images_per_class])
    description = f"{split.description}; of the training part {images_per_class:,} images of each class at most"
    return replace(split, train=np.sort(np.concatenate(selected)), description=description)


def _stratified_sample(pack: Pack, indices: Indices, fraction: float, seed: int) -> Indices:
    """Draw about a fraction of the distinct images of each class, in whole groups.

    Each class that occurs in two groups gets at least one of them, and keeps at least one.
    """
    rng = np.random.default_rng(seed)
    groups = _group_images(pack, indices, pack.split_groups[indices])
    if pack.groups:
        return np.sort(indices[_draw_mixed(groups, pack.labels[indices], fraction, rng)[groups.numbers]])
    left = groups.per_class.tolist()
    drawn = np.zeros(len(groups.sizes), dtype=bool)
    for label in np.unique(pack.labels[indices]):
        order = rng.permutation(np.flatnonzero(groups.labels == label)).tolist()
        drawn[_choose_groups(groups, order, fraction, left)] = True
    return np.sort(indices[drawn[groups.numbers]])


@dataclass(frozen=True, eq=False)
class _Groups:
    """Groups of images that are drawn together, in the order of their lowest content hashes. Many are single images."""

    numbers: Indices
    """[images], the group of each image."""
    sizes: Indices
    """[groups], number of distinct images: identical files count once."""
    labels: Indices
    """[groups], class of most of the images."""
    mixed: Mapping[int, Sequence[int]]
    """Classes of those groups that have several."""
    per_class: Indices
    """[classes], number of groups in which a class occurs."""


def _group_images(pack: Pack, indices: Indices, group_of: Indices) -> _Groups:
    """Return the groups among some images, from the number of each one's group; identical files have the same."""
    labels, classes = pack.labels[indices], len(pack.classes)
    _, distinct = np.unique(np.array(pack.digests)[indices], return_index=True)  # in the order of their digests
    found, lowest = np.unique(group_of[distinct], return_index=True)
    number = np.empty(len(found), dtype=np.int64)
    number[np.argsort(lowest)] = np.arange(len(found))
    numbers = number[np.searchsorted(found, group_of)]
    pairs, counts = np.unique(numbers * classes + labels, return_counts=True)
    group, label = pairs // classes, pairs % classes
    order = np.lexsort((label, -counts, group))
    _, first = np.unique(group[order], return_index=True)
    mixed: dict[int, list[int]] = {}
    for index in np.flatnonzero(np.bincount(group)[group] > 1):
        mixed.setdefault(int(group[index]), []).append(int(label[index]))
    return _Groups(
        numbers,
        sizes=np.bincount(numbers[distinct]),
        labels=label[order][first],
        mixed=mixed,
        per_class=np.bincount(label, minlength=classes),
    )


def _draw_mixed(groups: _Groups, labels: Indices, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw groups of which many have several classes, as those of patients do.

    The classes in the fewest groups come first, so that they are not left to chance. Large groups, and groups with
    images of a class that has been drawn, come last.

    Args:
        groups: all groups.
        labels: [images], their classes.
        fraction: of the images of each class.
        rng: determines the order of the groups.

    Returns:
        [groups], whether each is drawn. Each class that occurs in two groups keeps at least one.
    """
    counts = np.zeros((len(groups.sizes), len(groups.per_class)), dtype=np.int64)
    np.add.at(counts, (groups.numbers, labels), 1)
    left = (counts > 0).sum(axis=0)
    sizes = counts.sum(axis=1)
    avoided = 2 * (sizes > 2 * fraction * sizes.sum()).astype(int)
    drawn = np.zeros(len(sizes), dtype=bool)

    def draw(group: int) -> None:
        present = counts[group] > 0
        if (left[present] > 1).all():
            left[present] -= 1
            drawn[group] = True

    for label in np.argsort(left, kind="stable"):
        of_class = rng.permutation(np.flatnonzero(counts[:, label]))
        target = max(1, round(fraction * counts[:, label].sum()))
        for group in of_class[np.argsort(avoided[of_class], kind="stable")]:
            missing = target - counts[drawn, label].sum()
            if not drawn[group] and counts[group, label] < 2 * missing:  # it comes closer to the number
                draw(group)
        for group in of_class[np.argsort(sizes[of_class], kind="stable")]:
            if not drawn[of_class].any():
                draw(group)
        avoided[of_class] |= 1
    return drawn


def _choose_groups(groups: _Groups, order: Sequence[int], fraction: float, left: list[int]) -> list[int]:
    """Choose groups of one class whose number of distinct images is close to a fraction of those of all.

    Args:
        groups: all groups.
        order: those of the class. They are chosen in this order.
        fraction: of the distinct images.
        left: [classes], number of groups that have not been chosen and in which a class occurs; it is updated.
    """
    sizes = dict(zip(order, groups.sizes[list(order)].tolist(), strict=True))
    missing = max(1, round(fraction * sum(sizes.values())))
    chosen: list[int] = []

    def choose(group: int) -> bool:
        labels = groups.mixed.get(group) or [int(groups.labels[group])]
        if any(left[label] < 2 for label in labels):
            return False
        for label in labels:
            left[label] -= 1
        chosen.append(group)
        return True

    for group in order:
        if missing < 1:
            break
        if sizes[group] < 2 * missing and choose(group):  # it comes closer to the number
            missing -= sizes[group]
    for group in sorted(order, key=sizes.__getitem__):
        if chosen or choose(group):
            break
    return chosen


def _describe_copies(pack: Pack, indices: Indices) -> str:
    """Return a clause on copies that are drawn together; empty if there are none but identical files of one class."""
    groups = _group_images(pack, indices, pack.copy_groups[indices])
    copied = groups.sizes > 1
    copied[list(groups.mixed)] = True
    if not copied.any():
        return ""
    images, count = int(copied[groups.numbers].sum()), int(copied.sum())
    groups_text = f"{count:,} group{'' if count == 1 else 's'}"
    return f"; copies of a picture are in one part ({images:,} images in {groups_text})"


def _describe_groups(pack: Pack, indices: Indices) -> str:
    """Return a clause on groups such as patients, that are drawn together; empty without groups."""
    if not pack.groups or not len(indices):
        return ""
    count = len({pack.groups[index] for index in indices.tolist()} - {None})
    return f"; each of {count:,} groups ({pack.group_column}) is in one part"
