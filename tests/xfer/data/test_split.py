"""Splits are disjoint, stratified and reproducible, and another draw never changes the test part."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfer.data.copies import NO_COPIES, Copies
from xfer.data.pack import Pack
from xfer.data.split import split_pack

PARTS = ("train", "val", "test")


def a_pack(labels, parts=None, digests=None, copies=NO_COPIES):
    """Return a pack with blank images: splitting does not read them."""
    count = len(labels)
    return Pack(
        folder=Path(),
        hash="h",
        classes=tuple("abcdefgh"),
        image_size=8,
        images=np.zeros((count, 8, 8, 3), dtype=np.uint8),
        labels=np.array(labels, dtype=np.int64),
        parts=tuple(parts or [None] * count),
        digests=tuple(digests or map(str, range(count))),
        skipped=(),
        copies=copies,
    )


def given_parts(**counts):
    """Return a pack of three classes; the arguments are the number of images per class in each part."""
    rows = [(part, label) for part, count in counts.items() for label in range(3) for _ in range(count)]
    return a_pack([label for _, label in rows], [part for part, _ in rows])


def assert_valid(pack, split):
    """Check that every index is in exactly one part, and that each part is sorted and not empty."""
    indices = np.concatenate([split.of(part) for part in PARTS])
    assert sorted(indices) == list(range(len(pack.labels)))
    assert all(list(split.of(part)) == sorted(split.of(part)) for part in PARTS)
    assert all(len(split.of(part)) for part in PARTS)


def per_class(pack, indices):
    return Counter(pack.labels[indices].tolist())


# Given parts


def test_three_given_parts_are_kept_for_every_seed_and_draw():
    pack = given_parts(train=5, val=2, test=3)
    for seed, draw in ((0, 0), (1, 2)):
        split = split_pack(pack, seed, draw)
        assert_valid(pack, split)
        for part in PARTS:
            assert {pack.parts[index] for index in split.of(part)} == {part}
        assert not split.can_redraw
        assert "as given" in split.description


@pytest.mark.parametrize("part", ["val", "test"])
def test_with_one_given_part_validation_is_a_fifth_of_train(part):
    pack = given_parts(train=10, **{part: 4})
    split = split_pack(pack)
    assert_valid(pack, split)
    assert {pack.parts[index] for index in split.test} == {part}
    assert len(split.test) == 12
    assert per_class(pack, split.val) == {0: 2, 1: 2, 2: 2}
    assert per_class(pack, split.train) == {0: 8, 1: 8, 2: 8}
    assert split.can_redraw
    assert f"the given {part} part is the test part" in split.description


def test_a_single_folder_is_split_70_15_15_in_every_class():
    pack = a_pack([0] * 100 + [1] * 40 + [2] * 20)
    split = split_pack(pack)
    assert_valid(pack, split)
    assert per_class(pack, split.test) == {0: 15, 1: 6, 2: 3}
    assert per_class(pack, split.val) == {0: 15, 1: 6, 2: 3}
    assert per_class(pack, split.train) == {0: 70, 1: 28, 2: 14}
    assert split.can_redraw
    assert "70 / 15 / 15" in split.description


# Draws


@pytest.mark.parametrize("pack", [a_pack([0, 1, 2] * 40), given_parts(train=30, val=5)], ids=["one folder", "given"])
def test_another_draw_changes_validation_but_not_the_test_part(pack):
    splits = [split_pack(pack, seed=3, draw=draw) for draw in range(6)]
    assert len({tuple(split.test) for split in splits}) == 1
    assert len({tuple(split.val) for split in splits}) == 6
    for split in splits:
        assert_valid(pack, split)


def test_another_seed_changes_a_drawn_test_part():
    pack = a_pack([0, 1, 2] * 40)
    assert len({tuple(split_pack(pack, seed=seed).test) for seed in range(6)}) == 6


def test_the_same_seed_and_draw_give_the_same_split():
    pack = a_pack([0, 1, 2] * 40)
    first, second = split_pack(pack, 5, 2), split_pack(pack, 5, 2)
    assert all(np.array_equal(first.of(part), second.of(part)) for part in PARTS)


# Copies


def test_copies_stay_in_one_part():
    digests = [str(index // 3) for index in range(120)]  # every image three times
    pack = a_pack([0] * 60 + [1] * 60, digests=digests)
    for draw in range(4):
        split = split_pack(pack, draw=draw)
        assert_valid(pack, split)
        parts_of = {digest: set() for digest in digests}
        for part in PARTS:
            for index in split.of(part):
                parts_of[digests[index]].add(part)
        assert all(len(parts) == 1 for parts in parts_of.values())


def parts_of_groups(pack, split):
    """Return the set of parts in which the images of each group lie."""
    parts = {}
    for part in PARTS:
        for index in split.of(part).tolist():
            parts.setdefault(int(pack.copy_groups[index]), set()).add(part)
    return parts


@settings(deadline=None)
@given(st.data())
def test_a_group_of_copies_is_in_one_part_for_any_groups_classes_seeds_and_draws(data):
    labels = data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=60))
    group_of = data.draw(st.lists(st.integers(0, 30), min_size=len(labels), max_size=len(labels)))
    parted = data.draw(st.booleans())
    parts = [("train", "train", "train", "test")[index % 4] for index in range(len(labels))] if parted else None
    groups = [
        tuple(index for index, other in enumerate(group_of) if other == group)
        for group in sorted(set(group_of))
        if group_of.count(group) > 1
    ]
    pack = a_pack(labels, parts, copies=Copies(alike=tuple(groups)))
    seed, draw = data.draw(st.integers(0, 99)), data.draw(st.integers(0, 99))
    limit = data.draw(st.sampled_from([None, 1, 3]))
    try:
        split = split_pack(pack, seed, draw, limit)
    except ValueError as error:
        assert "part would be empty" in str(error)  # noqa: PT017
        return
    drawn = ("train", "val") if parted else PARTS
    for found in parts_of_groups(pack, split).values():
        assert len(found & set(drawn)) <= 1
    divided = [index for index in range(len(labels)) if not parted or parts[index] == "train"]
    if limit is None:
        assert {labels[index] for index in split.train} == {labels[index] for index in divided}
    if parted:
        assert {parts[index] for index in split.test} == {"test"}


def test_copies_under_two_classes_are_drawn_together():
    alike = tuple((index, index + 60) for index in range(20))  # the first 20 of each class
    pack = a_pack([0] * 60 + [1] * 60, copies=Copies(alike=alike))
    for draw in range(5):
        split = split_pack(pack, draw=draw)
        assert_valid(pack, split)
        assert all(len(parts) == 1 for parts in parts_of_groups(pack, split).values())
        assert split.description == (
            "70 / 15 / 15, stratified by class; copies of a picture are in one part (40 images in 20 groups)"
        )


def test_identical_files_under_two_classes_are_drawn_together():
    digests = [*map(str, range(60)), *map(str, range(60))]
    pack = a_pack([0] * 60 + [1] * 60, digests=digests)
    split = split_pack(pack)
    assert all(len(parts) == 1 for parts in parts_of_groups(pack, split).values())
    assert "(120 images in 60 groups)" in split.description


@pytest.mark.parametrize("size", [2, 6, 10])
def test_groups_of_near_copies_keep_the_fractions_of_each_class(size):
    alike = tuple(tuple(range(start, start + size)) for start in range(0, 240, size))
    pack = a_pack([0] * 120 + [1] * 120, copies=Copies(alike=alike))
    for seed in range(5):
        split = split_pack(pack, seed)
        for part, wanted in (("val", 18), ("test", 18), ("train", 84)):
            for count in per_class(pack, split.of(part)).values():
                assert abs(count - wanted) <= size


def test_groups_of_unequal_sizes_keep_the_fractions():
    alike = (tuple(range(40)), tuple(range(40, 50)))
    pack = a_pack([0] * 100 + [1] * 100, copies=Copies(alike=alike))
    for seed in range(10):
        split = split_pack(pack, seed)
        assert abs(per_class(pack, split.test)[0] - 15) <= 5
        assert set(range(40)) <= set(split.train.tolist())


def test_identical_files_of_one_class_change_neither_description_nor_split():
    digests = [str(index // 3) for index in range(120)]
    groups = tuple(tuple(range(start, start + 3)) for start in range(0, 120, 3))
    labels = [0] * 60 + [1] * 60
    plain, known = a_pack(labels, digests=digests), a_pack(labels, digests=digests, copies=Copies(groups, groups))
    for draw in range(3):
        first, second = split_pack(plain, draw=draw), split_pack(known, draw=draw)
        assert first.description == second.description == "70 / 15 / 15, stratified by class"
        assert all(np.array_equal(first.of(part), second.of(part)) for part in PARTS)


def test_copies_across_given_parts_are_not_moved():
    pack = given_parts(train=5, val=2, test=3)
    leaky = dataclasses.replace(pack, copies=Copies(alike=((0, 15), (16, 22))))
    for part in PARTS:
        assert np.array_equal(split_pack(leaky).of(part), split_pack(pack).of(part))
    assert split_pack(leaky).description == split_pack(pack).description


def test_data_that_are_copies_of_one_picture_per_class_are_refused():
    pack = a_pack([0] * 30 + [1] * 30, copies=Copies(alike=(tuple(range(30)), tuple(range(30, 60)))))
    with pytest.raises(
        ValueError,
        match=r"the val part would be empty: 60 images are too few to be divided; copies of a picture are "
        r"in one part \(60 images in 2 groups\). Add other images, or put the images into train, val and test yourself",
    ):
        split_pack(pack)


# Few images


def test_the_only_image_of_a_class_is_used_for_training():
    pack = a_pack([0] * 20 + [1] * 20 + [2])
    split = split_pack(pack)
    assert_valid(pack, split)
    assert 40 in split.train


def test_a_class_of_copies_of_one_image_is_used_for_training():
    pack = a_pack([0] * 20 + [1] * 20 + [2] * 5, digests=[*map(str, range(40)), *["same"] * 5])
    assert set(range(40, 45)) <= set(split_pack(pack).train)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 9))
def test_every_image_is_in_one_part_and_every_class_in_training_for_any_classes(labels, seed, draw):
    pack = a_pack(sorted(labels))
    if max(Counter(labels).values()) < 3:
        with pytest.raises(ValueError, match="part would be empty"):
            split_pack(pack, seed, draw)
        return
    split = split_pack(pack, seed, draw)
    assert_valid(pack, split)
    assert set(pack.labels[split.train]) == set(labels)


def test_too_few_images_to_split_are_refused():
    with pytest.raises(ValueError, match="the val part would be empty: 4 images are too few to be divided"):
        split_pack(a_pack([0, 0, 1, 1]))


# Images per class


UNEQUAL = a_pack([0] * 60 + [1] * 30 + [2] * 9)  # 42, 21 and 7 of them are for training


def test_the_limit_applies_per_class_and_only_to_the_training_part():
    split, few = split_pack(UNEQUAL), split_pack(UNEQUAL, images_per_class=10)
    assert per_class(UNEQUAL, split.train) == {0: 42, 1: 21, 2: 7}
    assert per_class(UNEQUAL, few.train) == {0: 10, 1: 10, 2: 7}
    assert set(few.train) < set(split.train)
    assert list(few.train) == sorted(few.train)
    assert np.array_equal(few.val, split.val)
    assert np.array_equal(few.test, split.test)
    assert few.can_redraw == split.can_redraw
    assert few.description == f"{split.description}; of the training part 10 images of each class at most"


def test_the_images_of_a_smaller_limit_are_a_subset_of_those_of_a_larger_one():
    limits = (1, 2, 5, 7, 20, 41, 42, 1000)
    sets = [set(split_pack(UNEQUAL, images_per_class=limit).train) for limit in limits]
    assert all(smaller < larger for smaller, larger in pairwise(sets[:-1]))
    assert len(sets[0]) == 3
    assert sets[-1] == sets[-2] == set(split_pack(UNEQUAL).train)


def test_the_seed_determines_which_images_a_limit_keeps():
    given = given_parts(train=20, val=2, test=2)
    drawn = {tuple(split_pack(given, seed, images_per_class=3).train) for seed in (0, 0, 1, 2)}
    assert len(drawn) == 3


def test_the_images_of_a_split_do_not_change_between_versions():
    split = split_pack(a_pack([0, 1] * 20), seed=1, draw=2, images_per_class=4)
    assert split.train.tolist() == [1, 4, 5, 18, 27, 30, 31, 32]
    assert split.val.tolist() == [0, 8, 19, 22, 23, 37]
    assert split.test.tolist() == [12, 14, 24, 25, 33, 39]
