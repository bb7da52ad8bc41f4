"""How far apart two data sets are: nothing for the same, more for those that want other recipes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from sweeps.engine.presearch.dataset_distance import (
    DISTANCE_TERMS,
    MAX_DISTANCE,
    NETWORK_MISMATCH_DISTANCE,
    DatasetView,
    dataset_distance,
)
from xfer.advice.dataset_profile import DatasetProfile, StageScore
from xfer.measure.feature_spread import FeatureSpread


def seen(
    classes: int,
    each: int,
    chance: float,
    early: float,
    late: float,
    spread: FeatureSpread | None = None,
    **changes: Any,
) -> DatasetView:
    """A data set by the figures that are compared."""
    plain = {
        "backbone": "mobilenetv2_100",
        "image_size": 128,
        "classes": classes,
        "images": classes * each,
        "images_per_class": (each, each, each),
        "measured_images": min(2000, classes * each),
        "cap": 2000,
        "chance": chance,
        "early": (StageScore(3, 32, early - 0.1, 0.02, 0.0), StageScore(4, 96, early, 0.02, 0.0)),
        "late": StageScore("late", 1280, late, 0.02, 0.0),
        "gain": late - early,
        "gain_error": 0.02,
        "margin": 0.0,
        "margin_error": 0.02,
        "blocks": 17,
        "drops_early": True,
        "spread": spread,
    }
    return DatasetView(DatasetProfile(**{**plain, **changes}), "w" * 64)


# As measured with MobileNetV2 at 128 px, rounded.
HYMENOPTERA = seen(2, 97, 0.503, 0.826, 0.897, FeatureSpread(45.3, 0.469, 40.2))
DOGS_VS_CATS = seen(2, 120, 0.5, 0.833, 0.958, FeatureSpread(52.4, 0.471, 33.2))
QUICKDRAW = seen(10, 2800, 0.1, 0.804, 0.792, FeatureSpread(26.1, 0.393, 18.3))
REAL = (HYMENOPTERA, DOGS_VS_CATS, QUICKDRAW)


def test_the_same_data_is_at_distance_0_and_the_way_back_is_as_long() -> None:
    for one, other in product(REAL, REAL):
        assert (dataset_distance(one, other) == 0) == (one is other)
        assert dataset_distance(one, other) == dataset_distance(other, one)


def test_photos_of_animals_are_alike_and_sketches_are_not() -> None:
    assert dataset_distance(HYMENOPTERA, DOGS_VS_CATS) == pytest.approx(0.46, abs=0.01)
    assert dataset_distance(HYMENOPTERA, DOGS_VS_CATS) < MAX_DISTANCE
    assert min(dataset_distance(QUICKDRAW, HYMENOPTERA), dataset_distance(QUICKDRAW, DOGS_VS_CATS)) > 1.3 > MAX_DISTANCE


def test_counts_are_compared_by_their_ratio() -> None:
    few, more, most = (seen(10, each, 0.1, 0.5, 0.8) for each in (10, 100, 1000))
    assert dataset_distance(few, more) == pytest.approx(dataset_distance(more, most))
    assert dataset_distance(few, most) == pytest.approx(2 * dataset_distance(few, more))


def test_a_difference_of_one_unit_counts_one_among_all_that_is_compared() -> None:
    smaller = DatasetView(replace(HYMENOPTERA.measured, image_size=64), HYMENOPTERA.weights)
    assert dataset_distance(HYMENOPTERA, smaller) == pytest.approx((1 / (1 + len(DISTANCE_TERMS))) ** 0.5)


def test_what_one_was_not_measured_in_is_left_out() -> None:
    old = DatasetView(replace(HYMENOPTERA.measured, spread=None), HYMENOPTERA.weights)
    assert dataset_distance(HYMENOPTERA, old) == 0
    assert dataset_distance(old, QUICKDRAW) > MAX_DISTANCE


@pytest.mark.parametrize("changes", [{"weights": "x" * 64}, {"backbone": "resnet18"}], ids=str)
def test_what_only_one_networks_figures_can_be_compared_in_is_left_out_for_two(changes: dict[str, str]) -> None:
    backbone, weights = changes.get("backbone", "mobilenetv2_100"), changes.get("weights", HYMENOPTERA.weights)
    elsewhere = FeatureSpread(4.5, 0.9, 2.0)
    other = DatasetView(replace(HYMENOPTERA.measured, backbone=backbone, spread=elsewhere), weights)
    compared = 1 + sum(not term.same_network for term in DISTANCE_TERMS.values())
    assert dataset_distance(HYMENOPTERA, other) == pytest.approx((NETWORK_MISMATCH_DISTANCE**2 / compared) ** 0.5)


def test_worse_than_chance_is_as_good_as_chance() -> None:
    assert dataset_distance(seen(10, 9, 0.2, 0.1, 0.1), seen(10, 9, 0.2, 0.1, 0.1)) == 0
    worse, chance = seen(4, 9, 0.25, 0.2, 0.2), seen(4, 9, 0.25, 0.2, 0.25)
    assert (
        DISTANCE_TERMS["above_chance"].read(worse.measured) == DISTANCE_TERMS["above_chance"].read(chance.measured) == 0
    )
