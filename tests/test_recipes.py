"""The study of known-good recipes: its candidates are valid and include what a search starts with."""

from __future__ import annotations

import re

import pytest

from benchmarks import recipes
from sweeps.engine.search_space.defaults import LEARNING_RATE_RANGES
from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.overrides import space_for
from xfer.hyperparameters import CLOSED_FORM_HEADS

SPACE = space_for(["mobilenetv2_100"], 5)


def configured(params: Config) -> tuple[object, object]:
    config = SPACE.configured({"backbone": "mobilenetv2_100", **params})
    return config["optimizer"], config["learning_rate"]


def test_every_default_strategy_is_tried() -> None:
    assert set(recipes.CANDIDATES) == set(SPACE.strategies()) - CLOSED_FORM_HEADS


@pytest.mark.parametrize("strategy", recipes.CANDIDATES)
def test_the_known_good_recipe_is_among_the_candidates(strategy: str) -> None:
    known_good = next(params for params in SPACE.known_good() if params["strategy"] == strategy)
    candidates = [params for params in recipes.candidate_recipes() if params["strategy"] == strategy]
    assert configured(known_good) in [configured(params) for params in candidates]


def test_a_candidate_is_configured_unchanged() -> None:
    for params in recipes.candidate_recipes():
        optimizer = str(params["optimizer"])
        rate = float(str(params[f"{optimizer}.learning_rate"]))
        assert configured(params) == (optimizer, rate)
        rates = LEARNING_RATE_RANGES[f"head.{optimizer}" if params["strategy"] == "linear_probe" else optimizer]
        assert rates.low <= rate <= rates.high


def test_the_recipe_selected_without_a_data_set_does_not_depend_on_it() -> None:
    accuracies = {"a": {"x": 0.5, "y": 0.9, "z": 0.6}, "b": {"x": 0.6, "y": 0.1, "z": 0.7}}
    assert recipes.lowest_regret_recipe(accuracies) == "a"
    assert recipes.lowest_regret_recipe(accuracies, without="y") == "b"
    assert recipes.lowest_regret_recipe({**accuracies, "a": {**accuracies["a"], "y": 0.0}}, without="y") == "b"


# The study has not been repeated for the others: `linear_probe` was compared at 300 steps, `naive` kept its recipe, and
# `lp_ft` and `layer_decay` were not part of it.
@pytest.mark.parametrize("strategy", ["clip", "freeze_then_unfreeze", "scratch"])
def test_the_known_good_recipe_is_among_the_best_of_the_study(strategy: str) -> None:
    section = recipes.OUTPUT_FILE.read_text().partition(f"## {strategy}\n")[2].partition("\n## ")[0]
    regret = {name: float(value) for name, value in re.findall(r"^\| `(.+?)` .*\| ([\d.]+) \|$", section, re.MULTILINE)}
    optimizer, rate = configured(next(params for params in SPACE.known_good() if params["strategy"] == strategy))
    assert regret[f"{optimizer} {rate:g}"] <= min(regret.values()) + 0.5  # half a point is no difference
