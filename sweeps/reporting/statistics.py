"""Confidence intervals for accuracies of a few seeds that were evaluated on largely the same images.

Differences between recipes are in `sweeps.reporting.comparison` and can be imported from here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeps.reporting.comparison import BestComparison, Difference, Outlook, compare_with_best, difference, outlook
from xfer.measure.intervals import CONFIDENCE, wilson_score
from xfer.records import Evaluation

__all__ = [
    "CONFIDENCE",
    "BestComparison",
    "Difference",
    "Estimate",
    "Outlook",
    "compare_with_best",
    "difference",
    "estimate_accuracy",
    "noise_estimate",
    "outlook",
    "pooled_estimate",
]


@dataclass(frozen=True)
class Estimate:
    """An accuracy in [0, 1], its 95% interval and its sample size."""

    mean: float
    low: float
    high: float
    images: int
    """Number of distinct images."""
    seeds: int
    images_per_seed: tuple[int, int] | None = None
    """Smallest and largest number of images of one seed; None if every seed saw all `images`."""

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals share a value; if so, neither estimate is shown to be better."""
        return self.low <= other.high and other.low <= self.high


def estimate_accuracy(seed: ArrayLike, image: ArrayLike, correct: ArrayLike) -> Estimate:
    """Estimate mean and 95% interval of an accuracy from N observations.

    The interval aims to cover the accuracy that the same recipe would reach with other seeds on other images from the
    same source. Three networks evaluated on the same 100 images do not amount to 300 images: they fail on the same
    ones. The variance is therefore clustered by image and by seed (Cameron, Gelbach and Miller, 2011), converted to
    the number of independent images that would be as informative (Korn and Graubard, 1998), and passed to Wilson's
    score interval (1927), which keeps a positive width even if every answer is correct. With one seed the result is
    exactly Wilson's interval and covers only the sampling of images.

    The interval covers neither the selection of a recipe on these very images nor images from another source.

    Args:
        seed: shape [N], the seed behind each observation.
        image: shape [N], the image of each observation.
        correct: shape [N], whether the prediction was correct.

    Raises:
        ValueError: N is 0.
    """
    hits = np.asarray(correct, dtype=float)
    if hits.size == 0:
        raise ValueError("estimating an accuracy needs at least one observation, got 0")
    seeds, seed_index = np.unique(np.asarray(seed), return_inverse=True)
    images, image_index = np.unique(np.asarray(image), return_inverse=True)
    mean = float(hits.mean())

    variance, degrees_of_freedom = _variance(hits - mean, seed_index, len(seeds), image_index)
    # If all answers agree, the variance is 0: use the number of images.
    effective = min(mean * (1 - mean) / variance, len(images)) if variance > 0 else len(images)
    low, high = wilson_score(mean, effective, _quantile(degrees_of_freedom))
    sizes = np.bincount(seed_index)
    per_seed = None if sizes.min() == len(images) else (int(sizes.min()), int(sizes.max()))
    return Estimate(mean, low, high, len(images), len(seeds), per_seed)


def pooled_estimate(evaluations: Sequence[Evaluation]) -> Estimate:
    """Estimate the accuracy of one recipe from evaluations of several seeds.

    Args:
        evaluations: one per seed, at least one; their images may differ or repeat.
    """
    sizes = [len(evaluation.images) for evaluation in evaluations]
    return estimate_accuracy(
        seed=np.repeat(np.arange(len(evaluations)), sizes),
        image=np.concatenate([evaluation.images for evaluation in evaluations]),
        correct=np.concatenate([evaluation.correct for evaluation in evaluations]),
    )


def noise_estimate(evaluations: Sequence[Evaluation]) -> Estimate | None:
    """Estimate the accuracy of one recipe under noise from evaluations of several seeds.

    An image counts once, although it is evaluated under every kind of noise, and the variance between seeds is added to
    that between images. The interval is rather too wide than too narrow.

    Args:
        evaluations: one per seed, on the same images; those without noise are ignored.

    Returns:
        None if no evaluation has noise.
    """
    measured = [evaluation for evaluation in evaluations if evaluation.noisy_accuracy is not None]
    if not measured:
        return None
    values = np.array([evaluation.noisy_accuracy for evaluation in measured], dtype=float)
    images, seeds = min(evaluation.noisy_images for evaluation in measured), len(values)
    mean = float(values.mean())
    by_image = mean * (1 - mean) / images
    by_seed = float(values.var(ddof=1)) / seeds if seeds > 1 else 0.0
    effective = images * by_image / (by_image + by_seed) if by_image > 0 else images
    degrees_of_freedom = (seeds - 1) * ((by_image + by_seed) / by_seed) ** 2 if by_seed > 0 else np.inf
    low, high = wilson_score(mean, effective, _quantile(degrees_of_freedom))
    return Estimate(mean, low, high, images, seeds)


def _variance(errors: NDArray[np.float64], seed: NDArray[Any], seeds: int, image: NDArray[Any]) -> tuple[float, float]:
    """Two-way clustered variance of a mean, and its degrees of freedom.

    With 3 seeds, the variance component of the seeds is estimated from 3 numbers. Satterthwaite's (1946) degrees of
    freedom let that component, and only that one, widen the interval. They are infinite if seeds make no difference or
    if there is only one seed.
    """
    by_observation = float(np.sum(errors**2))
    by_image = float(np.sum(np.bincount(image, errors) ** 2))
    by_seed = float(np.sum(np.bincount(seed, errors) ** 2)) * seeds / (seeds - 1) if seeds > 1 else by_observation
    due_to_seeds = max(by_seed - by_observation, 0.0)
    # By chance the difference can be too small; no observation is worth more than an independent one.
    variance = max(by_image + by_seed - by_observation, by_image, by_observation)
    degrees_of_freedom = (seeds - 1) * (variance / due_to_seeds) ** 2 if due_to_seeds > 0 else np.inf
    return variance / errors.size**2, degrees_of_freedom


def _quantile(degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution that bounds a two-sided interval; the normal one for infinite degrees."""
    if np.isinf(degrees_of_freedom):
        return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    from scipy import special  # takes a fifth of a second, and intervals over images only do not need it

    return float(special.stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
