"""Confidence intervals: compared with references, by simulation, and as properties of arbitrary data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sweeps.reporting.statistics import Estimate, estimate_accuracy, noise_estimate, pooled_estimate
from tests.reporting.conftest import an_evaluation
from xfer.records import CorruptionScore, Evaluation

observations = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans()), min_size=1, max_size=80, unique_by=lambda o: o[:2]
)


def estimate_of(answers: NDArray[np.bool_]) -> Estimate:
    """Estimate from answers of shape [seeds, images], where every seed saw every image."""
    seed, image = np.indices(answers.shape)
    return estimate_accuracy(seed.ravel(), image.ravel(), answers.ravel())


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 40), (37, 40), (40, 40), (149, 153), (1, 1000)])
def test_one_seed_gives_exactly_the_wilson_interval(right: int, images: int) -> None:
    estimate = pooled_estimate([an_evaluation("test", right, images)])
    reference = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert estimate == Estimate(right / images, estimate.low, estimate.high, images, seeds=1)


def test_seeds_that_agree_on_every_image_count_as_one() -> None:
    one_seed, three_seeds = (pooled_estimate([an_evaluation("test", 90)] * seeds) for seeds in (1, 3))
    assert (three_seeds.low, three_seeds.high) == pytest.approx((one_seed.low, one_seed.high))
    assert (three_seeds.images, three_seeds.seeds) == (100, 3)


def under_noise(correct: int, images: int) -> Evaluation:
    """An evaluation under two kinds of noise, each on `images` of 1,000 images."""
    scores = (CorruptionScore("blur", 1, images, correct), CorruptionScore("grey", 1, images, correct))
    return replace(an_evaluation("test", 900, 1_000), noisy=scores)


@pytest.mark.parametrize(("right", "images"), [(0, 40), (37, 40), (40, 40), (320, 500)])
def test_the_interval_under_noise_rests_on_the_images_that_were_evaluated_under_noise(right: int, images: int) -> None:
    estimate = noise_estimate([under_noise(right, images)])
    reference = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert (estimate.mean, estimate.images, estimate.seeds) == (right / images, images, 1)


def test_seeds_that_differ_under_noise_make_the_interval_wider() -> None:
    agree = noise_estimate([under_noise(300, 500)] * 3)
    differ = noise_estimate([under_noise(correct, 500) for correct in (250, 300, 350)])
    assert agree is not None
    assert differ is not None
    assert differ.mean == agree.mean
    assert (differ.images, differ.seeds) == (500, 3)
    assert differ.low < agree.low < agree.high < differ.high


def test_without_noise_there_is_no_estimate_under_noise() -> None:
    assert noise_estimate([an_evaluation("test", 90)]) is None
    assert noise_estimate([]) is None


def test_redrawn_validation_sets_count_as_more_images() -> None:
    same = pooled_estimate([an_evaluation("val", 90, first=0) for _ in range(3)])
    redrawn = pooled_estimate([an_evaluation("val", 90, first=100 * seed) for seed in range(3)])
    assert redrawn.images == 300
    assert redrawn.high - redrawn.low < same.high - same.low


def test_seeds_that_disagree_widen_the_interval() -> None:
    agreeing = pooled_estimate([an_evaluation("test", right) for right in (80, 80, 80)])
    disagreeing = pooled_estimate([an_evaluation("test", right) for right in (60, 80, 100)])
    assert disagreeing.mean == pytest.approx(agreeing.mean)
    assert disagreeing.high - disagreeing.low > agreeing.high - agreeing.low


def test_a_perfect_score_still_has_an_interval() -> None:
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
    """Simulates crossed random effects of images and seeds on the logit scale."""
    rng = np.random.default_rng(0)
    total_spread = np.hypot(image_spread, seed_spread)
    truth = float(np.mean(1 / (1 + np.exp(-level - total_spread * rng.standard_normal(200_000)))))
    covered = 0
    for _ in range(300):
        logits = level + image_spread * rng.standard_normal((1, images)) + seed_spread * rng.standard_normal((seeds, 1))
        estimate = estimate_of(rng.random(logits.shape) < 1 / (1 + np.exp(-logits)))
        covered += estimate.low <= truth <= estimate.high
    assert covered / 300 >= 0.9


@given(observations)
def test_an_interval_lies_in_0_to_1_and_contains_its_mean(sample: list[tuple[int, int, bool]]) -> None:
    seed, image, correct = zip(*sample, strict=True)
    estimate = estimate_accuracy(seed, image, correct)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.low < estimate.high
    assert estimate.images == len(set(image))
    assert estimate.seeds == len(set(seed))


@given(right=st.integers(0, 30), wrong=st.integers(0, 30), times=st.integers(2, 5))
def test_an_interval_shrinks_with_more_images(right: int, wrong: int, times: int) -> None:
    images = right + wrong
    if images == 0:
        return
    few, many = (pooled_estimate([an_evaluation("test", n * right, n * images)]) for n in (1, times))
    assert many.high - many.low < few.high - few.low


def test_intervals_overlap_if_they_share_a_value() -> None:
    low, middle, high = (Estimate(m, m - 0.1, m + 0.1, 10, 1) for m in (0.2, 0.35, 0.5))
    assert low.overlaps(middle)
    assert middle.overlaps(high)
    assert not low.overlaps(high)
    assert not high.overlaps(low)


def test_an_estimate_without_observations_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one observation"):
        estimate_accuracy([], [], [])
