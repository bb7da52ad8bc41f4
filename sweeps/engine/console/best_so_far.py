"""Best so far: the leading trial or finalist of a running sweep, how sure its accuracy is, and what may be as good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean

from sweeps.reporting.formatting import format_interval, pluralize
from xfer.measure.intervals import CONFIDENCE, wilson_interval

QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Bounds a two-sided interval for a difference of two accuracies."""

MAX_NAMED = 3
"""Maximum number of tied trials that are named; the report lists all."""


@dataclass(frozen=True)
class Best:
    """The leader among finished runs."""

    name: str
    """Name of a trial; of the search trial if its final runs are counted together."""
    mean: float
    """Validation accuracy, in [0, 1]; the mean over final runs."""
    low: float
    high: float
    """95% interval over images (Wilson 1927), which leaves out the variation over seeds."""
    runs: int
    tied: tuple[str, ...]
    """Others that are not shown to be worse, the most accurate first."""
    others: int

    def describe(self, images: int) -> str:
        """Return the interval, what it is based on, and what is tied, as the end of a sentence."""
        runs = f", mean of {pluralize(self.runs, 'run')}" if self.runs > 1 else ""
        interval = f"{format_interval(self.low, self.high)}; {pluralize(images, 'image')}{runs}"
        if not self.others:
            return f"({interval})"
        if not self.tied:
            return f"({interval}), better than all others"
        more = ", ..." if len(self.tied) > MAX_NAMED else ""
        named = f"{', '.join(self.tied[:MAX_NAMED])}{more}"
        return f"({interval}), not shown to be better than {len(self.tied)} of {self.others} others ({named})"


def best_so_far(accuracies: Mapping[str, float], images: int) -> Best | None:
    """Return the leader.

    Answers of single images are not compared, so a difference counts as shown only if it exceeds that of two
    independent samples of images; the report, which pairs them, will separate more.

    Args:
        accuracies: validation accuracy of each finished run, by trial; final runs of one finalist, as in `0007-s1`, are
            averaged.
        images: number of validation images.

    Returns:
        None if no run has finished.
    """
    runs: dict[str, list[float]] = {}
    for trial, accuracy in accuracies.items():
        runs.setdefault(trial.partition("-s")[0], []).append(accuracy)
    if not runs or not images:
        return None
    means = {name: fmean(values) for name, values in runs.items()}
    leader = max(means, key=lambda name: means[name])
    mean = means[leader]
    low, high = wilson_interval(mean, images)
    tied = [
        name
        for name, other in sorted(means.items(), key=lambda item: -item[1])
        if name != leader and mean - other <= QUANTILE * math.sqrt((mean * (1 - mean) + other * (1 - other)) / images)
    ]
    return Best(leader, mean, low, high, len(runs[leader]), tuple(tied), len(means) - 1)
