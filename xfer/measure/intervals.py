"""Confidence intervals of accuracies."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95
"""Coverage that every interval aims for."""


def wilson_interval(mean: float, images: int) -> tuple[float, float]:
    """Return Wilson's 95% interval for an accuracy on some independent images.

    >>> [round(end, 3) for end in wilson_interval(0.5, 2)]
    [0.095, 0.905]

    Args:
        mean: the accuracy, in [0, 1].
        images: number of images, at least 1.
    """
    return wilson_score(mean, images, NormalDist().inv_cdf((1 + CONFIDENCE) / 2))


def wilson_score(mean: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) for the mean of `n` independent observations; n need not be an integer."""
    weight = quantile**2 / n
    centre = (mean + weight / 2) / (1 + weight)
    half_width = sqrt(weight * mean * (1 - mean) + weight**2 / 4) / (1 + weight)
    # In exact arithmetic the interval contains the mean and lies in [0, 1]; guard against rounding.
    return max(0.0, min(mean, centre - half_width)), min(1.0, max(mean, centre + half_width))
