"""How sure an accuracy is, when a few seeds were all tested on much the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from xfer.records import Evaluation

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """An accuracy in [0, 1], its 95% interval, and what it was counted on."""

    mean: float
    low: float
    high: float
    images: int
    """How many different images were looked at."""
    seeds: int

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals share a value; if so, neither is shown to be the better one."""
        return self.low <= other.high and other.low <= self.high


def estimate_accuracy(seed: ArrayLike, image: ArrayLike, correct: ArrayLike) -> Estimate:
    """Mean and 95% interval of the accuracy seen in observations (seed, image, correct), each an array of length N.

    The interval is meant to cover the accuracy that the same recipe would reach with other seeds on other images from
    the same source. Three networks that look at the same 100 images are not 300 images: they err on the same ones. So
    the variance is clustered by image and by seed (Cameron, Gelbach and Miller, 2011), turned into the number of
    independent images that would be as informative (Korn and Graubard, 1998), and given to Wilson's score interval
    (1927), which keeps a width even where every answer was right. With one seed it is exactly Wilson's interval, and
    covers the chance of the images only.

    It does not cover a recipe that was chosen because of these very images, nor images from somewhere else.
    """
    hits = np.asarray(correct, dtype=float)
    if hits.size == 0:
        raise ValueError("an accuracy needs at least one observation, and none came")
    seeds, seed_index = np.unique(np.asarray(seed), return_inverse=True)
    images, image_index = np.unique(np.asarray(image), return_inverse=True)
    mean = float(hits.mean())

    variance, freedom = _variance(hits - mean, seed_index, len(seeds), image_index)
    # Where all answers agree the variance is 0, and the images are what is left to count.
    effective = min(mean * (1 - mean) / variance, len(images)) if variance > 0 else len(images)
    low, high = _wilson(mean, effective, float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)))
    return Estimate(mean, low, high, len(images), len(seeds))


def pooled_estimate(evaluations: Sequence[Evaluation]) -> Estimate:
    """The accuracy over evaluations of one recipe, each from a seed of its own; their images may differ or repeat."""
    sizes = [len(evaluation.images) for evaluation in evaluations]
    return estimate_accuracy(
        seed=np.repeat(np.arange(len(evaluations)), sizes),
        image=np.concatenate([evaluation.images for evaluation in evaluations]),
        correct=np.concatenate([evaluation.correct for evaluation in evaluations]),
    )


def _variance(errors: NDArray[np.float64], seed: NDArray[Any], seeds: int, image: NDArray[Any]) -> tuple[float, float]:
    """The two-way clustered variance of a mean, and the degrees of freedom with which it is known.

    With 3 seeds the part due to seeds is a guess from 3 numbers. Satterthwaite's (1946) degrees of freedom let that
    part, and only that part, widen the interval: infinitely many where seeds make no difference, or where there is
    only one of them.
    """
    by_each = float(np.sum(errors**2))
    by_image = float(np.sum(np.bincount(image, errors) ** 2))
    by_seed = float(np.sum(np.bincount(seed, errors) ** 2)) * seeds / (seeds - 1) if seeds > 1 else by_each
    due_to_seeds = max(by_seed - by_each, 0.0)
    # The difference can come out too small by chance; no observation is worth more than an independent one.
    variance = max(by_image + by_seed - by_each, by_image, by_each)
    freedom = (seeds - 1) * (variance / due_to_seeds) ** 2 if due_to_seeds > 0 else np.inf
    return variance / errors.size**2, freedom


def _wilson(mean: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval (1927) around `mean` of `n` independent observations; n need not be whole."""
    weight = quantile**2 / n
    centre = (mean + weight / 2) / (1 + weight)
    half_width = np.sqrt(weight * mean * (1 - mean) + weight**2 / 4) / (1 + weight)
    # It always holds the mean and stays in [0, 1]; rounding must not say otherwise.
    return max(0.0, min(mean, float(centre - half_width))), min(1.0, max(mean, float(centre + half_width)))
