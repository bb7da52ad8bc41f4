"""Run outcomes: the learning curves of a benchmark command, and the arithmetic of comparing two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any


@dataclass(frozen=True)
class Point:
    """The state of a trial after one epoch."""

    trial: str
    epoch: int
    """Counts from 1."""
    at: float
    """Seconds since the start of the command."""
    accuracy: float
    """Validation accuracy, in [0, 1]."""
    images_per_second: float
    """Training images per second, validation excluded."""


@dataclass(frozen=True)
class RunOutcome:
    """The result of one command, from its start to its end."""

    command: str
    seconds: float
    """Wall-clock time from before the process was started until after it had ended."""
    ready: float
    """Seconds until all imports were done and Ray was up; 0 if unknown."""
    points: tuple[Point, ...]
    at: str
    """Date and time of its end."""

    @property
    def best(self) -> float:
        """The highest accuracy of any trial after any epoch; targets are defined by the same rule."""
        return max((point.accuracy for point in self.points), default=0.0)

    def best_of_first(self, trials: int) -> float:
        """The highest accuracy of the first `trials` trials, ordered by the end of their first epoch."""
        in_order = dict.fromkeys(point.trial for point in sorted(self.points, key=lambda point: point.at))
        first = list(in_order)[:trials]
        return max((point.accuracy for point in self.points if point.trial in first), default=0.0)

    @property
    def last(self) -> dict[str, float]:
        """The accuracy of each trial after its last epoch."""
        return {point.trial: point.accuracy for point in sorted(self.points, key=lambda point: point.epoch)}

    @property
    def mean(self) -> float:
        """The mean over all trials of the accuracy after their last epoch."""
        return fmean(self.last.values())

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data."""
        return asdict(self)


def outcome_from_dict(plain: dict[str, Any]) -> RunOutcome:
    """Invert `RunOutcome.as_dict`."""
    return RunOutcome(**{**plain, "points": tuple(Point(**point) for point in plain["points"])})


@dataclass(frozen=True)
class MedianRange:
    """Repeated measurements, shown as median, minimum and maximum."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{median(self.values):.3g} ({low:.3g} to {high:.3g}, n={len(self.values)})"


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> MedianRange:
    """Divide theirs by ours, repeat by repeat.

    >>> str(ratios([100.0, 90.0, 120.0], [2.0, 3.0, 2.0]))
    '50 (30 to 60, n=3)'
    """
    return MedianRange(tuple(their / our for their, our in zip(theirs, ours, strict=True)))


def extrapolate_seconds(outcome: RunOutcome, trials: int) -> float:
    """Estimate the seconds of the same command with another number of trials: start-up once, the rest in proportion.

    >>> points = (Point("a", 1, 50.0, 0.5, 1.0), Point("b", 1, 90.0, 0.5, 1.0))
    >>> extrapolate_seconds(RunOutcome("", 110.0, 10.0, points, ""), trials=8)
    410.0
    """
    return outcome.ready + (outcome.seconds - outcome.ready) * trials / len(outcome.last)


def seconds_to_accuracy(outcome: RunOutcome, target: float) -> float | None:
    """Seconds until the first trial reached an accuracy after any epoch; None if no trial did."""
    return min((point.at for point in outcome.points if point.accuracy >= target), default=None)


def speedup(theirs: RunOutcome, ours: RunOutcome, target: float) -> float:
    """How many times sooner ours reached a target than theirs.

    If theirs never reached it, their total time counts, so the ratio is a lower bound. If ours never did, it is 0.
    """
    our_seconds = seconds_to_accuracy(ours, target)
    if our_seconds is None:
        return 0.0
    their_seconds = seconds_to_accuracy(theirs, target)
    return (theirs.seconds if their_seconds is None else their_seconds) / our_seconds


def images_per_second(outcome: RunOutcome) -> float:
    """Training images per second, summed over all concurrent trials.

    Takes the median over the epochs of each trial, from the second epoch on. Only epochs during which every trial was
    running count.

    Raises:
        ValueError: a trial has no such epoch.
    """
    trials: dict[str, list[Point]] = {}
    for point in outcome.points:
        trials.setdefault(point.trial, []).append(point)
    all_started = max(min(point.at for point in points) for points in trials.values())
    first_ended = min(max(point.at for point in points) for points in trials.values())
    total = 0.0
    for trial, points in trials.items():
        speeds = [
            point.images_per_second for point in points if point.epoch > 1 and all_started <= point.at <= first_ended
        ]
        if not speeds:
            raise ValueError(f"trial {trial} has no epoch during which all trials ran: use more --epochs")
        total += median(speeds)
    return total
