"""Which images are trained on, chosen on and tested on: once each, stratified, and the test part never moves."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfer.data.pack import Pack
from xfer.data.split import duplicates_across_splits, split_pack, subsample

PARTS = ("train", "val", "test")


def a_pack(labels, parts=None, digests=None):
    """A pack without pixels: a division looks at nothing else."""
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
    )


def given_parts(**counts):
    """Three classes, so many images of each in each part."""
    rows = [(part, label) for part, count in counts.items() for label in range(3) for _ in range(count)]
    return a_pack([label for _, label in rows], [part for part, _ in rows])


def assert_divides(pack, split):
    """Every place is in exactly one part, and each part is sorted."""
    everything = np.concatenate([split.of(part) for part in PARTS])
    assert sorted(everything) == list(range(len(pack.labels)))
    assert all(list(split.of(part)) == sorted(split.of(part)) for part in PARTS)
    assert all(len(split.of(part)) for part in PARTS)


def per_class(pack, places):
    return Counter(pack.labels[places].tolist())


# What is given


def test_three_given_parts_are_kept_whatever_seed_and_draw():
    pack = given_parts(train=5, val=2, test=3)
    for seed, draw in ((0, 0), (1, 2)):
        split = split_pack(pack, seed, draw)
        assert_divides(pack, split)
        for part in PARTS:
            assert {pack.parts[place] for place in split.of(part)} == {part}
        assert not split.can_redraw
        assert "as given" in split.how


@pytest.mark.parametrize("part", ["val", "test"])
def test_one_given_part_is_the_test_part_and_a_fifth_of_train_is_for_validation(part):
    pack = given_parts(train=10, **{part: 4})
    split = split_pack(pack)
    assert_divides(pack, split)
    assert {pack.parts[place] for place in split.test} == {part}
    assert len(split.test) == 12
    assert per_class(pack, split.val) == {0: 2, 1: 2, 2: 2}
    assert per_class(pack, split.train) == {0: 8, 1: 8, 2: 8}
    assert split.can_redraw
    assert f"the given {part} part is the test part" in split.how


def test_a_single_folder_is_divided_70_15_15_in_every_class():
    pack = a_pack([0] * 100 + [1] * 40 + [2] * 20)
    split = split_pack(pack)
    assert_divides(pack, split)
    assert per_class(pack, split.test) == {0: 15, 1: 6, 2: 3}
    assert per_class(pack, split.val) == {0: 15, 1: 6, 2: 3}
    assert per_class(pack, split.train) == {0: 70, 1: 28, 2: 14}
    assert split.can_redraw
    assert "70 / 15 / 15" in split.how


# Draws


@pytest.mark.parametrize("pack", [a_pack([0, 1, 2] * 40), given_parts(train=30, val=5)], ids=["one folder", "given"])
def test_another_draw_moves_validation_and_never_the_test_part(pack):
    splits = [split_pack(pack, seed=3, draw=draw) for draw in range(6)]
    assert len({tuple(split.test) for split in splits}) == 1
    assert len({tuple(split.val) for split in splits}) == 6
    for split in splits:
        assert_divides(pack, split)


def test_another_seed_moves_the_test_part_where_it_is_drawn():
    pack = a_pack([0, 1, 2] * 40)
    assert len({tuple(split_pack(pack, seed=seed).test) for seed in range(6)}) == 6


def test_the_same_seed_and_draw_divide_the_same_way():
    pack = a_pack([0, 1, 2] * 40)
    first, second = split_pack(pack, 5, 2), split_pack(pack, 5, 2)
    assert all(np.array_equal(first.of(part), second.of(part)) for part in PARTS)


# Copies


def test_copies_stay_together_so_that_none_is_tested_after_being_trained_on():
    digests = [str(place // 3) for place in range(120)]  # every image three times
    pack = a_pack([0] * 60 + [1] * 60, digests=digests)
    for draw in range(4):
        split = split_pack(pack, draw=draw)
        assert_divides(pack, split)
        assert duplicates_across_splits(pack, split) == 0
        where = {digest: set() for digest in digests}
        for part in PARTS:
            for place in split.of(part):
                where[digests[place]].add(part)
        assert all(len(parts) == 1 for parts in where.values())


def test_copies_in_given_parts_are_counted():
    parts = ["train"] * 4 + ["val"] * 2 + ["test"] * 4
    #           train             val         test
    digests = ["a", "b", "c", "d", "e", "f", "a", "e", "x", "a"]
    pack = a_pack([0, 1] * 5, parts, digests)
    assert duplicates_across_splits(pack, split_pack(pack)) == 3


def test_a_pack_without_copies_has_none(pack):
    assert duplicates_across_splits(pack, split_pack(pack)) == 0


# Few images


def test_a_class_with_a_single_image_is_trained_on():
    pack = a_pack([0] * 20 + [1] * 20 + [2])
    split = split_pack(pack)
    assert_divides(pack, split)
    assert 40 in split.train


def test_a_class_of_copies_of_one_image_is_trained_on():
    pack = a_pack([0] * 20 + [1] * 20 + [2] * 5, digests=[*map(str, range(40)), *["same"] * 5])
    assert set(range(40, 45)) <= set(split_pack(pack).train)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 9))
def test_whatever_the_classes_every_image_is_in_one_part_and_every_class_is_trained_on(labels, seed, draw):
    pack = a_pack(sorted(labels))
    if max(Counter(labels).values()) < 3:
        with pytest.raises(ValueError, match="part would be empty"):
            split_pack(pack, seed, draw)
        return
    split = split_pack(pack, seed, draw)
    assert_divides(pack, split)
    assert set(pack.labels[split.train]) == set(labels)


def test_too_few_images_to_divide_are_refused():
    with pytest.raises(ValueError, match="the val part would be empty: 4 images are too few to be divided"):
        split_pack(a_pack([0, 0, 1, 1]))


# At most so many of each class


@pytest.fixture
def unequal():
    """A pack of 60, 30 and 9 images of three classes and its split: 42, 21 and 7 of them are for training."""
    pack = a_pack([0] * 60 + [1] * 30 + [2] * 9)
    return pack, split_pack(pack)


def test_a_limit_takes_at_most_so_many_images_of_each_class_from_the_training_part_alone(unequal):
    pack, split = unequal
    few = subsample(split, pack, 10)
    assert per_class(pack, split.train) == {0: 42, 1: 21, 2: 7}
    assert per_class(pack, few.train) == {0: 10, 1: 10, 2: 7}
    assert set(few.train) < set(split.train)
    assert list(few.train) == sorted(few.train)
    assert np.array_equal(few.val, split.val)
    assert np.array_equal(few.test, split.test)
    assert few.can_redraw == split.can_redraw
    assert few.how == f"{split.how}; of the training part 10 images of each class at most"


def test_the_images_for_a_smaller_limit_are_among_those_for_a_larger_one(unequal):
    pack, split = unequal
    sets = [set(subsample(split, pack, count).train) for count in (1, 2, 5, 7, 20, 41, 42, 1000)]
    assert all(smaller < larger for smaller, larger in pairwise(sets[:-1]))
    assert len(sets[0]) == 3
    assert sets[-1] == sets[-2] == set(split.train)


def test_no_limit_leaves_a_split_as_it_is(unequal):
    pack, split = unequal
    assert subsample(split, pack, None) is split


def test_the_seed_decides_which_images_a_limit_takes(unequal):
    pack, split = unequal
    drawn = {tuple(subsample(split, pack, 3, seed).train) for seed in (0, 0, 1, 2)}
    assert len(drawn) == 3
