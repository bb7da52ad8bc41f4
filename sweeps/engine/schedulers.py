"""Schedulers: who goes on. Pure functions over what is stored, behind a thin Tune scheduler (see tuning.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Progress:
    """How far a trial has come."""

    values: Sequence[float | None]
    """The score after each epoch, higher is better, the first after epoch 1; None where it was not measured."""
    settled_after: int = 0
    """Its strategy's: values up to this epoch say nothing about what it will come to, and are neither judged nor held
    against others."""

    def at(self, epoch: int) -> float | None:
        """The value after an epoch; None where it is not known or does not count."""
        return self.values[epoch - 1] if self.settled_after < epoch <= len(self.values) else None


History = Mapping[str, Progress]
"""All trials of a sweep, by name: running, finished and stopped ones."""

Scheduler = Callable[[History, str, int], bool]
"""Does a trial go on after its newest epoch, in a sweep of so many epochs a trial?"""


def none(history: History, trial: str, epochs: int) -> bool:
    """Everybody runs to the end."""
    return True


def asha(history: History, trial: str, epochs: int, first_rung: int | None = None, reduction: int = 3) -> bool:
    """Asynchronous successive halving (Li et al. 2020), in its stopping variant, as in Ray's `AsyncHyperBandScheduler`.

    Rungs stand after epochs first_rung * reduction**k. A trial that reaches one goes on if it is in the best
    1/reduction of those that have reached it before. The first rung stands after a quarter of the epochs unless given:
    a learning rate that is still warming up says little about where a trial will end.
    """
    first_rung = first_rung or math.ceil(epochs / 4)
    epoch = len(history[trial].values)
    value = history[trial].at(epoch)
    if value is None or epoch >= epochs or epoch not in _rungs(epochs, first_rung, reduction):
        return True
    others = [seen for name, other in history.items() if name != trial and (seen := other.at(epoch)) is not None]
    return not others or value >= float(np.percentile(others, 100 * (1 - 1 / reduction)))


def median(history: History, trial: str, epochs: int, least: int = 3) -> bool:
    """The median stopping rule (Golovin et al. 2017), as in Ray's `MedianStoppingRule`.

    A trial stops when its best value so far is below the median of the running means of the others that have come as
    far, of which there must be at least `least`.
    """
    mine = history[trial]
    epoch = len(mine.values)
    if mine.at(epoch) is None or epoch >= epochs:
        return True
    means = [
        float(np.mean([value for past in range(1, epoch + 1) if (value := other.at(past)) is not None]))
        for name, other in history.items()
        if name != trial and other.at(epoch) is not None
    ]
    best = max(value for past in range(1, epoch + 1) if (value := mine.at(past)) is not None)
    return len(means) < least or best >= float(np.median(means))


SCHEDULERS: dict[str, Scheduler] = {f.__name__: f for f in (asha, median, none)}


def _rungs(epochs: int, first: int, reduction: int) -> set[int]:
    rungs = set()
    while first <= epochs:
        rungs.add(first)
        first *= reduction
    return rungs
