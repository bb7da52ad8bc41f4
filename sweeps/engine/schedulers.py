"""Schedulers: who goes on. Pure functions over what is stored, behind a thin Tune scheduler (see tuning.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LearningCurve:
    """How far a trial has come."""

    values: Sequence[float | None]
    """The score after each epoch, higher is better, the first after epoch 1; None where it was not measured."""
    last_unfreeze_epoch: int = 0
    """Its strategy's: values up to this epoch say nothing about what it will come to, and are neither judged nor held
    against others."""
    ended: bool = False
    """Whether it has come to its end, whatever that was."""

    @property
    def is_comparable(self) -> bool:
        """Whether it has come to the first epoch whose value counts, or never will."""
        return self.ended or len(self.values) > self.last_unfreeze_epoch

    @property
    def first(self) -> float | None:
        """The first value that counts; None where there is none."""
        return self.value_at(self.last_unfreeze_epoch + 1)

    def value_at(self, epoch: int) -> float | None:
        """The value after an epoch; None where it is not known or does not count."""
        return self.values[epoch - 1] if self.last_unfreeze_epoch < epoch <= len(self.values) else None


TrialHistory = Mapping[str, LearningCurve]
"""All trials of a sweep, by name: running, finished and stopped ones, and, without a value, those to come."""

Scheduler = Callable[[TrialHistory, str, int], bool | None]
"""Does a trial go on after its newest epoch, in a sweep of so many epochs a trial? None: that is not settled yet, and
it waits, without a process, until others have come as far."""


def none(history: TrialHistory, trial: str, epochs: int) -> bool:
    """Everybody runs to the end."""
    return True


def asha(history: TrialHistory, trial: str, epochs: int, first_rung: int | None = None, reduction: int = 3) -> bool:
    """Asynchronous successive halving (Li et al. 2020), in its stopping variant, as in Ray's `AsyncHyperBandScheduler`.

    Rungs stand after epochs first_rung * reduction**k. A trial that reaches one goes on if it is in the best
    1/reduction of those that have reached it before. The first rung stands after a quarter of the epochs unless given:
    a learning rate that is still warming up says little about where a trial will end.
    """
    first_rung = first_rung or math.ceil(epochs / 4)
    epoch = len(history[trial].values)
    value = history[trial].value_at(epoch)
    if value is None or epoch >= epochs or epoch not in _rungs(epochs, first_rung, reduction):
        return True
    others = [seen for name, other in history.items() if name != trial and (seen := other.value_at(epoch)) is not None]
    return not others or value >= float(np.percentile(others, 100 * (1 - 1 / reduction)))


def median(history: TrialHistory, trial: str, epochs: int, least: int = 3) -> bool:
    """The median stopping rule (Golovin et al. 2017), as in Ray's `MedianStoppingRule`.

    A trial stops when its best value so far is below the median of the running means of the others that have come as
    far, of which there must be at least `least`.
    """
    mine = history[trial]
    epoch = len(mine.values)
    if mine.value_at(epoch) is None or epoch >= epochs:
        return True
    means = [
        float(np.mean([value for past in range(1, epoch + 1) if (value := other.value_at(past)) is not None]))
        for name, other in history.items()
        if name != trial and other.value_at(epoch) is not None
    ]
    best = max(value for past in range(1, epoch + 1) if (value := mine.value_at(past)) is not None)
    return len(means) < least or best >= float(np.median(means))


def one_epoch_top_k(history: TrialHistory, trial: str, epochs: int) -> bool | None:
    """One epoch for all, and only the best go on to the end (the baseline of Egele et al. 2023, arXiv 2307.15422).

    The epoch is the first that counts: a network that is frozen at first gets those epochs too. Then a trial waits
    until every other has come as far or has ended, and goes on if fewer than `kept(trials)` of them were better, ties
    to the earlier one. All compete alike, the known good recipes too. A sampler hears of a trial when it ends, so until
    all have waited none learns. On the authors' benchmarks it equals successive halving at a tenth of the cost: it is
    what any other scheduler has to beat.
    """
    mine = history[trial]
    if mine.first is None or len(mine.values) >= epochs:
        return True
    if not all(other.is_comparable for other in history.values()):
        return None
    known = {name: other.first for name, other in history.items() if other.first is not None}
    best = sorted(known, key=lambda name: (-known[name], name))
    return trial in best[: top_k_count(len(history))]


def top_k_count(trials: int) -> int:
    """How many of so many trials `one_epoch_top_k` lets go on: an eighth, and never fewer than three.

    Of 24 trials over 8 epochs that leaves 45 epochs of 192. Egele et al. leave the number open.
    """
    return max(3, math.ceil(trials / 8))


SCHEDULERS: dict[str, Scheduler] = {f.__name__: f for f in (asha, median, none, one_epoch_top_k)}

KEEPS_KNOWN_GOOD = ("asha", "median", "none")
"""Under these the known good recipes always run to the end: strategies are compared by them."""


def _rungs(epochs: int, first: int, reduction: int) -> set[int]:
    rungs = set()
    while first <= epochs:
        rungs.add(first)
        first *= reduction
    return rungs
