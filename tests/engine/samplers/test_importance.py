"""Choices that decide about the best trials are important; those without effect do not exceed chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sweeps.engine.samplers import importance
from sweeps.engine.samplers.importance import choice_importances
from sweeps.reporting.importance import MIN_TRIALS

SPACE = {
    "weight_decay": "1e-06..0.01 log",
    "adam.learning_rate": "0.0001..0.01 log",
    "sgd.learning_rate": "0.001..0.1 log",
}


def some_trials(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random parameters of a conditional space."""
    random = np.random.default_rng(seed)
    trials = []
    for _ in range(count):
        optimizer = str(random.choice(["sgd", "adam"]))
        low = -3 if optimizer == "sgd" else -4
        trials.append(
            {
                "optimizer": optimizer,
                f"{optimizer}.learning_rate": float(10 ** random.uniform(low, low + 2)),
                "weight_decay": float(10 ** random.uniform(-6, -2)),
                "batch_size": int(random.choice([16, 32, 64])),
                "clip_norm": random.choice([None, 1.0]),
                "fixed": "always",
            }
        )
    return trials


def test_the_choice_that_decides_is_the_most_important_one_and_beyond_chance() -> None:
    trials = some_trials(60)
    found = choice_importances(trials, [-abs(np.log10(trial["weight_decay"]) + 3) for trial in trials], SPACE)
    assert found is not None
    assert found.choices[0].choice == "weight_decay"
    assert found.choices[0].is_beyond_chance
    assert found.choices[0].share > 0.5
    assert sum(one.share for one in found.choices) == pytest.approx(1)
    assert {one.choice for one in found.choices} == {*SPACE, "optimizer", "batch_size", "clip_norm"}
    assert (found.finished, found.trials, found.top) == (60, 60, 6)


def test_a_conditional_choice_counts_the_trials_in_which_it_exists() -> None:
    trials = some_trials(60)
    scores = [-abs(np.log10(trial.get("adam.learning_rate", 1.0)) + 3.5) for trial in trials]
    found = choice_importances(trials, scores, SPACE)
    assert found is not None
    by_name = {one.choice: one for one in found.choices}
    adam = sum(trial["optimizer"] == "adam" for trial in trials)
    assert by_name["adam.learning_rate"].trials == adam
    assert by_name["sgd.learning_rate"].trials == 60 - adam
    assert by_name["adam.learning_rate"].is_beyond_chance
    assert by_name["sgd.learning_rate"].share == 0


def test_choices_without_effect_rarely_exceed_chance() -> None:
    random, exceeding, total = np.random.default_rng(5), 0, 0
    for seed in range(3):
        found = choice_importances(some_trials(30, seed), random.normal(size=30).tolist(), SPACE)
        assert found is not None
        exceeding += sum(one.is_beyond_chance for one in found.choices)
        total += len(found.choices)
    assert exceeding <= 0.2 * total  # 5% are expected


def test_the_same_trials_give_the_same_importances() -> None:
    trials, scores = some_trials(20), np.random.default_rng(3).normal(size=20).tolist()
    assert choice_importances(trials, scores, SPACE) == choice_importances(trials, scores, SPACE)


def test_there_are_none_for_few_trials_or_without_a_choice() -> None:
    trials = some_trials(MIN_TRIALS)
    scores = np.random.default_rng(3).normal(size=MIN_TRIALS).tolist()
    assert choice_importances(trials, scores, SPACE) is not None
    assert choice_importances(trials[1:], scores[1:], SPACE) is None
    assert choice_importances([{"optimizer": "sgd"}] * MIN_TRIALS, scores, SPACE) is None


def test_many_trials_are_sampled_evenly_in_the_order_of_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "MAX_TRIALS", 40)
    trials = some_trials(80)
    found = choice_importances(trials, [-abs(np.log10(trial["weight_decay"]) + 3) for trial in trials], SPACE)
    assert found is not None
    assert (found.finished, found.trials, found.top) == (80, 40, 5)
    assert found.choices[0].choice == "weight_decay"


def test_a_warm_start_may_lie_outside_the_space() -> None:
    trials = [{**trial, "blocks": 1 + number % 4} for number, trial in enumerate(some_trials(20))]
    outside = {**trials[0], "weight_decay": 0.0, "blocks": 0}  # neither is on a logarithmic scale
    found = choice_importances([*trials, outside], list(range(21)), {**SPACE, "train_last.blocks": "1..8 log"})
    assert found is not None
    assert {"weight_decay", "blocks"} <= {one.choice for one in found.choices}
