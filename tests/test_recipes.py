"""The study of first recipes: it asks what a search could ask, and tries what a search begins with now."""

from __future__ import annotations

import re

import pytest

from benchmarks import recipes
from sweeps.engine.search_space.defaults import AXES, LEARNING_RATE_RANGES
from sweeps.engine.search_space.distributions import Config, domain_values
from sweeps.engine.search_space.overrides import space_for

SPACE = space_for(["mobilenetv2_100"], epochs=5)


def chosen(wish: Config) -> tuple[object, object]:
    config = SPACE.configured({"backbone": "mobilenetv2_100", **wish})
    return config["optimizer"], config["learning_rate"]


def test_every_usual_strategy_is_tried() -> None:
    assert set(recipes.CANDIDATES) == set(domain_values(AXES["strategy"]))


@pytest.mark.parametrize("strategy", recipes.CANDIDATES)
def test_what_a_search_begins_with_is_among_the_candidates(strategy: str) -> None:
    begins = next(wish for wish in SPACE.known_good() if wish["strategy"] == strategy)
    tried = [wish for wish in recipes.candidate_recipes() if wish["strategy"] == strategy]
    assert chosen(begins) in [chosen(wish) for wish in tried]


def test_a_wish_is_granted_as_it_is() -> None:
    for wish in recipes.candidate_recipes():
        optimizer = str(wish["optimizer"])
        rate = float(str(wish[f"{optimizer}.learning_rate"]))
        assert chosen(wish) == (optimizer, rate)
        assert LEARNING_RATE_RANGES[optimizer].low <= rate <= LEARNING_RATE_RANGES[optimizer].high


def test_the_recipe_that_is_chosen_without_a_data_set_does_not_depend_on_it() -> None:
    accuracies = {"a": {"x": 0.5, "y": 0.9, "z": 0.6}, "b": {"x": 0.6, "y": 0.1, "z": 0.7}}
    assert recipes.lowest_regret_recipe(accuracies) == "a"
    assert recipes.lowest_regret_recipe(accuracies, without="y") == "b"
    assert recipes.lowest_regret_recipe({**accuracies, "a": {**accuracies["a"], "y": 0.0}}, without="y") == "b"


# For the others what was chosen without a data set did no better on it than what searches had begun with.
@pytest.mark.parametrize("strategy", ["clip", "freeze_then_unfreeze", "linear_probe"])
def test_what_a_search_begins_with_is_what_the_study_found(strategy: str) -> None:
    section = recipes.OUTPUT_FILE.read_text().partition(f"## {strategy}\n")[2].partition("\n## ")[0]
    regret = {name: float(found) for name, found in re.findall(r"^\| `(.+?)` .*\| ([\d.]+) \|$", section, re.MULTILINE)}
    optimizer, rate = chosen(next(wish for wish in SPACE.known_good() if wish["strategy"] == strategy))
    assert regret[f"{optimizer} {rate:g}"] <= min(regret.values()) + 0.5  # half a point is no difference
