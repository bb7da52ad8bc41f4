"""Class balance: when a class counts as rare."""

from __future__ import annotations

import pytest

from xfer.data.class_balance import Imbalance, find_imbalance

CLASSES = ("ant", "bee", "wasp")


def test_a_class_is_rare_if_it_has_less_than_a_fifth_of_the_images_of_the_most_frequent_one() -> None:
    assert find_imbalance([9, 46, 45], CLASSES) == Imbalance(("ant",), 9, "bee", 46)


@pytest.mark.parametrize("counts", [[9, 45, 45], [1, 5, 3], [7, 7, 7], [0, 40, 30], [0, 0, 0]])
def test_classes_are_balanced_up_to_a_ratio_of_five_and_those_without_images_do_not_count(counts: list[int]) -> None:
    assert find_imbalance(counts, CLASSES) is None


def test_all_rare_classes_are_named_the_rarest_first() -> None:
    found = find_imbalance([1_200, 200, 3], CLASSES)
    assert found is not None
    assert found.line == ("the most frequent class, ant, has 1,200 training images, and wasp has 3 (rare: wasp, bee)")
