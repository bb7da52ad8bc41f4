"""Objectives: samplers, schedulers, the selection and the console all use the objective of the plan."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from rich.console import Console

from sweeps.engine import selection
from sweeps.engine.console.progress import ProgressView
from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import plan_differences
from sweeps.engine.planning.prepared import Backbone
from sweeps.engine.resources.budget import Budget
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.samplers.ask_tell import SAMPLERS, AskTellSampler
from sweeps.engine.schedulers import SCHEDULERS, TrialHistory
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import Space
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials.placement import Placement
from sweeps.engine.trials.run_options import RunOptions
from sweeps.engine.trials.stage import Stage, trial_history
from sweeps.engine.trials.trainable import Resources, TrialContext
from tests.engine import sampler_runs
from tests.engine.conftest import EPOCHS, a_recipe, a_record, an_epoch, an_evaluation
from xfer.objectives import OBJECTIVES, parse_objectives
from xfer.recipe import recipe_from_dict
from xfer.records import CorruptionScore, Record, as_dict

TWO = parse_objectives("accuracy,seconds")
LOSS = parse_objectives("loss")
BALANCED = OBJECTIVES["balanced_accuracy"]


def a_run(
    trial: str, curve: Sequence[float], status: Any = "finished", seconds: float = 4.0, **measures: Any
) -> Record:
    """Return a record whose epochs share these further measures and take `seconds` in total."""
    record = a_record(trial, curve, status, seconds=seconds)
    per_epoch = seconds / max(1, len(curve))
    return replace(record, epochs=tuple(replace(epoch, seconds=per_epoch, **measures) for epoch in record.epochs))


def test_the_default_objective_of_a_plan_is_accuracy() -> None:
    plan = Plan("folder", "Which?")
    assert (plan.objective, plan.objectives) == (("accuracy",), parse_objectives("accuracy"))
    assert Plan("folder", "Which?", objective=("loss", "seconds")).objectives == parse_objectives("loss,seconds")


@pytest.mark.parametrize("objective", [(), ("acuracy",), ("seconds",), ("loss", "accuracy", "seconds")])
def test_a_plan_refuses_invalid_objectives(objective: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="objective"):
        Plan("folder", "Which?", objective=objective)


def test_another_objective_is_a_difference_between_plans() -> None:
    old = {"name": "n", "trials": 4}
    assert plan_differences({**old, "objective": ["accuracy", "seconds"]}, {**old, "objective": ["accuracy"]}) == [
        "objective: ['accuracy', 'seconds'] -> ['accuracy']"
    ]


# --- the sampler -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space() -> Space:
    return space_for(["a", "b"], 6, ["naive", "clip"])


def outcome(number: int, params: Mapping[str, Any]) -> Record:
    """Return the record of trial `number`: every fourth is pruned, every seventh has failed."""
    name = f"{number:04d}"
    drawn = sum(map(ord, str(sorted(params.items(), key=str))))
    value, seconds = (drawn % 97) / 97, 1.0 + drawn % 13
    if number % 7 == 6:
        return a_run(name, (0.1,), "failed", seconds)
    if number % 4 == 3:
        return a_run(name, (0.1, value / 2), "pruned", seconds)
    return a_run(name, (0.1, value / 2, value), seconds=seconds)


played = partial(sampler_runs.run_trials, outcome=outcome)


@pytest.mark.parametrize("objectives", [TWO, LOSS], ids=["accuracy,seconds", "loss"])
@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name for name in SAMPLERS]
)
def test_a_sampler_rebuilt_from_records_proposes_the_same_as_the_uninterrupted_one(
    sampler: str, objectives: Any, space: Space
) -> None:
    uninterrupted = AskTellSampler(space, sampler, 5, objectives=objectives)
    history = played(uninterrupted, range(24))
    rebuilt = AskTellSampler(space, sampler, 5, objectives=objectives)
    rebuilt.replay(history)
    assert played(rebuilt, range(24, 30)) == played(uninterrupted, range(24, 30))


def tell_all(sampler: AskTellSampler, records: Sequence[Record]) -> None:
    for number, record in enumerate(records):
        sampler.ask(record.trial, number)
        sampler.tell(record)


def replay_all(sampler: AskTellSampler, records: Sequence[Record]) -> None:
    good = space_for(["a", "b"], 6, ["naive", "clip"]).known_good()
    sampler.replay({record.trial: (good[number], record) for number, record in enumerate(records)})


@pytest.mark.parametrize("learn", [tell_all, replay_all])
def test_with_two_objectives_a_pruned_trial_has_neither_final_nor_intermediate_values(
    learn: Callable[[AskTellSampler, Sequence[Record]], None], space: Space, tmp_path: Path
) -> None:
    sampler = AskTellSampler(space, "tpe", 0, objectives=TWO)
    learn(sampler, [a_run("0000", (0.2, 0.7), seconds=6.0), a_run("0001", (0.9,), "pruned", seconds=1.0)])
    study = sampler_runs.study_of(sampler, tmp_path)
    assert study.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    assert study.metric_names == ["accuracy", "seconds"]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.values for trial in study.trials] == [[0.7, 6.0], None]
    assert [trial.intermediate_values for trial in study.trials] == [{}, {}]
    assert [trial.number for trial in study.best_trials] == [0]


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_tpe_still_proposes_if_no_trial_of_two_objectives_has_finished(status: str, space: Space) -> None:
    sampler = AskTellSampler(space, "tpe", 0, objectives=TWO)
    for number in range(20):
        sampler.ask(f"{number:04d}", number)
        sampler.tell(a_run(f"{number:04d}", (0.5,), status))


def test_the_loss_is_minimized_and_has_intermediate_values(space: Space, tmp_path: Path) -> None:
    sampler = AskTellSampler(space, "tpe", 0, objectives=LOSS)
    tell_all(sampler, [a_run("0000", (0.2, 0.7), val_loss=0.25), a_run("0001", (0.9,), "pruned", val_loss=0.5)])
    study = sampler_runs.study_of(sampler, tmp_path)
    assert study.directions == [StudyDirection.MINIMIZE]
    assert (study.trials[0].value, study.best_value) == (0.25, 0.25)
    assert [trial.intermediate_values for trial in study.trials] == [{1: 0.25, 2: 0.25}, {1: 0.5}]


def test_a_finished_trial_whose_objective_was_not_measured_counts_as_failed(space: Space, tmp_path: Path) -> None:
    sampler = AskTellSampler(space, "tpe", 0, objectives=parse_objectives("noisy_accuracy"))
    tell_all(sampler, [a_run("0000", (0.9,))])
    assert sampler_runs.study_of(sampler, tmp_path).trials[0].state == TrialState.FAIL


@pytest.mark.parametrize(
    ("objectives", "measures"),
    [
        (LOSS, lambda good: {"val_loss": 0.1 if good else 0.9}),
        (parse_objectives("balanced_accuracy"), lambda good: {"val_balanced_accuracy": 0.9 if good else 0.1}),
        (TWO, lambda good: {"seconds": 1.0 if good else 9.0}),
    ],
    ids=["loss", "balanced_accuracy", "accuracy,seconds"],
)
def test_tpe_follows_the_objective_and_not_the_accuracy(objectives: Any, measures: Any) -> None:
    sampler = AskTellSampler(space_for(["a"], 6, ["naive"]), "tpe", 0, objectives=objectives)
    for number in range(40):
        _, config = sampler.ask(f"{number:04d}", number)
        sampler.tell(a_run(f"{number:04d}", (0.5,), **measures(config["optimizer"] == "sgd")))
    late = [sampler.ask(f"{number:04d}", number)[1]["optimizer"] for number in range(40, 60)]
    assert late.count("sgd") > 12


# --- finals ----------------------------------------------------------------------------------------------------------


def test_finalists_are_selected_by_loss_and_not_by_accuracy_if_loss_is_the_objective() -> None:
    records = [
        a_run(f"000{number}", (accuracy,), val_loss=loss)
        for number, (accuracy, loss) in enumerate([(0.9, 0.5), (0.7, 0.2), (0.8, 0.3)])
    ]
    assert selection.select_finalists(records, 2, LOSS) == ["0001", "0002"]
    assert selection.select_finalists(records, 2) == ["0000", "0002"]


def test_with_two_objectives_finalists_come_from_the_pareto_front_first_and_the_most_accurate_first() -> None:
    records = [
        a_run("0000", (0.90,), seconds=9.0),  # on the front
        a_run("0001", (0.89,), seconds=9.5),  # beaten by 0000
        a_run("0002", (0.70,), seconds=2.0),  # on the front
        a_run("0003", (0.80,), seconds=5.0),  # on the front
        a_run("0004", (0.60,), seconds=4.0),  # beaten by 0002
        a_run("0005", (0.99,), "pruned", seconds=1.0),
    ]
    assert selection.select_finalists(records, 9, TWO) == ["0000", "0003", "0002", "0001", "0004"]
    assert selection.select_finalists(records, 1, TWO) == ["0000"]
    assert selection.select_finalists([], 3, TWO) == []


@pytest.mark.parametrize("order", [1, -1])
def test_equal_trials_on_the_pareto_front_keep_their_order(order: int) -> None:
    records = [a_run(name, (0.8,), seconds=3.0) for name in ("0002", "0010", "0003")]
    assert selection.select_finalists(records[::order], 2, TWO) == ["0002", "0003"]


def test_finalists_are_ranked_by_the_mean_of_the_objective() -> None:
    runs = {
        "0001": [a_run("0001-s1", (0.9,), val_loss=0.1), a_run("0001-s2", (0.9,), val_loss=0.5)],
        "0002": [a_run("0002-s1", (0.5,), val_loss=0.2), a_run("0002-s2", (0.5,), val_loss=0.3)],
        "0003": [],
    }
    assert selection.rank_finalists(runs, OBJECTIVES["loss"]) == ["0002", "0001"]
    assert selection.rank_finalists(runs) == ["0001", "0002"]


def test_winner_metrics_are_the_objectives_the_accuracy_and_all_measurements_on_the_test_part() -> None:
    test = replace(an_evaluation("test", 5), balanced_accuracy=0.4, noisy=(CorruptionScore("blur", 1, 4, 1),))
    winner = replace(a_run("0001-s1", (0.6,), val_loss=0.3), test=test)
    assert selection.winner_metrics(winner, [winner], parse_objectives("loss,seconds")) == pytest.approx(
        {
            "val_accuracy": 0.6,
            "val_loss": 0.3,
            "seconds": 4.0,
            "test_accuracy": 0.5,
            "test_balanced_accuracy": 0.4,
            "test_noisy_accuracy": 0.25,
        }
    )


# --- early stopping --------------------------------------------------------------------------------------------------


def staged(store: Store, objective: Any, stopping_rule: Callable[[TrialHistory, str], bool]) -> Stage:
    def trials() -> Iterator[Trial]:
        for number in range(9):
            trial = Trial(f"{number:04d}", "search", {}, a_recipe())
            store.add_trial(trial)
            yield trial

    def context(trial: Trial) -> TrialContext:
        return TrialContext(str(store.folder), "pack", None, 1, 0.0)

    view = ProgressView(Console(file=io.StringIO()), "colours", objective)
    return Stage(store, view, trials(), context, stopping_rule, lambda record: None, objective=objective)


@pytest.mark.parametrize(
    ("objective", "good", "bad"),
    [
        (BALANCED, {"val_balanced_accuracy": 0.8}, {"val_balanced_accuracy": 0.2}),
        (OBJECTIVES["loss"], {"val_loss": 0.1}, {"val_loss": 2.0}),
    ],
    ids=["balanced_accuracy", "loss"],
)
@pytest.mark.parametrize("rule", ["asha", "median"])
def test_trials_are_stopped_by_the_objective_and_not_by_accuracy(
    rule: str, objective: Any, good: dict[str, float], bad: dict[str, float], tmp_path: Path
) -> None:
    stage = staged(Store(tmp_path / "colours"), objective, SCHEDULERS[rule])
    reports = [*((0.1, good),) * 4, (0.9, bad), (0.1, good)]  # the accurate one is the bad one
    decisions = []
    for number, (accuracy, measures) in enumerate(reports):
        stage.next_trial()
        decisions.append(
            stage.should_continue(f"{number:04d}", as_dict(a_run(f"{number:04d}", (accuracy,), "pruned", **measures)))
        )
    assert decisions == [True, True, True, True, False, True]


def test_the_history_of_stored_trials_holds_scores_of_the_objective(tmp_path: Path) -> None:
    store = Store(tmp_path / "colours")
    store.add_trial(Trial("0000", "search", {}, a_recipe()))
    store.add_epoch("0000", replace(an_epoch(1, 0.9), val_balanced_accuracy=0.3))
    store.add_epoch("0000", an_epoch(2, 0.9))
    assert trial_history(store, BALANCED)["0000"].values == [0.3, None]
    assert trial_history(store, OBJECTIVES["loss"])["0000"].values == [-0.8, -0.8]
    assert trial_history(store)["0000"].values == [0.9, 0.9]


@pytest.mark.parametrize("rule", SCHEDULERS)
def test_no_trial_is_stopped_if_the_objective_was_not_measured(rule: str, tmp_path: Path) -> None:
    stage = staged(Store(tmp_path / "colours"), BALANCED, SCHEDULERS[rule])
    for number in range(6):
        stage.next_trial()
        assert stage.should_continue(f"{number:04d}", as_dict(a_run(f"{number:04d}", (0.1 * number,), "pruned")))


# --- in a sweep ------------------------------------------------------------------------------------------------------


def make_sweep(folder: Path, *objective: str) -> Sweep:
    prepared: Any = SimpleNamespace(
        plan=Plan("folder", "Which?", trials=4, epochs=EPOCHS, finalists=1, seeds=1, objective=objective),
        space=space_for(["test_efficientnet"], EPOCHS),
        pack_of=lambda recipe: SimpleNamespace(folder=folder / "pack"),
        recipe=lambda config: recipe_from_dict(a_recipe()),
        redraws=False,
        backbones=(),
        panel={},
        backbone=lambda name: Backbone(name, {}, None, ""),
    )
    store = Store(folder / "colours")
    params = prepared.space.known_good()[0]
    for number, (accuracy, loss) in enumerate([(0.9, 0.9), (0.6, 0.2), (0.8, 0.5), (0.7, 0.4)]):
        store.add_trial(Trial(f"{number:04d}", "search", params, a_recipe()))
        store.add_record(a_run(f"{number:04d}", (0.1, 0.1, 0.1, accuracy), val_loss=loss))
    return Sweep(prepared, store, RunOptions(tracking_uri=""), ProgressView(Console(file=io.StringIO()), "colours"))


def test_a_sweep_selects_finalists_by_its_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for objective, best in (("loss", "0001"), ("accuracy", "0000")):
        sweep = make_sweep(tmp_path / objective, objective)
        started: list[str] = []
        monkeypatch.setattr(
            Stage, "run", lambda stage, *_, started=started: started.append(stage.next_trial()["trial"])
        )
        sweep.finals()
        assert started == [f"{best}-s1"]
        decisions = Store(tmp_path / objective / "colours").decisions("finals")
        assert [decision["finalists"] for decision in decisions] == [[best]]


@pytest.mark.parametrize(("objective", "noisy"), [("accuracy", False), ("noisy_accuracy", True)])
def test_noise_is_measured_after_every_epoch_only_if_it_is_the_objective(
    objective: str, noisy: bool, tmp_path: Path
) -> None:
    prepared: Any = SimpleNamespace(
        plan=Plan("folder", "Which?", objective=(objective,)),
        pack_of=lambda recipe: SimpleNamespace(folder=tmp_path / "pack"),
    )
    store = Store(tmp_path / "colours")
    view = ProgressView(Console(file=io.StringIO()), "colours")
    placement = Placement(prepared, store, view, Budget(CostTracker(store)), Resources())
    assert placement.context(Trial("0000", "search", {}, a_recipe("scratch"))).noisy is noisy


# --- the progress view ------------------------------------------------------------------------------------------------


def shown(objective: str, *ends: tuple[str, float, dict[str, float]]) -> str:
    screen = io.StringIO()
    view = ProgressView(Console(file=screen, width=150), "colours", OBJECTIVES[objective])
    view.begin("search", 9)
    for name, accuracy, measures in ends:
        record = a_run(name, (accuracy,), **measures)
        view.on_epoch(json.loads(json.dumps(as_dict(record))))
        Console(file=screen, width=150).print(view.render())
        view.on_trial_end(name, "finished", OBJECTIVES[objective].value(record.epochs))
    Console(file=screen, width=150).print(view.render())
    return screen.getvalue()


def test_the_best_trial_so_far_is_shown_with_the_objective_and_the_accuracy() -> None:
    text = shown("loss", ("0000", 0.5, {"val_loss": 0.4}), ("0001", 0.9, {"val_loss": 0.6}))
    best = "cross-entropy 0.4, accuracy 50.0% on validation, naive (full fine-tuning) in trial 0000"
    assert f"best so far: {best}" in text
    assert "in trial 0001" not in text
    assert "epoch 1/4  cross-entropy 0.6, accuracy 90.0%" in text


def test_accuracy_is_shown_once_if_it_is_the_objective() -> None:
    text = shown("accuracy", ("0000", 0.5, {}), ("0001", 0.9, {}))
    assert "best so far: 90.0% on validation, naive (full fine-tuning) in trial 0001" in text
    assert "epoch 1/4  50.0%" in text


def test_a_record_without_a_measured_objective_counts_as_the_worst() -> None:
    assert selection.final_score(a_record("0000"), BALANCED) == -math.inf
