"""Distributions: how the values of an axis are written on the command line, and which values are accepted."""

from __future__ import annotations

from functools import partial

from xfer.choices import Value, canonical_name, choose
from xfer.hyperparameters import NUMBERS, PARAMETERS, Categorical, Distribution, Number, Range
from xfer.recipe import CHOICE_TABLES

Config = dict[str, Value]
"""One point of a search space: the value of every axis that exists there, by name."""

NUMERIC_AXES: dict[str, Number] = {**NUMBERS, **PARAMETERS}
"""The rows of all numeric axes: numbers of a recipe and parameters of table entries."""


def domain_values(distribution: Distribution) -> tuple[Value, ...]:
    """Return all values of a `Categorical`, or both ends of a `Range`."""
    return distribution.values if isinstance(distribution, Categorical) else (distribution.low, distribution.high)


def numeric_values(distribution: Distribution) -> list[float]:
    """Return those of `domain_values` that are numbers."""
    return [value for value in domain_values(distribution) if isinstance(value, int | float)]


def parse_distribution(axis: str, text: str) -> Distribution:
    """Parse the values of an axis as written on the command line: `a,b,c`, `3`, `none,1.0` or `1e-4..1e-2`.

    >>> parse_distribution("learning_rate", "1e-4..1e-2")
    Range(low=0.0001, high=0.01, log=True)

    Raises:
        ValueError: the text cannot be parsed, names an unknown entry, or has a value outside the limits.
    """
    distribution: Distribution
    if ".." in text:
        row = NUMERIC_AXES.get(axis, Number())
        numbers = [end for end in map(partial(_parse_value, axis), text.split("..")) if isinstance(end, int | float)]
        ends = numbers if row.is_integer else [float(end) for end in numbers]
        if axis in CHOICE_TABLES or len(ends) != 2 or not ends[0] <= ends[1]:
            raise ValueError(f"{axis}={text} is not a range: give two numbers, the lower first, as in 1e-4..1e-2")
        distribution = Range(ends[0], ends[1], log=row.log and ends[0] > 0)
    else:
        distribution = Categorical(tuple(dict.fromkeys(_parse_value(axis, part) for part in text.split(","))))
    for value in domain_values(distribution):
        _check_value(axis, value)
    return distribution


def _parse_value(axis: str, text: str) -> Value:
    text = text.strip()
    if not text:
        raise ValueError(f"{axis}= needs a value")
    if axis in CHOICE_TABLES:
        return canonical_name(axis, text)
    if text.lower() == "none":
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    raise ValueError(f"{axis}={text}: must be a number" + (" or none" if NUMERIC_AXES[axis].optional else ""))


def _check_value(axis: str, value: Value) -> None:
    if axis in CHOICE_TABLES:
        choose(axis, CHOICE_TABLES[axis], str(value))
        return
    row = NUMERIC_AXES[axis]
    if value is None and row.optional:
        return
    if row.is_integer and not isinstance(value, int):
        raise ValueError(f"{axis}={value}: must be an integer")
    if row.limits is not None:
        low, high = row.limits
        if not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{axis}={value}: must be between {low:g} and {high:g}")
