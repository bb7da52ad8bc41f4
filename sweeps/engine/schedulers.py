"""Schedulers: which trials continue. Pure functions over learning curves; `trials/ray_tune.py` adapts them to Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LearningCurve:
    """The scores of a trial so far."""

    values: Sequence[float | None]
    """Score after each epoch, from epoch 1, higher is better; None if it was not measured."""
    last_unfreeze_epoch: int = 0
    """Last epoch in which the trial's strategy unfreezes a part of the network. Scores up to this epoch are not
    comparable with those of other trials."""
    ended: bool = False
    """Whether the trial has ended, with whatever status."""
    epochs: int = 0
    """Number of epochs of the whole trial; 0 if the trial is still to come."""

    @property
    def is_comparable(self) -> bool:
        """Whether the trial has a comparable score or will never have one."""
        return self.ended or len(self.values) >= self._first_epoch

    @property
    def first(self) -> float | None:
        """Score after `FIRST_FRACTION` of the trial, or later if it is not comparable yet; None if there is none."""
        return self.value_at(self._first_epoch)

    @property
    def _first_epoch(self) -> int:
        return max(self.last_unfreeze_epoch + 1, self.epoch_at(FIRST_FRACTION))

    def value_at(self, epoch: int) -> float | None:
        """Return the comparable score after an epoch, counted from 1; None if there is none."""
        return self.values[epoch - 1] if self.last_unfreeze_epoch < epoch <= len(self.values) else None

    def epoch_at(self, fraction: float) -> int:
        """Return the epoch, counted from 1, that completes a fraction of the trial, rounded to the nearest."""
        return max(1, math.floor(fraction * self.epochs + 0.5))


TrialHistory = Mapping[str, LearningCurve]
"""Learning curves of all trials of a sweep, by name; empty ones for trials that are still to come."""

Scheduler = Callable[[TrialHistory, str], bool | None]
"""Returns whether a trial continues after its newest epoch. None: not decided yet; the trial waits, without a process,
until others have come as far. Trials of different lengths are compared at equal fractions of their lengths."""

FIRST_FRACTION = 1 / 8
"""Fraction of a trial after which `one_epoch_top_k` compares: one epoch of eight."""


def none(history: TrialHistory, trial: str) -> bool:
    """Never stop a trial."""
    return True


def asha(history: TrialHistory, trial: str, first_rung: int | None = None, reduction: int = 3) -> bool:
    """Asynchronous successive halving (Li et al. 2020, https://arxiv.org/abs/1810.05934), the stopping variant.

    A trial that reaches a rung continues if it is among the best 1/reduction of those that reached it before. Decides
    as Ray's `AsyncHyperBandScheduler` does, except that no trial is stopped after its last epoch.

    Args:
        history: learning curves of all trials.
        trial: name of the trial.
        first_rung: epoch of the first rung; later ones follow at first_rung * reduction**k. Defaults to a quarter of
            the epochs: while the learning rate is still warming up, a score says little about the final one.
        reduction: inverse of the fraction of trials that continues at each rung.
    """
    mine, epochs = history[trial], history[trial].epochs
    first_rung = first_rung or math.ceil(epochs / 4)
    epoch = len(mine.values)
    value = mine.value_at(epoch)
    if value is None or epoch >= epochs or epoch not in _rungs(epochs, first_rung, reduction):
        return True
    others = [
        score
        for name, curve in history.items()
        if name != trial and (score := curve.value_at(curve.epoch_at(epoch / epochs))) is not None
    ]
    return not others or value >= float(np.percentile(others, 100 * (1 - 1 / reduction)))


def median(history: TrialHistory, trial: str, min_trials: int = 3) -> bool:
    """Median stopping rule (Golovin et al. 2017, https://doi.org/10.1145/3097983.3098043).

    A trial stops if its best score so far is below the median, over the other trials, of their mean score up to the
    same fraction of their lengths. Decides as Ray's `MedianStoppingRule` does, except that no trial is stopped after
    its last epoch.

    Args:
        history: learning curves of all trials.
        trial: name of the trial.
        min_trials: number of other trials that must have come as far before any is stopped.
    """
    mine, epochs = history[trial], history[trial].epochs
    epoch = len(mine.values)
    if mine.value_at(epoch) is None or epoch >= epochs:
        return True
    means = []
    for name, curve in history.items():
        last = curve.epoch_at(epoch / epochs)
        if name != trial and curve.value_at(last) is not None:
            values = [value for past in range(1, last + 1) if (value := curve.value_at(past)) is not None]
            means.append(float(np.mean(values)))
    best = max(value for past in range(1, epoch + 1) if (value := mine.value_at(past)) is not None)
    return len(means) < min_trials or best >= float(np.median(means))


def one_epoch_top_k(history: TrialHistory, trial: str) -> bool | None:
    """Train all trials for one epoch and only the best to the end (baseline of Egele et al. 2023, arXiv 2307.15422).

    That is one epoch of eight; longer trials get the same fraction of their length, and a network that is frozen at
    first gets its frozen epochs as well. A trial then waits until every other has come as far or has ended, and
    continues if fewer than `top_k_count` of them are better; the earlier trial wins a tie. Known-good recipes get no
    exemption. A sampler learns of a trial when it ends, so it learns nothing until all trials have waited. On the
    authors' benchmarks this equals successive halving at a tenth of the cost, so any other scheduler has to beat it.
    """
    mine = history[trial]
    if mine.first is None or len(mine.values) >= mine.epochs:
        return True
    if not all(curve.is_comparable for curve in history.values()):
        return None
    scores = {name: curve.first for name, curve in history.items() if curve.first is not None}
    best = sorted(scores, key=lambda name: (-scores[name], name))
    return trial in best[: top_k_count(len(history))]


def top_k_count(trials: int) -> int:
    """Return how many of `trials` trials `one_epoch_top_k` trains to the end: an eighth, and at least three.

    With 24 trials of 8 epochs, 45 of 192 epochs are trained. Egele et al. leave the number open.
    """
    return max(3, math.ceil(trials / 8))


SCHEDULERS: dict[str, Scheduler] = {f.__name__: f for f in (asha, median, none, one_epoch_top_k)}
"""All schedulers, by name."""

KEEPS_KNOWN_GOOD = ("asha", "median", "none")
"""Schedulers under which known-good recipes always run to the end, because strategies are compared by them."""


def _rungs(epochs: int, first: int, reduction: int) -> set[int]:
    rungs = set()
    while first <= epochs:
        rungs.add(first)
        first *= reduction
    return rungs
