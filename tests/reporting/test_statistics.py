"""How sure an accuracy is: against references, by simulation, and for any data at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sweeps.reporting.statistics import Estimate, estimate_accuracy, pooled_estimate
from tests.reporting.conftest import an_evaluation

observations = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans()), min_size=1, max_size=80, unique_by=lambda o: o[:2]
)


def estimate_of(answers: NDArray[np.bool_]) -> Estimate:
    """The estimate from answers [seeds, images], every seed having seen every image."""
    seed, image = np.indices(answers.shape)
    return estimate_accuracy(seed.ravel(), image.ravel(), answers.ravel())


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 40), (37, 40), (40, 40), (149, 153), (1, 1000)])
def test_one_seed_gives_exactly_the_wilson_interval(right: int, images: int) -> None:
    estimate = pooled_estimate([an_evaluation("test", right, images)])
    reference = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert estimate == Estimate(right / images, estimate.low, estimate.high, images, seeds=1)


def test_seeds_that_agree_on_every_image_count_as_one() -> None:
    once, thrice = (pooled_estimate([an_evaluation("test", 90)] * seeds) for seeds in (1, 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.images, thrice.seeds) == (100, 3)


def test_validation_parts_drawn_anew_count_as_more_images() -> None:
    same = pooled_estimate([an_evaluation("val", 90, first=0) for _ in range(3)])
    anew = pooled_estimate([an_evaluation("val", 90, first=100 * seed) for seed in range(3)])
    assert anew.images == 300
    assert anew.high - anew.low < same.high - same.low


def test_seeds_that_disagree_widen_the_interval() -> None:
    alike = pooled_estimate([an_evaluation("test", right) for right in (80, 80, 80)])
    apart = pooled_estimate([an_evaluation("test", right) for right in (60, 80, 100)])
    assert apart.mean == pytest.approx(alike.mean)
    assert apart.high - apart.low > alike.high - alike.low


def test_all_right_is_not_all_sure() -> None:
    estimate = pooled_estimate([an_evaluation("test", 50, 50)] * 3)
    assert estimate.high == estimate.mean == 1.0
    assert estimate.low == pytest.approx(stats.binomtest(50, 50).proportion_ci(method="wilson").low)


@pytest.mark.parametrize(
    ("seeds", "images", "level", "image_spread", "seed_spread"),
    [(3, 150, 3.0, 2.0, 0.2), (3, 50, 3.0, 2.0, 0.6), (2, 100, 2.0, 2.0, 0.5), (5, 200, 1.0, 1.0, 0.3)],
)
def test_the_interval_covers_new_seeds_and_new_images(
    seeds: int, images: int, level: float, image_spread: float, seed_spread: float
) -> None:
    """Crossed random effects: each image has its difficulty, each seed its luck, both on the logit scale."""
    chance = np.random.default_rng(0)
    total_spread = np.hypot(image_spread, seed_spread)
    truth = float(np.mean(1 / (1 + np.exp(-level - total_spread * chance.standard_normal(200_000)))))
    covered = 0
    for _ in range(300):
        logits = (
            level
            + image_spread * chance.standard_normal((1, images))
            + seed_spread * chance.standard_normal((seeds, 1))
        )
        estimate = estimate_of(chance.random(logits.shape) < 1 / (1 + np.exp(-logits)))
        covered += estimate.low <= truth <= estimate.high
    assert covered / 300 >= 0.9


@given(observations)
def test_an_interval_lies_in_0_to_1_and_holds_its_mean(seen: list[tuple[int, int, bool]]) -> None:
    seed, image, correct = zip(*seen, strict=True)
    estimate = estimate_accuracy(seed, image, correct)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.low < estimate.high
    assert estimate.images == len(set(image))
    assert estimate.seeds == len(set(seed))


@given(right=st.integers(0, 30), wrong=st.integers(0, 30), times=st.integers(2, 5))
def test_an_interval_shrinks_with_the_images(right: int, wrong: int, times: int) -> None:
    images = right + wrong
    if images == 0:
        return
    few, many = (pooled_estimate([an_evaluation("test", n * right, n * images)]) for n in (1, times))
    assert many.high - many.low < few.high - few.low


def test_intervals_overlap_where_they_share_a_value() -> None:
    low, middle, high = (Estimate(m, m - 0.1, m + 0.1, 10, 1) for m in (0.2, 0.35, 0.5))
    assert low.overlaps(middle)
    assert middle.overlaps(high)
    assert not low.overlaps(high)
    assert not high.overlaps(low)


def test_no_observation_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="at least one observation"):
        estimate_accuracy([], [], [])
