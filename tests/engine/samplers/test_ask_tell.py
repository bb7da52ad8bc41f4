"""The proposer: nothing but the store has to survive, and what it is told is what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.engine.samplers import dashboard
from sweeps.engine.samplers.ask_tell import (
    ASK_TELL_SAMPLERS,
    ENUMERATING_SAMPLERS,
    MAX_FITTED_TRIALS,
    SAMPLERS,
    AskTellSampler,
    available_trials,
)
from sweeps.engine.samplers.bounded_storage import BoundedStorage
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
    """How trial `number` went: every fourth was pruned, every seventh failed."""
    name = f"{number:04d}"
    value = (hash_of(params) % 97) / 97
    if number % 7 == 6:
        return a_record(name, (0.1,), "failed", error="the loss is NaN at step 3")
    if number % 4 == 3:
        return a_record(name, (0.1, value / 2), "pruned")
    return a_record(name, (0.1, value / 2, value))


def hash_of(params: Mapping[str, Any]) -> int:
    return sum(map(ord, str(sorted(params.items(), key=str))))


played = partial(sampler_runs.run_trials, outcome=outcome)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_history_and_seed_give_the_same_proposals(sampler: str, space: Space) -> None:
    first = played(AskTellSampler(space, sampler, seed=5), range(16))
    assert played(AskTellSampler(space, sampler, seed=5), range(16)) == first
    assert (played(AskTellSampler(space, sampler, seed=6), range(16)) == first) == (sampler in ENUMERATING_SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_proposer_rebuilt_from_records_goes_on_as_the_uninterrupted_one(sampler: str, space: Space) -> None:
    uninterrupted = AskTellSampler(space, sampler, seed=5)
    history = played(uninterrupted, range(18))
    rebuilt = AskTellSampler(space, sampler, seed=5)
    rebuilt.replay(history)
    assert played(rebuilt, range(18, 24)) == played(uninterrupted, range(18, 24))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_starts_from_the_same_store_propose_the_same_with_trials_taken_up_again(sampler: str, space: Space) -> None:
    uninterrupted = AskTellSampler(space, sampler, seed=5)
    history = played(uninterrupted, range(15))
    running, config = uninterrupted.ask("0015", 15)
    said = []
    for _ in range(2):
        rebuilt = AskTellSampler(space, sampler, seed=5)
        rebuilt.replay(history)
        assert rebuilt.enqueue("0015", running) == config
        beside = rebuilt.ask("0016", 16)
        rebuilt.tell(outcome(15, running))
        said.append([beside, rebuilt.ask("0017", 17)])
    assert said[0] == said[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_asked_for_side_by_side_differ(sampler: str, space: Space) -> None:
    proposer = AskTellSampler(space, sampler, seed=5)
    played(proposer, range(12))
    asked = [proposer.ask(f"{number:04d}", number)[0] for number in range(12, 20)]
    assert len({str(params) for params in asked}) == len(asked)


def test_what_was_learned_changes_what_tpe_proposes(space: Space) -> None:
    learned, ignorant = AskTellSampler(space, "tpe", seed=5), AskTellSampler(space, "tpe", seed=5)
    played(learned, range(16))
    assert learned.ask("0016", 16) != ignorant.ask("0016", 16)


def test_tpe_searches_where_it_was_good() -> None:
    space = space_for(["a"], 6, ["naive"])
    proposer = AskTellSampler(space, "tpe", seed=0)
    for number in range(40):
        _, config = proposer.ask(f"{number:04d}", number)
        good = config["optimizer"] == "sgd"
        proposer.tell(a_record(f"{number:04d}", (0.9 if good else 0.1,)))
    late = [proposer.ask(f"{number:04d}", number)[1]["optimizer"] for number in range(40, 60)]
    assert late.count("sgd") > 12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_configurations_that_train(sampler: str, space: Space) -> None:
    proposer = AskTellSampler(space, sampler, seed=3)
    for number in range(sampler_runs.NUM_TRIALS.get(sampler, 30)):
        params, config = proposer.ask(f"{number:04d}", number)
        assert space.configured(params) == config
        weights = "w" if STRATEGIES[str(config["strategy"])]().pretrained else ""
        recipe_from_dict(
            {**config_to_recipe(config), "data": "d", "classes": 3, "image_size": 32, "weights": weights, "epochs": 6}
        )
        proposer.tell(outcome(number, params))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_good_recipes_come_first_in_their_order(sampler: str, space: Space) -> None:
    proposer, good = AskTellSampler(space, sampler, seed=9), space.known_good()
    asked = [proposer.ask(f"{number:04d}", number) for number in range(len(good))]
    assert asked == [(params, space.configured(params)) for params in good]
    assert proposer.known_good == len(good)


def test_arms_come_instead_of_known_good_recipes(space: Space) -> None:
    arms: list[Config] = [{"strategy": "naive", "backbone": "b"}, {"strategy": "scratch", "optimizer": "sgd"}]
    proposer = AskTellSampler(space, "tpe", seed=0, arms=arms)
    for number, arm in enumerate(arms):
        _, config = proposer.ask(f"{number:04d}", number)
        assert {name: config[name] for name in arm} == arm


def test_adopting_gives_back_exactly_the_configuration_of_its_parameters(space: Space) -> None:
    proposer = AskTellSampler(space, "random", seed=1)
    asked = {f"{number:04d}": proposer.ask(f"{number:04d}", number) for number in range(60)}
    elsewhere = AskTellSampler(space, "tpe", seed=2)
    for name, (params, config) in asked.items():
        assert elsewhere.enqueue(name, params) == config


# --- a bounded number of trials is fitted on -------------------------------------------------------------------------


@pytest.fixture
def long_history(space: Space) -> sampler_runs.TrialHistory:
    return played(AskTellSampler(space, "random", seed=2), range(400))


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_after_many_trials_a_proposal_still_depends_on_nothing_but_seed_number_and_what_is_known(
    sampler: str, space: Space, long_history: sampler_runs.TrialHistory
) -> None:
    said = []
    for seed in (5, 5, 6):
        proposer = AskTellSampler(space, sampler, seed)
        proposer.replay(long_history)
        said.append([proposer.ask(f"{number:04d}", number) for number in (400, 401)])
    assert said[0] == said[1] != said[2]


def test_a_model_is_shown_the_best_the_most_recent_and_a_draw_of_the_others(
    space: Space, long_history: sampler_runs.TrialHistory
) -> None:
    proposer = AskTellSampler(space, "tpe", seed=5)
    proposer.replay(long_history)
    everything = proposer._study.get_trials(deepcopy=False)
    shown = {}
    for seed in (1, 2):
        with proposer._storage.bounded(seed):
            shown[seed] = proposer._study.get_trials(deepcopy=False)
    used = [trial for trial in everything if trial.state != TrialState.FAIL]
    best = sorted(
        (trial for trial in used if trial.state == TrialState.COMPLETE), key=lambda trial: -(trial.value or 0)
    )
    quarter = MAX_FITTED_TRIALS["tpe"] // 4
    for trials in shown.values():
        assert len(trials) == MAX_FITTED_TRIALS["tpe"]
        numbers = {trial.number for trial in trials}
        assert {trial.number for trial in best[:quarter]} <= numbers
        assert {trial.number for trial in used[-quarter:]} <= numbers
        assert TrialState.FAIL not in {trial.state for trial in trials}
    assert {trial.number for trial in shown[1]} != {trial.number for trial in shown[2]}
    assert len(proposer._study.trials) == len(everything) == 400


def test_the_best_are_the_lowest_where_that_is_better_and_the_best_in_each_where_there_are_two() -> None:
    fitted = BoundedStorage([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE], most=8)
    study = optuna.create_study(storage=fitted, directions=["maximize", "minimize"])
    values = [(0.1, 1.0), (0.9, 90.0), (0.3, 30.0), (0.2, 2.0), (0.8, 80.0), *[(0.5, 50.0)] * 20]
    study.add_trials([optuna.create_trial(values=pair, state=TrialState.COMPLETE) for pair in values])
    for seed in range(5):
        with fitted.bounded(seed):
            assert {0, 1, 23, 24} <= {trial.number for trial in study.trials}
            assert len(study.trials) == 8


def test_running_trials_are_always_shown(space: Space, long_history: sampler_runs.TrialHistory) -> None:
    proposer = AskTellSampler(space, "tpe", seed=5)
    proposer.replay(long_history)
    proposer.ask("0400", 400)
    with proposer._storage.bounded(0):
        assert proposer._study.trials[-1].state == TrialState.RUNNING
        assert proposer._study.trials[-1].number == 400


def test_a_gaussian_process_searches_the_rates_of_every_optimizer() -> None:
    """Optuna's own would draw them by dice, because no optimizer's rate is in all trials."""
    space = space_for(["a"], 6, ["naive"], {"optimizer": "sgd,adam", "weight_decay": "1e-4", "batch_size": "32"})
    proposer = AskTellSampler(space, "gp", seed=0)
    for number in range(24):
        params, _ = proposer.ask(f"{number:04d}", number)
        rate = next(value for name, value in params.items() if name.endswith("learning_rate"))
        proposer.tell(a_record(f"{number:04d}", (1.0 / (1.0 + abs(math.log10(rate) + 3.0)),)))
    rates = [proposer.ask(f"{number:04d}", number)[1]["learning_rate"] for number in range(24, 30)]
    assert sum(abs(math.log10(float(rate)) + 3.0) < 0.5 for rate in rates if isinstance(rate, float)) >= 4


# --- a grid ----------------------------------------------------------------------------------------------------------

SMALL = {
    "optimizer": "sgd,adam",
    "clip_norm": "none",
    "schedule": "cosine",
    "augmentation": "none",
    "mixing": "none",
    "loss": "cross_entropy",
    "weight_decay": "1e-4",
    "batch_size": "16,32",
    "learning_rate": "1e-3..1e-1",
}


def test_a_grid_is_every_combination_once_ranges_at_both_ends_and_the_middle() -> None:
    found = list(grid(space_for(["a"], 6, ["naive"], SMALL)))
    assert [tuple(params.values()) for params in found] == [
        (optimizer, size, rate) for optimizer in ("sgd", "adam") for size in (16, 32) for rate in (1e-3, 1e-2, 1e-1)
    ]
    assert list(found[0]) == ["optimizer", "batch_size", "sgd.learning_rate"]
    assert list(found[-1]) == ["optimizer", "batch_size", "adam.learning_rate"]


def test_a_parameter_varies_only_where_it_exists() -> None:
    edits = {**SMALL, "optimizer": "sgd", "batch_size": "16", "learning_rate": "0.01"}
    found = list(grid(space_for(["a"], 6, ["naive", "freeze_then_unfreeze"], edits)))
    assert found == [
        {"strategy": "naive"},
        *({"strategy": "freeze_then_unfreeze", "freeze_epochs": n} for n in (1, 2, 3)),
    ]


def test_what_the_grid_proposes_begins_with_the_known_good_and_has_nothing_twice() -> None:
    space = space_for(["a"], 6, ["naive"], SMALL)
    good = space.known_good()
    assert available_trials(space, "grid", 100) == len([params for params in grid(space) if params not in good]) + len(
        good
    )
    proposer = AskTellSampler(space, "grid", seed=0)
    asked = [proposer.ask(f"{number:04d}", number)[0] for number in range(available_trials(space, "grid", 100))]
    assert asked[: len(good)] == good
    assert len({str(params) for params in asked}) == len(asked)
    with pytest.raises(ValueError, match=f"there are only {len(asked)} combinations"):
        proposer.ask("0999", len(asked))


@pytest.mark.parametrize("sampler", ASK_TELL_SAMPLERS)
def test_a_model_has_configurations_for_any_number_of_trials(sampler: str, space: Space) -> None:
    assert available_trials(space, sampler, 100_000) == 100_000


# --- what the study says ---------------------------------------------------------------------------------------------


def told(proposer: AskTellSampler) -> None:
    history: sampler_runs.TrialHistory = {}
    for name, record in (
        ("0000", a_record("0000", (0.2, 0.5, 0.7))),
        ("0001", a_record("0001", (0.3, 0.4), "pruned")),
        ("0002", a_record("0002", (0.1,), "failed", error="lost")),
        ("0003", a_record("0003", (), "failed", error="lost")),
    ):
        history[name] = (proposer.ask(name, int(name))[0], record)
    for _, record in history.values():
        proposer.tell(record)


def remembered(proposer: AskTellSampler) -> None:
    good = space_for(["a", "b"], 6).known_good()
    proposer.replay(
        {
            "0000": (good[0], a_record("0000", (0.2, 0.5, 0.7))),
            "0001": (good[1], a_record("0001", (0.3, 0.4), "pruned")),
            "0002": (good[2], a_record("0002", (0.1,), "failed", error="lost")),
            "0003": (good[3], a_record("0003", (), "failed", error="lost")),
        }
    )


@pytest.mark.parametrize("learn", [told, remembered], ids=["told", "remembered"])
def test_endings_are_told_as_what_they_were(
    learn: Callable[[AskTellSampler], None], space: Space, tmp_path: Path
) -> None:
    proposer = AskTellSampler(space, "tpe", seed=0)
    learn(proposer)
    trials = sampler_runs.study_of(proposer, tmp_path).trials
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
    # Optuna itself shows a pruned trial's last intermediate value; it stays out of what is complete.
    assert [trial.number for trial in trials if trial.state == TrialState.COMPLETE] == [0]
    assert [trial.params for trial in trials] == space.known_good()[:4]


def test_the_copy_holds_ended_trials_only_and_maximizes(space: Space, tmp_path: Path) -> None:
    proposer = AskTellSampler(space, "random", seed=0)
    played(proposer, range(5))
    proposer.ask("0005", 5)
    study = sampler_runs.study_of(proposer, tmp_path)
    assert len(study.trials) == 5
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [path.name for path in tmp_path.iterdir()] == ["study.sqlite3"]


def test_the_copy_is_renewed_in_one_step(space: Space, tmp_path: Path) -> None:
    proposer = AskTellSampler(space, "random", seed=0)
    assert len(sampler_runs.study_of(proposer, tmp_path).trials) == 0
    played(proposer, range(3))
    assert len(sampler_runs.study_of(proposer, tmp_path).trials) == 3


@pytest.mark.parametrize("objectives", ["accuracy", "accuracy,seconds", "loss"])
def test_the_copy_is_what_optuna_itself_would_have_written(objectives: str, space: Space, tmp_path: Path) -> None:
    proposer = AskTellSampler(space, "random", seed=0, objectives=parse_objectives(objectives))
    proposer.replay(played(AskTellSampler(space, "random", seed=0, objectives=parse_objectives(objectives)), range(8)))
    played(proposer, range(8, 16))
    mine = sampler_runs.study_of(proposer, tmp_path)
    theirs = optuna.create_study(storage=f"sqlite:///{tmp_path / 'theirs'}", directions=mine.directions)
    theirs.add_trials(proposer._study.get_trials())
    assert mine.trials == theirs.trials
    assert len(mine.trials) == 16


def test_a_copy_that_cannot_be_written_at_once_is_written_optunas_way(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no such table")

    proposer = AskTellSampler(space, "random", seed=0)
    played(proposer, range(4))
    monkeypatch.setattr(dashboard, "_add", refuse)
    assert len(sampler_runs.study_of(proposer, tmp_path).trials) == 4
    assert "no such table" in caplog.text


def test_a_copy_that_holds_everything_is_left_as_it_is(space: Space, tmp_path: Path) -> None:
    proposer = AskTellSampler(space, "random", seed=0)
    played(proposer, range(3))
    written = []
    for number in (3, 3, 4):
        if number == 4:
            played(proposer, range(3, 4))
        proposer.export_sqlite(tmp_path / "study.sqlite3", "the sweep")
        written.append((tmp_path / "study.sqlite3").stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]


@pytest.mark.parametrize("name", ["my runs", "50%20off", "what?", "a#b", "über'\"x"])
def test_the_copy_is_written_whatever_the_folder_is_called(name: str, space: Space, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    AskTellSampler(space, "random", seed=0).export_sqlite(tmp_path / name / "study.sqlite3", name)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.sqlite3")] == [f"{name}/study.sqlite3"]
