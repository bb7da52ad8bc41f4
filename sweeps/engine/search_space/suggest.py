"""How a space asks for values, and the trial that answers with values given in advance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from xfer.choices import Value
from xfer.hyperparameters import OPTIMIZERS, Categorical, Distribution, Range
from xfer.methods.freezing import HeadFirst
from xfer.methods.strategies import STRATEGIES
from xfer.models.families import FAMILIES


class SuggestTrial(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """Suggest one of several values."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Suggest a number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Suggest an integer."""
        ...


def suggest_value(trial: SuggestTrial, name: str, distribution: Distribution) -> Value:
    """Let a trial choose a value. A distribution over a single value is fixed: the trial is not asked.

    Args:
        trial: makes the choice.
        name: the parameter's name for the sampler.
        distribution: the values to choose from.
    """
    if isinstance(distribution, Categorical):
        value: Value = distribution.values[0]
        return value if len(distribution.values) == 1 else trial.suggest_categorical(name, distribution.values)
    if distribution.low == distribution.high:
        return distribution.low
    if distribution.is_integer:
        return trial.suggest_int(name, int(distribution.low), int(distribution.high), log=distribution.log)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


class NearestTrial:
    """A `SuggestTrial` without randomness: answers with the values given, moved into the distributions.

    A parameter that is not given gets the first value, the middle of its range, or the optimizer's default rate.

    Args:
        values: values by parameter name; `learning_rate` stands for every optimizer's `sgd.learning_rate`.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self.suggested: dict[str, Any] = {}
        """The answers, by the name of the parameter that was asked for."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """Return the given value if it is among the choices, else the first choice."""
        return self._nearest(name, Categorical(tuple(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the given value moved into the range, else the default rate, else the middle."""
        return float(self._nearest(name, Range(low, high, log)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return the given value moved into the range, else the middle."""
        return int(self._nearest(name, Range(low, high, log)))

    def _nearest(self, name: str, distribution: Distribution) -> Any:
        # Named as vit.sgd.learning_rate, sgd.learning_rate or learning_rate.
        parts = name.split(".")
        names = (".".join(parts[index:]) for index in range(len(parts)))
        value = next((self._values[given] for given in names if given in self._values), None)
        self.suggested[name] = distribution.nearest(self._default_rate(name) if value is None else value)
        return self.suggested[name]

    def _default_rate(self, name: str) -> Value:
        prefix, _, entry = name.removesuffix(".learning_rate").rpartition(".")
        optimizer = OPTIMIZERS.get(entry)
        if optimizer is None or prefix in FAMILIES:  # the middle of the family's own range
            return None
        strategy = STRATEGIES.get(str(self._values.get("strategy")))
        head_alone = strategy is not None and strategy().pace == HeadFirst(freeze_epochs=None)
        return 10 * optimizer.default_learning_rate if head_alone else optimizer.default_learning_rate
