"""Domains: what an axis of a space may be, and how a person writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from xfer.choices import Value, choose
from xfer.recipe import CHOICE_TABLES, LIMITS, OPTIONAL_FIELDS

INTEGER_AXES = (
    *("batch_size", "images_per_class", "views", "freeze_epochs", "patience", "blocks", "stage", "block", "rank"),
    *("num_ops", "magnitude", "hidden"),
)
"""The axes that know only whole numbers."""

LOG_SCALE_AXES = ("learning_rate", "weight_decay", "body_rate", "strength", "weight", "penalty")
"""The axes that span orders of magnitude: the middle of a range is the geometric one."""

PARAMETER_LIMITS: dict[str, tuple[float, float]] = {
    "patience": (1, 1_000),
    "blocks": (1, 1_000),
    "stage": (1, 1_000),
    "block": (1, 4),  # quarters of a network
    "until": (0.01, 0.99),
    "decay": (0.01, 1.0),
    "rank": (1, 4_096),
    "strength": (1e-9, 1e3),
    "penalty": (1e-9, 1e9),
    "num_ops": (1, 14),  # RandAugment has 14 operations
    "magnitude": (0, 30),
    "min_area": (0.01, 1.0),
    "cutout_size": (0.01, 1.0),
    "erasing_probability": (0.0, 1.0),
    "grey_probability": (0.0, 1.0),
    "jitter": (0.0, 1.0),
    "alpha": (1e-3, 1e3),
    "smoothing": (0.0, 0.99),
    "gamma": (0.0, 10.0),
    "weight": (1e-6, 1e3),
    "pair_margin": (1e-3, 2.0),  # distances between normalised embeddings end at 2
    "triplet_margin": (1e-3, 4.0),  # and their squares at 4
    "angular_margin": (1e-3, 1.5),  # in radians; a right angle is 1.57
    "scale": (1.0, 1e3),
    "hidden": (1, 65_536),
    "cosine_scale": (1e-2, 1e3),
    "warmup": (0.01, 0.99),
    "flat": (0.01, 0.99),
    "drop_every": (0.01, 0.99),
    "drop_to": (1e-4, 0.99),
}
"""What is within reason for the parameters of table entries, both ends included."""


@dataclass(frozen=True)
class Categorical:
    """One of several values. A single one is fixed, and no sampler hears of it."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join("none" if value is None else str(value) for value in self.values)

    def nearest(self, value: Value) -> Value:
        """`wish` where it is an option, else the first one."""
        return value if value in self.values else self.values[0]


@dataclass(frozen=True)
class Range:
    """Any value from `low` to `high`, both included; whole numbers where both are."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + (" log" if self.log else "")

    @property
    def is_integer(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def nearest(self, value: Value) -> Value:
        """`wish` moved into the range; its middle where the wish is no number."""
        if not isinstance(value, int | float):
            value = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
            value = round(value) if self.is_integer else value
        return min(max(value, self.low), self.high)


Distribution = Categorical | Range


def domain_values(domain: Distribution) -> tuple[Value, ...]:
    """All values of options, both ends of a range."""
    return domain.values if isinstance(domain, Categorical) else (domain.low, domain.high)


def numeric_values(domain: Distribution) -> list[float]:
    """Those values that are numbers."""
    return [value for value in domain_values(domain) if isinstance(value, int | float)]


def parse_distribution(axis: str, text: str) -> Distribution:
    """A domain as a person writes it: `a,b,c`, `3`, `none,1.0` or `1e-4..1e-2`.

    Raises:
        ValueError: it cannot be read, names an entry that does not exist, or lies beyond reason.
    """
    domain: Distribution
    if ".." in text:
        numbers = [end for end in map(partial(_value, axis), text.split("..")) if isinstance(end, int | float)]
        ends = numbers if axis in INTEGER_AXES else [float(end) for end in numbers]
        if axis in CHOICE_TABLES or len(ends) != 2 or not ends[0] <= ends[1]:
            raise ValueError(f"{axis}={text} is no range: give two numbers, the lower first, as in 1e-4..1e-2")
        domain = Range(ends[0], ends[1], log=axis in LOG_SCALE_AXES and ends[0] > 0)
    else:
        domain = Categorical(tuple(dict.fromkeys(_value(axis, part) for part in text.split(","))))
    for value in domain_values(domain):
        _check(axis, value)
    return domain


def _value(axis: str, text: str) -> Value:
    text = text.strip()
    if not text:
        raise ValueError(f"{axis}= needs a value")
    if axis in CHOICE_TABLES:
        return text
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"{axis}={text}: a number was expected" + (", or none" if axis in OPTIONAL_FIELDS else ""))


def _check(axis: str, value: Value) -> None:
    if axis in CHOICE_TABLES:
        choose(axis, CHOICE_TABLES[axis], str(value))
    elif value is None and axis in OPTIONAL_FIELDS:
        return
    elif axis in INTEGER_AXES and not isinstance(value, int):
        raise ValueError(f"{axis}={value}: a whole number is wanted")
    elif axis in LIMITS or axis in PARAMETER_LIMITS:
        low, high = (LIMITS | PARAMETER_LIMITS)[axis]
        if not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{axis}={value}: it must lie between {low:g} and {high:g}")
