"""Grid: every combination of a space's free choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sweeps.engine.search_space.space import Space
from xfer.choices import Value
from xfer.hyperparameters import Range

POINTS_PER_RANGE = 3
"""Number of values tried of a range: both ends and the middle, the geometric one on a log scale."""


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """Yield the parameters of every combination; the choices made last vary fastest.

    A conditional parameter varies only where it exists.
    """
    indices: list[int] = []
    while True:
        trial = GridTrial(indices)
        space.suggest(trial)
        yield trial.params
        indices, counts = trial.indices, trial.counts
        while indices and indices[-1] + 1 == counts[len(indices) - 1]:
            indices.pop()
        if not indices:
            return
        indices[-1] += 1


def range_points(low: float, high: float, integer: bool, log: bool) -> list[float]:
    """Return the values at which a range is tried.

    >>> range_points(1e-4, 1e-2, integer=False, log=True)
    [0.0001, 0.001, 0.01]
    >>> range_points(1, 8, integer=True, log=False), range_points(1, 2, integer=True, log=False)
    ([1, 4, 8], [1, 2])
    """
    if integer and high - low < POINTS_PER_RANGE:
        return [*range(int(low), int(high) + 1)]
    middle = Range(int(low), int(high), log).nearest(None) if integer else Range(low, high, log).nearest(None)
    assert isinstance(middle, int | float)
    return [low, middle, high]


class GridTrial:
    """A `SuggestTrial` that takes the values at given indices, and the first value once the indices are used up.

    Args:
        indices: the index of each choice, in the order in which they are made.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        self._given = indices
        self.indices: list[int] = []
        """The index of every choice made."""
        self.counts: list[int] = []
        """The number of values of every choice made."""
        self.params: dict[str, Any] = {}
        """The chosen values by name."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """Choose one of several values."""
        return self._choose(name, choices)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose one of the range's points."""
        return float(self._choose(name, range_points(low, high, integer=False, log=log)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose one of the range's points."""
        return int(self._choose(name, range_points(low, high, integer=True, log=log)))

    def _choose(self, name: str, values: Sequence[Any]) -> Any:
        depth = len(self.indices)
        index = self._given[depth] if depth < len(self._given) else 0
        self.indices.append(index)
        self.counts.append(len(values))
        self.params[name] = values[index]
        return values[index]
