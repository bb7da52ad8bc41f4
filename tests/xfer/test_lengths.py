"""Lengths: how long a run is, by the number of its images."""

from __future__ import annotations

import math

import pytest

from xfer.hyperparameters import DEFAULT_EPOCHS
from xfer.lengths import MIN_STEPS, MIN_STEPS_PER_EPOCH, RunLength, steps_per_epoch


@pytest.mark.parametrize("images", [2, 17, 50, 195, 384, 1_000, 5_000, 20_000, 1_000_000])
@pytest.mark.parametrize("batch_size", [2, 16, 32, 64])
def test_the_default_is_eight_epochs_or_as_many_as_the_fewest_steps_take(images: int, batch_size: int) -> None:
    epochs = RunLength(class_sizes=(images - 1, 1)).epochs_for(batch_size)
    steps = steps_per_epoch(images, batch_size)
    assert epochs >= DEFAULT_EPOCHS
    assert epochs * steps >= MIN_STEPS
    assert epochs == DEFAULT_EPOCHS or (epochs - 1) * steps < MIN_STEPS


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (13, 1), (14, 2), (26, 2), (300, 24)])
def test_steps_are_rounded_up_to_whole_epochs(steps: int, epochs: int) -> None:
    assert RunLength(steps=steps, class_sizes=(195,)).epochs_for(16) == epochs


def test_given_epochs_mean_what_they_say() -> None:
    assert {RunLength(3, class_sizes=(images,)).epochs_for(size) for images in (5, 5_000) for size in (2, 64)} == {3}


def test_a_limit_on_the_images_per_class_makes_more_epochs_of_the_same_steps() -> None:
    length = RunLength(steps=100, class_sizes=(40, 10, 5))
    assert [length.images(limit) for limit in (None, 20, 5)] == [55, 35, 15]
    assert [length.epochs_for(8, limit) for limit in (None, 20, 5)] == [
        math.ceil(100 / math.ceil(images / 8)) for images in (55, 35, 15)
    ]


def test_epochs_and_steps_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="--epochs 3 and --steps 40 both set the length of a run"):
        RunLength(3, 40)


def test_before_the_images_are_read_a_length_in_steps_is_not_known() -> None:
    assert RunLength().epochs_for(16) == RunLength(steps=1_000).epochs_for(16) == DEFAULT_EPOCHS


def test_a_batch_size_competes_by_default_if_an_epoch_has_enough_steps() -> None:
    length = RunLength(class_sizes=(195,))
    assert [length.allows_batch_size(size) for size in (16, 20, 32)] == [True, MIN_STEPS_PER_EPOCH <= 10, False]
    assert RunLength(8, class_sizes=(195,)).allows_batch_size(64)
