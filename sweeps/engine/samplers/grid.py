"""Grid: every combination of a space's free choices, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sweeps.engine.search_space.space import Space
from xfer.choices import Value
from xfer.hyperparameters import Range

POINTS_PER_RANGE = 3
"""At so many values a range of numbers is tried: both ends and the middle, the geometric one of a logarithmic range."""


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """The free choices of every combination, those that are asked for last varying fastest.

    A conditional parameter varies only where it exists.
    """
    places: list[int] = []
    while True:
        walk = _Walk(places)
        space.suggest(walk)
        yield walk.params
        places, counts = walk.places, walk.counts
        while places and places[-1] + 1 == counts[len(places) - 1]:
            places.pop()
        if not places:
            return
        places[-1] += 1


def range_points(low: float, high: float, whole: bool, log: bool) -> list[float]:
    """The values at which a range is tried.

    >>> range_points(1e-4, 1e-2, whole=False, log=True), range_points(1, 8, whole=True, log=False), range_points(1, 2, True, False)
    ([0.0001, 0.001, 0.01], [1, 4, 8], [1, 2])
    """
    if whole and high - low < POINTS_PER_RANGE:
        return [*range(int(low), int(high) + 1)]
    middle = Range(int(low), int(high), log).nearest(None) if whole else Range(low, high, log).nearest(None)
    assert isinstance(middle, int | float)
    return [low, middle, high]


class _Walk:
    """Answers a space with the options at given places, and with the first where no more are given."""

    def __init__(self, places: Sequence[int]) -> None:
        self._given = places
        self.places: list[int] = []
        self.counts: list[int] = []
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        return self._choose(name, choices)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self._choose(name, range_points(low, high, whole=False, log=log)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self._choose(name, range_points(low, high, whole=True, log=log)))

    def _choose(self, name: str, values: Sequence[Any]) -> Any:
        depth = len(self.places)
        place = self._given[depth] if depth < len(self._given) else 0
        self.places.append(place)
        self.counts.append(len(values))
        self.params[name] = values[place]
        return values[place]
