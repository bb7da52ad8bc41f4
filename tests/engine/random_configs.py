"""Draws from a space by dice, and everything that there is to draw from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.engine.search_space.space import Config, Space, config_to_recipe
from xfer.choices import Value, default_parameters
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.recipe import CHOICE_TABLES, Recipe, recipe_from_dict

ALL_ENTRIES = [(kind, name) for kind, table in CHOICE_TABLES.items() for name in table]
ENTRY_PARAMETERS = [
    (kind, name, own) for kind, name in ALL_ENTRIES for own in default_parameters(CHOICE_TABLES[kind][name])
]
WIDEST_CHOICES = {
    **{kind: ",".join(table) for kind, table in CHOICE_TABLES.items()},
    "clip_value": "none,0.5",
    "body_rate": "0.1..1",
    "images_per_class": "none,4",
}
"""Edits that name everything there is."""


class RandomTrial:
    """An `SuggestTrial` that throws dice and remembers what it was asked for."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.asked: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        return self.note(name, self.chance.choice(list(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.note(name, self.chance.uniform(low, high)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self.note(name, self.chance.randint(low, high)))

    def note(self, name: str, value: Any) -> Any:
        assert name not in self.asked, f"{name} was asked for twice"
        self.asked[name] = value
        return value


def random_configs(space: Space, count: int = 400) -> list[tuple[Config, dict[str, Any]]]:
    """Configurations, each with what was asked for on the way."""
    found = []
    for seed in range(count):
        dice = RandomTrial(seed)
        found.append((space.suggest(dice), dice.asked))
    return found


def strategy_of(config: Mapping[str, Any]) -> Strategy:
    """The strategy that a configuration chose, with its defaults."""
    built: Strategy = STRATEGIES[config["strategy"]]()
    return built


def recipe_of(config: Mapping[str, Any], epochs: int) -> Recipe:
    """The recipe of a configuration, on data that nobody has."""
    weights = "w" if strategy_of(config).pretrained else ""
    about = {"data": "d", "classes": 3, "image_size": 32, "weights": weights, "epochs": epochs}
    return recipe_from_dict({**about, **config_to_recipe(dict(config))})
