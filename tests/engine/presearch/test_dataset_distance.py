"""How far apart two data sets are: nothing for the same, more for those that want other recipes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from sweeps.engine.presearch.dataset_distance import LIMIT, OTHER_NETWORK, TERMS, Seen, distance
from xfer.advice.dataset_profile import Layer, Measurement
from xfer.measure.feature_spread import Spread


def seen(
    classes: int, each: int, chance: float, early: float, late: float, spread: Spread | None = None, **changes: Any
) -> Seen:
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
        "early": (Layer(3, 32, early - 0.1, 0.02, 0.0), Layer(4, 96, early, 0.02, 0.0)),
        "late": Layer("late", 1280, late, 0.02, 0.0),
        "gain": late - early,
        "gain_error": 0.02,
        "margin": 0.0,
        "margin_error": 0.02,
        "blocks": 17,
        "drops_early": True,
        "spread": spread,
    }
    return Seen(Measurement(**{**plain, **changes}), "w" * 64)


# As measured with MobileNetV2 at 128 px, rounded.
HYMENOPTERA = seen(2, 97, 0.503, 0.826, 0.897, Spread(45.3, 0.469, 40.2))
DOGS_VS_CATS = seen(2, 120, 0.5, 0.833, 0.958, Spread(52.4, 0.471, 33.2))
QUICKDRAW = seen(10, 2800, 0.1, 0.804, 0.792, Spread(26.1, 0.393, 18.3))
REAL = (HYMENOPTERA, DOGS_VS_CATS, QUICKDRAW)


def test_the_same_data_is_at_distance_0_and_the_way_back_is_as_long() -> None:
    for one, other in product(REAL, REAL):
        assert (distance(one, other) == 0) == (one is other)
        assert distance(one, other) == distance(other, one)


def test_photos_of_animals_are_alike_and_sketches_are_not() -> None:
    assert distance(HYMENOPTERA, DOGS_VS_CATS) == pytest.approx(0.46, abs=0.01)
    assert distance(HYMENOPTERA, DOGS_VS_CATS) < LIMIT
    assert min(distance(QUICKDRAW, HYMENOPTERA), distance(QUICKDRAW, DOGS_VS_CATS)) > 1.3 > LIMIT


def test_counts_are_compared_by_their_ratio() -> None:
    few, more, most = (seen(10, each, 0.1, 0.5, 0.8) for each in (10, 100, 1000))
    assert distance(few, more) == pytest.approx(distance(more, most))
    assert distance(few, most) == pytest.approx(2 * distance(few, more))


def test_a_difference_of_one_unit_counts_one_among_all_that_is_compared() -> None:
    smaller = Seen(replace(HYMENOPTERA.measured, image_size=64), HYMENOPTERA.weights)
    assert distance(HYMENOPTERA, smaller) == pytest.approx((1 / (1 + len(TERMS))) ** 0.5)


def test_what_one_was_not_measured_in_is_left_out() -> None:
    old = Seen(replace(HYMENOPTERA.measured, spread=None), HYMENOPTERA.weights)
    assert distance(HYMENOPTERA, old) == 0
    assert distance(old, QUICKDRAW) > LIMIT


@pytest.mark.parametrize("changes", [{"weights": "x" * 64}, {"backbone": "resnet18"}], ids=str)
def test_what_only_one_networks_figures_can_be_compared_in_is_left_out_for_two(changes: dict[str, str]) -> None:
    backbone, weights = changes.get("backbone", "mobilenetv2_100"), changes.get("weights", HYMENOPTERA.weights)
    elsewhere = Spread(4.5, 0.9, 2.0)
    other = Seen(replace(HYMENOPTERA.measured, backbone=backbone, spread=elsewhere), weights)
    compared = 1 + sum(not term.same_network for term in TERMS.values())
    assert distance(HYMENOPTERA, other) == pytest.approx((OTHER_NETWORK**2 / compared) ** 0.5)


def test_worse_than_chance_is_as_good_as_chance() -> None:
    assert distance(seen(10, 9, 0.2, 0.1, 0.1), seen(10, 9, 0.2, 0.1, 0.1)) == 0
    worse, chance = seen(4, 9, 0.25, 0.2, 0.2), seen(4, 9, 0.25, 0.2, 0.25)
    assert TERMS["above_chance"].read(worse.measured) == TERMS["above_chance"].read(chance.measured) == 0
