"""AskTellSampler: only the store has to survive, and the study holds what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sweeps.engine.samplers.ask_tell import (
    ASK_TELL_SAMPLERS,
    ENUMERATING_SAMPLERS,
    SAMPLERS,
    AskTellSampler,
    available_trials,
    trial_outcome,
)
from sweeps.engine.samplers.grid import grid
from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import Space, config_to_recipe
from tests.engine import sampler_runs
from tests.engine.conftest import a_record
from xfer.methods.strategies import STRATEGIES
from xfer.objectives import parse_objectives
from xfer.recipe import recipe_from_dict
from xfer.records import Record


@pytest.fixture(scope="module")
def space() -> Space:
    return space_for(["a", "b"], 6)


def outcome(number: int, params: Mapping[str, Any]) -> Record:
    """The record of trial `number`: every fourth is pruned, every seventh fails."""
    name = f"{number:04d}"
    value = (hash_of(params) % 97) / 97
    if number % 7 == 6:
        return a_record(name, (0.1,), "failed", error="the loss is NaN at step 3")
    if number % 4 == 3:
        return a_record(name, (0.1, value / 2), "pruned")
    return a_record(name, (0.1, value / 2, value))


def hash_of(params: Mapping[str, Any]) -> int:
    return sum(map(ord, str(sorted(params.items(), key=str))))


run = partial(sampler_runs.run_trials, outcome=outcome)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_history_and_seed_give_the_same_proposals(sampler: str, space: Space) -> None:
    first = run(AskTellSampler(space, sampler, seed=5), range(16))
    assert run(AskTellSampler(space, sampler, seed=5), range(16)) == first
    assert (run(AskTellSampler(space, sampler, seed=6), range(16)) == first) == (sampler in ENUMERATING_SAMPLERS)


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.slow if name == "gp" else []) for name in SAMPLERS]
)
def test_a_sampler_rebuilt_from_records_continues_like_the_uninterrupted_one(sampler: str, space: Space) -> None:
    uninterrupted = AskTellSampler(space, sampler, seed=5)
    history = run(uninterrupted, range(18))
    rebuilt = AskTellSampler(space, sampler, seed=5)
    rebuilt.replay(history)
    assert run(rebuilt, range(18, 24)) == run(uninterrupted, range(18, 24))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_starts_from_the_same_store_propose_the_same_after_resuming_a_trial(sampler: str, space: Space) -> None:
    uninterrupted = AskTellSampler(space, sampler, seed=5)
    history = run(uninterrupted, range(15))
    running, config = uninterrupted.ask("0015", 15)
    proposals = []
    for _ in range(2):
        rebuilt = AskTellSampler(space, sampler, seed=5)
        rebuilt.replay(history)
        assert rebuilt.enqueue("0015", running) == config
        concurrent = rebuilt.ask("0016", 16)
        rebuilt.tell(outcome(15, running))
        proposals.append([concurrent, rebuilt.ask("0017", 17)])
    assert proposals[0] == proposals[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_concurrent_trials_differ(sampler: str, space: Space) -> None:
    ask_tell = AskTellSampler(space, sampler, seed=5)
    run(ask_tell, range(12))
    proposals = [ask_tell.ask(f"{number:04d}", number)[0] for number in range(12, 20)]
    assert len({str(params) for params in proposals}) == len(proposals)


def test_tpe_proposes_something_else_after_learning(space: Space) -> None:
    trained, untrained = AskTellSampler(space, "tpe", seed=5), AskTellSampler(space, "tpe", seed=5)
    run(trained, range(16))
    assert trained.ask("0016", 16) != untrained.ask("0016", 16)


def test_tpe_prefers_the_region_with_good_results() -> None:
    space = space_for(["a"], 6, ["naive"])
    ask_tell = AskTellSampler(space, "tpe", seed=0)
    for number in range(40):
        _, config = ask_tell.ask(f"{number:04d}", number)
        good = config["optimizer"] == "sgd"
        ask_tell.tell(a_record(f"{number:04d}", (0.9 if good else 0.1,)))
    late = [ask_tell.ask(f"{number:04d}", number)[1]["optimizer"] for number in range(40, 60)]
    assert late.count("sgd") > 12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_configurations_that_train(sampler: str, space: Space) -> None:
    ask_tell = AskTellSampler(space, sampler, seed=3)
    for number in range(sampler_runs.NUM_TRIALS.get(sampler, 30)):
        params, config = ask_tell.ask(f"{number:04d}", number)
        assert space.configured(params) == config
        weights = "w" if STRATEGIES[str(config["strategy"])]().pretrained else ""
        recipe_from_dict({**config_to_recipe(config), "data": "d", "classes": 3, "image_size": 32, "weights": weights})
        ask_tell.tell(outcome(number, params))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_good_recipes_come_first_in_order(sampler: str, space: Space) -> None:
    ask_tell, good = AskTellSampler(space, sampler, seed=9), space.known_good()
    proposals = [ask_tell.ask(f"{number:04d}", number) for number in range(len(good))]
    assert proposals == [(params, space.configured(params)) for params in good]
    assert ask_tell.known_good == len(good)


def test_arms_replace_the_known_good_recipes(space: Space) -> None:
    arms: list[Config] = [{"strategy": "naive", "backbone": "b"}, {"strategy": "scratch", "optimizer": "sgd"}]
    ask_tell = AskTellSampler(space, "tpe", seed=0, arms=arms)
    for number, arm in enumerate(arms):
        _, config = ask_tell.ask(f"{number:04d}", number)
        assert {name: config[name] for name in arm} == arm


def test_enqueued_parameters_give_exactly_their_configuration(space: Space) -> None:
    ask_tell = AskTellSampler(space, "random", seed=1)
    proposals = {f"{number:04d}": ask_tell.ask(f"{number:04d}", number) for number in range(60)}
    other = AskTellSampler(space, "tpe", seed=2)
    for name, (params, config) in proposals.items():
        assert other.enqueue(name, params) == config


# --- long histories


@pytest.fixture
def long_history(space: Space) -> sampler_runs.TrialHistory:
    return run(AskTellSampler(space, "random", seed=2), range(400))


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_after_many_trials_a_proposal_still_depends_only_on_seed_number_and_history(
    sampler: str, space: Space, long_history: sampler_runs.TrialHistory
) -> None:
    proposals = []
    for seed in (5, 5, 6):
        ask_tell = AskTellSampler(space, sampler, seed)
        ask_tell.replay(long_history)
        proposals.append([ask_tell.ask(f"{number:04d}", number) for number in (400, 401)])
    assert proposals[0] == proposals[1] != proposals[2]


@pytest.mark.slow
def test_a_gaussian_process_searches_the_rates_of_every_optimizer() -> None:
    """Optuna's own GP would draw them at random, because no optimizer's rate is in all trials."""
    space = space_for(["a"], 6, ["naive"], {"optimizer": "sgd,adam", "weight_decay": "1e-4", "batch_size": "32"})
    ask_tell = AskTellSampler(space, "gp", seed=0)
    for number in range(24):
        params, _ = ask_tell.ask(f"{number:04d}", number)
        rate = next(value for name, value in params.items() if name.endswith("learning_rate"))
        ask_tell.tell(a_record(f"{number:04d}", (1.0 / (1.0 + abs(math.log10(rate) + 3.0)),)))
    rates = [ask_tell.ask(f"{number:04d}", number)[1]["learning_rate"] for number in range(24, 30)]
    assert sum(abs(math.log10(float(rate)) + 3.0) < 0.5 for rate in rates if isinstance(rate, float)) >= 4


# --- grid

SMALL = {
    "optimizer": "sgd,adam",
    "clip_norm": "none",
    "schedule": "cosine",
    "augmentation": "none",
    "mixing": "none",
    "loss": "cross_entropy",
    "weight_decay": "1e-4",
    "batch_size": "16,32",
    "batch_norm": "with_weights",
    "learning_rate": "1e-3..1e-1",
}


def test_a_grid_holds_every_combination_once_with_ranges_at_both_ends_and_the_middle() -> None:
    combinations = list(grid(space_for(["a"], 6, ["naive"], SMALL)))
    assert [tuple(params.values()) for params in combinations] == [
        (optimizer, size, rate) for optimizer in ("sgd", "adam") for size in (16, 32) for rate in (1e-3, 1e-2, 1e-1)
    ]
    assert list(combinations[0]) == ["optimizer", "batch_size", "sgd.learning_rate"]
    assert list(combinations[-1]) == ["optimizer", "batch_size", "adam.learning_rate"]


def test_a_parameter_varies_only_where_it_exists() -> None:
    edits = {**SMALL, "optimizer": "sgd", "batch_size": "16", "learning_rate": "0.01"}
    assert list(grid(space_for(["a"], 6, ["naive", "freeze_then_unfreeze"], edits))) == [
        {"strategy": "naive"},
        *({"strategy": "freeze_then_unfreeze", "freeze_epochs": n} for n in (1, 2, 3)),
    ]


def test_a_grid_search_begins_with_the_known_good_recipes_and_repeats_nothing() -> None:
    space = space_for(["a"], 6, ["naive"], SMALL)
    good = space.known_good()
    assert available_trials(space, "grid", 100) == len([params for params in grid(space) if params not in good]) + len(
        good
    )
    ask_tell = AskTellSampler(space, "grid", seed=0)
    proposals = [ask_tell.ask(f"{number:04d}", number)[0] for number in range(available_trials(space, "grid", 100))]
    assert proposals[: len(good)] == good
    assert len({str(params) for params in proposals}) == len(proposals)
    with pytest.raises(ValueError, match=f"there are only {len(proposals)} combinations"):
        ask_tell.ask("0999", len(proposals))


@pytest.mark.parametrize("sampler", ASK_TELL_SAMPLERS)
def test_a_model_has_configurations_for_any_number_of_trials(sampler: str, space: Space) -> None:
    assert available_trials(space, sampler, 100_000) == 100_000


# --- the exported study


def tell_outcomes(ask_tell: AskTellSampler) -> None:
    history: sampler_runs.TrialHistory = {}
    for name, record in (
        ("0000", a_record("0000", (0.2, 0.5, 0.7))),
        ("0001", a_record("0001", (0.3, 0.4), "pruned")),
        ("0002", a_record("0002", (0.1,), "failed", error="lost")),
        ("0003", a_record("0003", (), "failed", error="lost")),
    ):
        history[name] = (ask_tell.ask(name, int(name))[0], record)
    for _, record in history.values():
        ask_tell.tell(record)


def replay_outcomes(ask_tell: AskTellSampler) -> None:
    good = space_for(["a", "b"], 6).known_good()
    ask_tell.replay(
        {
            "0000": (good[0], a_record("0000", (0.2, 0.5, 0.7))),
            "0001": (good[1], a_record("0001", (0.3, 0.4), "pruned")),
            "0002": (good[2], a_record("0002", (0.1,), "failed", error="lost")),
            "0003": (good[3], a_record("0003", (), "failed", error="lost")),
        }
    )


@pytest.mark.parametrize("learn", [tell_outcomes, replay_outcomes], ids=["tell", "replay"])
def test_a_study_holds_how_each_trial_ended(
    learn: Callable[[AskTellSampler], None], space: Space, tmp_path: Path
) -> None:
    ask_tell = AskTellSampler(space, "tpe", seed=0)
    learn(ask_tell)
    trials = sampler_runs.study_of(ask_tell, tmp_path).trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert [trial.intermediate_values for trial in trials] == [
        {1: 0.2, 2: 0.5, 3: 0.7},
        {1: 0.3, 2: 0.4},
        {1: 0.1},
        {},
    ]
    assert trials[0].value == 0.7
    # Optuna reports a pruned trial's last intermediate value as its value, but not among the complete trials.
    assert [trial.number for trial in trials if trial.state == TrialState.COMPLETE] == [0]
    assert [trial.params for trial in trials] == space.known_good()[:4]


def test_the_copy_holds_only_ended_trials_and_maximizes(space: Space, tmp_path: Path) -> None:
    ask_tell = AskTellSampler(space, "random", seed=0)
    run(ask_tell, range(5))
    ask_tell.ask("0005", 5)
    study = sampler_runs.study_of(ask_tell, tmp_path)
    assert len(study.trials) == 5
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [path.name for path in tmp_path.iterdir()] == ["study.sqlite3"]


def test_the_copy_is_replaced_when_there_are_more_trials(space: Space, tmp_path: Path) -> None:
    ask_tell = AskTellSampler(space, "random", seed=0)
    assert len(sampler_runs.study_of(ask_tell, tmp_path).trials) == 0
    run(ask_tell, range(3))
    assert len(sampler_runs.study_of(ask_tell, tmp_path).trials) == 3


@pytest.mark.parametrize("objectives", ["accuracy", "accuracy,seconds", "loss"])
def test_the_copy_holds_the_outcome_of_every_trial(objectives: str, space: Space, tmp_path: Path) -> None:
    parsed = parse_objectives(objectives)
    history = run(AskTellSampler(space, "random", seed=0, objectives=parsed), range(8))
    ask_tell = AskTellSampler(space, "random", seed=0, objectives=parsed)
    ask_tell.replay(history)
    history |= run(ask_tell, range(8, 16))
    trials = sampler_runs.study_of(ask_tell, tmp_path).trials
    assert [trial.params for trial in trials] == [params for params, _ in history.values()]
    for trial, (_, record) in zip(trials, history.values(), strict=True):
        expected = trial_outcome(record, parsed)
        assert trial.state == expected.state
        assert trial.intermediate_values == expected.intermediate
        if expected.values is not None:
            assert trial.values == expected.values


def test_a_complete_copy_is_not_rewritten(space: Space, tmp_path: Path) -> None:
    ask_tell = AskTellSampler(space, "random", seed=0)
    run(ask_tell, range(3))
    times = []
    for number in (3, 3, 4):
        if number == 4:
            run(ask_tell, range(3, 4))
        ask_tell.export_sqlite(tmp_path / "study.sqlite3", "the sweep")
        times.append((tmp_path / "study.sqlite3").stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]


def test_a_damaged_copy_is_replaced(space: Space, tmp_path: Path) -> None:
    (tmp_path / "study.sqlite3").write_text("not a database")
    ask_tell = AskTellSampler(space, "random", seed=0)
    run(ask_tell, range(2))
    assert len(sampler_runs.study_of(ask_tell, tmp_path).trials) == 2


@pytest.mark.parametrize("name", ["my runs", "50%20off", "what?", "a#b", "über'\"x"])
def test_the_copy_is_written_to_a_folder_of_any_name(name: str, space: Space, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    AskTellSampler(space, "random", seed=0).export_sqlite(tmp_path / name / "study.sqlite3", name)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.sqlite3")] == [f"{name}/study.sqlite3"]
