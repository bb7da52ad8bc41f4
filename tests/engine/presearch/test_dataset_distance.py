"""The distance of two data sets is 0 for the same data and large for data that need different recipes."""

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


def make_view(
    classes: int,
    per_class: int,
    chance: float,
    early: float,
    late: float,
    spread: FeatureSpread | None = None,
    **changes: Any,
) -> DatasetView:
    """A data set with the given measurements, and defaults for all that are not compared."""
    fields = {
        "backbone": "mobilenetv2_100",
        "image_size": 128,
        "classes": classes,
        "images": classes * per_class,
        "images_per_class": (per_class, per_class, per_class),
        "measured_images": min(2000, classes * per_class),
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
    return DatasetView(DatasetProfile(**{**fields, **changes}), "w" * 64)


# Measured with MobileNetV2 at 128 px, rounded.
HYMENOPTERA = make_view(2, 97, 0.503, 0.826, 0.897, FeatureSpread(45.3, 0.469, 40.2))
DOGS_VS_CATS = make_view(2, 120, 0.5, 0.833, 0.958, FeatureSpread(52.4, 0.471, 33.2))
QUICKDRAW = make_view(10, 2800, 0.1, 0.804, 0.792, FeatureSpread(26.1, 0.393, 18.3))
REAL = (HYMENOPTERA, DOGS_VS_CATS, QUICKDRAW)


def test_the_same_data_has_distance_0_and_the_distance_is_symmetric() -> None:
    for one, other in product(REAL, REAL):
        assert (dataset_distance(one, other) == 0) == (one is other)
        assert dataset_distance(one, other) == dataset_distance(other, one)


def test_photos_of_animals_are_similar_and_sketches_are_not() -> None:
    assert dataset_distance(HYMENOPTERA, DOGS_VS_CATS) == pytest.approx(0.46, abs=0.01)
    assert dataset_distance(HYMENOPTERA, DOGS_VS_CATS) < MAX_DISTANCE
    assert min(dataset_distance(QUICKDRAW, HYMENOPTERA), dataset_distance(QUICKDRAW, DOGS_VS_CATS)) > 1.3 > MAX_DISTANCE


def test_counts_are_compared_by_their_ratio() -> None:
    few, more, most = (make_view(10, count, 0.1, 0.5, 0.8) for count in (10, 100, 1000))
    assert dataset_distance(few, more) == pytest.approx(dataset_distance(more, most))
    assert dataset_distance(few, most) == pytest.approx(2 * dataset_distance(few, more))


def test_a_difference_of_one_unit_counts_1_among_all_terms() -> None:
    smaller = DatasetView(replace(HYMENOPTERA.measured, image_size=64), HYMENOPTERA.weights)
    assert dataset_distance(HYMENOPTERA, smaller) == pytest.approx((1 / (1 + len(DISTANCE_TERMS))) ** 0.5)


def test_terms_that_were_not_measured_for_both_are_omitted() -> None:
    old = DatasetView(replace(HYMENOPTERA.measured, spread=None), HYMENOPTERA.weights)
    assert dataset_distance(HYMENOPTERA, old) == 0
    assert dataset_distance(old, QUICKDRAW) > MAX_DISTANCE


@pytest.mark.parametrize("changes", [{"weights": "x" * 64}, {"backbone": "resnet18"}], ids=str)
def test_terms_that_need_the_same_network_are_omitted_for_different_ones(changes: dict[str, str]) -> None:
    backbone, weights = changes.get("backbone", "mobilenetv2_100"), changes.get("weights", HYMENOPTERA.weights)
    spread = FeatureSpread(4.5, 0.9, 2.0)
    other = DatasetView(replace(HYMENOPTERA.measured, backbone=backbone, spread=spread), weights)
    compared = 1 + sum(not term.same_network for term in DISTANCE_TERMS.values())
    assert dataset_distance(HYMENOPTERA, other) == pytest.approx((NETWORK_MISMATCH_DISTANCE**2 / compared) ** 0.5)


def test_worse_than_chance_is_as_good_as_chance() -> None:
    assert dataset_distance(make_view(10, 9, 0.2, 0.1, 0.1), make_view(10, 9, 0.2, 0.1, 0.1)) == 0
    worse, chance = make_view(4, 9, 0.25, 0.2, 0.2), make_view(4, 9, 0.25, 0.2, 0.25)
    assert (
        DISTANCE_TERMS["above_chance"].read(worse.measured) == DISTANCE_TERMS["above_chance"].read(chance.measured) == 0
    )
