"""Uniform random configurations of a search space, and the widest space there is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.space import Space, config_to_recipe
from xfer.choices import Value, default_parameters
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.recipe import CHOICE_TABLES, Recipe, recipe_from_dict

ALL_ENTRIES = [(kind, name) for kind, table in CHOICE_TABLES.items() for name in table]
ENTRY_PARAMETERS = [
    (kind, name, parameter) for kind, name in ALL_ENTRIES for parameter in default_parameters(CHOICE_TABLES[kind][name])
]
WIDEST_CHOICES = {
    **{kind: ",".join(table) for kind, table in CHOICE_TABLES.items()},
    "clip_value": "none,0.5",
    "body_rate": "0.1..1",
    "images_per_class": "none,4",
}
"""Edits that include every entry of every table."""


class RandomTrial:
    """A `SuggestTrial` that draws uniformly and records its answers."""

    def __init__(self, seed: int) -> None:
        self.generator = random.Random(seed)
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        return self.record(name, self.generator.choice(list(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.record(name, self.generator.uniform(low, high)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self.record(name, self.generator.randint(low, high)))

    def record(self, name: str, value: Any) -> Any:
        assert name not in self.params, f"{name} was suggested twice"
        self.params[name] = value
        return value


def random_configs(space: Space, count: int = 400) -> list[tuple[Config, dict[str, Any]]]:
    """Random configurations, each with the trial's parameters."""
    trials = map(RandomTrial, range(count))
    return [(space.suggest(trial), trial.params) for trial in trials]


def trained_configs(space: Space, count: int = 400) -> list[Config]:
    """Random configurations, without those of heads in closed form, where most axes have a fixed value."""
    return [config for config, _ in random_configs(space, count) if strategy_of(config).steps]


def strategy_of(config: Mapping[str, Any]) -> Strategy:
    """The strategy of a configuration, with its default parameters."""
    strategy: Strategy = STRATEGIES[config["strategy"]]()
    return strategy


def recipe_of(config: Mapping[str, Any], epochs: int) -> Recipe:
    """The recipe of a configuration, on invented data."""
    weights = "w" if strategy_of(config).pretrained else ""
    fixed = {"data": "d", "classes": 3, "image_size": 32, "weights": weights, "epochs": epochs}
    return recipe_from_dict({**fixed, **config_to_recipe(dict(config))})
