"""Curves: what a command came to and when, and the arithmetic of comparing two of them. Nothing is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any


@dataclass(frozen=True)
class Point:
    """A trial after one of its epochs."""

    trial: str
    epoch: int
    """The first is 1."""
    at: float
    """Seconds since the command was started."""
    accuracy: float
    """On the validation part, in [0, 1]."""
    images_per_second: float
    """Training images over the training share of the epoch, validation not included."""


@dataclass(frozen=True)
class RunOutcome:
    """A command from its start to its end."""

    command: str
    seconds: float
    """Wall clock from before its process was started to after it had ended."""
    ready: float
    """After so many of them everything was imported and Ray was there; 0 where that is not known."""
    points: tuple[Point, ...]
    at: str
    """The date and time when it ended."""

    @property
    def best(self) -> float:
        """The highest accuracy of any trial after any epoch: the definition that targets are set and met by."""
        return max((point.accuracy for point in self.points), default=0.0)

    def best_of_first(self, first: int) -> float:
        """The highest accuracy of the first so many trials, by when their first epochs were over."""
        begun = dict.fromkeys(point.trial for point in sorted(self.points, key=lambda point: point.at))
        among = list(begun)[:first]
        return max((point.accuracy for point in self.points if point.trial in among), default=0.0)

    @property
    def last(self) -> dict[str, float]:
        """The accuracy of each trial after its last epoch."""
        return {point.trial: point.accuracy for point in sorted(self.points, key=lambda point: point.epoch)}

    @property
    def mean(self) -> float:
        """The mean over all trials of the accuracy after the last epoch of each."""
        return fmean(self.last.values())

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def outcome_from_dict(plain: dict[str, Any]) -> RunOutcome:
    """What `Outcome.as_dict` made."""
    return RunOutcome(**{**plain, "points": tuple(Point(**point) for point in plain["points"])})


@dataclass(frozen=True)
class MedianRange:
    """A few numbers: their median, the smallest and the largest."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{median(self.values):.3g} ({low:.3g} to {high:.3g}, n={len(self.values)})"


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> MedianRange:
    """How many times as much theirs are, repeat by repeat.

    >>> str(ratios([100.0, 90.0, 120.0], [2.0, 3.0, 2.0]))
    '50 (30 to 60, n=3)'
    """
    return MedianRange(tuple(their / our for their, our in zip(theirs, ours, strict=True)))


def extrapolate_seconds(outcome: RunOutcome, trials: int) -> float:
    """The seconds that an outcome's command would take for so many trials: in proportion, but for its start-up.

    >>> extrapolate_seconds(RunOutcome("", 110.0, 10.0, (Point("a", 1, 50.0, 0.5, 1.0), Point("b", 1, 90.0, 0.5, 1.0)), ""), 8)
    410.0
    """
    return outcome.ready + (outcome.seconds - outcome.ready) * trials / len(outcome.last)


def seconds_to_accuracy(outcome: RunOutcome, target: float) -> float | None:
    """When the first trial had reached an accuracy, after whichever epoch; None where none did."""
    return min((point.at for point in outcome.points if point.accuracy >= target), default=None)


def speedup(theirs: RunOutcome, ours: RunOutcome, target: float) -> float:
    """How many times sooner ours had reached a target.

    Where theirs never did, their whole time counts, so that the ratio is a lower bound. Where ours never did it is 0.
    """
    our_seconds = seconds_to_accuracy(ours, target)
    if our_seconds is None:
        return 0.0
    their_seconds = seconds_to_accuracy(theirs, target)
    return (theirs.seconds if their_seconds is None else their_seconds) / our_seconds


def images_per_second(outcome: RunOutcome) -> float:
    """Training images a second of all trials that ran side by side: of each the median over its epochs from the second.

    Epochs during which another trial had not begun or had ended already do not count.

    Raises:
        ValueError: no epoch of some trial is left.
    """
    trials: dict[str, list[Point]] = {}
    for point in outcome.points:
        trials.setdefault(point.trial, []).append(point)
    begun = max(min(point.at for point in points) for points in trials.values())
    over = min(max(point.at for point in points) for points in trials.values())
    total = 0.0
    for trial, points in trials.items():
        counted = [point.images_per_second for point in points if point.epoch > 1 and begun <= point.at <= over]
        if not counted:
            raise ValueError(f"trial {trial} was never beside the others for a whole epoch: take more --epochs")
        total += median(counted)
    return total
