"""The last stages of a sweep, with tasks in this process: finalists, test part, noise, and interruptions in between."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeps.engine import selection
from sweeps.engine.console.progress import ProgressView
from sweeps.engine.launch import claim_plan
from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import default_name
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.search_space.suggest import NearestTrial
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials.placement import Placement
from sweeps.engine.trials.run_options import RunOptions
from sweeps.engine.trials.trainable import open_run, trial_config
from tests.engine.conftest import a_record
from xfer.records import NOISE_KINDS

SEEDS = 2


class Stages:
    """A sweep of two heads that is started again and again, each time from its store."""

    def __init__(self, prepared: Prepared, store: Store) -> None:
        self.prepared, self.store = prepared, store
        self.screen = io.StringIO()

    def start(self, **options: Any) -> Sweep:
        """Start the sweep, with what the screen shows from now on."""
        self.screen = io.StringIO()
        view = ProgressView(Console(file=self.screen, width=200), "colours")
        return Sweep(self.prepared, self.store, RunOptions(tracking_uri="", **options), view)

    @property
    def lines(self) -> list[str]:
        return self.screen.getvalue().splitlines()

    @property
    def finals(self) -> list[str]:
        return sorted(name for name in self.store.trial_names() if "-s" in name)


@pytest.fixture
def stages(one_thread: None, make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    """A sweep whose finals have ended, without Ray."""

    def in_this_process(
        placement: Placement,
        function: Callable[..., None],
        calls: list[Any],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        for call in calls:
            function(*call)
            on_wait()

    monkeypatch.setattr(Placement, "map", in_this_process)
    plan = make_plan(
        trials=2, epochs=1, strategies=("linear_probe",), finalists=1, seeds=SEEDS, edits={"batch_size": "4,8"}
    )
    prepared = prepare(plan, tmp_path)
    store = Store(tmp_path / "colours")
    claim_plan(prepared, store)
    sweep = Stages(prepared, store)
    sweep.start().search()
    best = selection.select_best(store.records(), 1)
    finalists = [record for record in store.records() if record.trial in best]
    placement = Placement(prepared, store, None, None, RunOptions(tracking_uri="").resources)  # type: ignore[arg-type]
    for trial in selection.finalist_trials(finalists, plan, prepared.redraws):
        store.add_trial(trial)
        run = open_run(trial_config(trial, placement.context(trial)))
        for epoch in run:
            store.add_epoch(trial.name, epoch)
        store.add_record(run.record(trial.name, "final"))
    return sweep


def fail(*_: Any, **__: Any) -> None:
    pytest.fail("something was evaluated")


def test_the_clean_test_part_comes_first_and_noise_is_added_by_a_later_start(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = stages.start()
    sweep.finals()
    sweep.open_test()
    clean = [stages.store.test(name) for name in stages.finals]
    assert [test is not None and test.noisy for test in clean] == [()] * SEEDS
    assert stages.lines == ["test set: opened for the finalists, now that their ranking is fixed"]

    again = stages.start()  # the first start was interrupted here
    with monkeypatch.context() as patched:
        patched.setattr(Placement, "map", fail)
        again.open_test()
    assert stages.lines == []
    assert again.is_noise_due()
    again.measure_noise()
    assert stages.lines[0].startswith(f"noise: {SEEDS} runs under 7 kinds of noise on 6 of 6 test images")
    tests = [stages.store.test(name) for name in stages.finals]
    assert [test is not None and replace(test, noisy=()) for test in tests] == clean
    assert [test is not None and test.noisy_images for test in tests] == [6] * SEEDS
    assert not again.is_noise_due()
    assert not stages.start().is_noise_due()
    assert len(stages.store.decisions("openings")) == 1


def test_without_noise_checkpoints_stay_so_that_it_can_be_added_later(stages: Stages) -> None:
    full = stages.prepared
    stages.prepared = replace(full, plan=replace(full.plan, noise=False))
    sweep = stages.start()
    sweep.open_test()
    assert not sweep.is_noise_due()
    sweep.drop_checkpoints()
    assert all(stages.store.checkpoints(name).exists() for name in stages.finals)
    stages.prepared = full
    later = stages.start()
    assert later.is_noise_due()
    later.measure_noise()
    assert all(len(stages.store.noise_kinds(name)) == len(NOISE_KINDS) for name in stages.finals)


def test_noise_is_switched_off_and_on_without_changing_the_plan(stages: Stages) -> None:
    full, store = stages.prepared, stages.store
    without = replace(full, plan=replace(full.plan, noise=False))
    assert default_name(without) == default_name(full)
    before = store.plan() or {}
    assert "noise" not in before
    claim_plan(without, store)
    assert (store.plan() or {})["noise"] is False
    claim_plan(full, store)
    assert {**(store.plan() or {}), "provenance": None} == {**before, "provenance": None}


def test_a_spent_budget_leaves_noise_to_a_later_start(stages: Stages) -> None:
    stages.start().open_test()
    assert not stages.start(seconds=0.0).is_noise_due()
    assert stages.lines == ["noise: not measured, because the budget is spent; the same command measures it"]
    assert stages.start().is_noise_due()


def test_runs_of_an_earlier_version_without_checkpoints_are_not_trained_again_for_noise(stages: Stages) -> None:
    stages.start().open_test()
    for name in stages.finals:
        stages.store.drop_checkpoints(name)
    assert not stages.start().is_noise_due()


def test_the_time_left_shrinks_to_the_stages_that_are_not_over(stages: Stages) -> None:
    sweep = stages.start()
    assert [stage.name for stage in sweep.time_left()] == ["test", "noise"]
    sweep.open_test()
    assert [stage.name for stage in sweep.time_left()] == ["noise"]
    sweep.measure_noise()
    assert sweep.time_left() == ()


# --- finalists -------------------------------------------------------------------------------------------------------


@pytest.fixture
def searched(one_thread: None, make_plan: Callable[..., Plan], tmp_path: Path) -> Stages:
    """A sweep whose search has ended: the best trial trains the whole network, and the best head is third."""
    prepared = prepare(
        make_plan(trials=4, finalists=1, seeds=1, strategies=("naive", "linear_probe", "clip")), tmp_path
    )
    store = Store(tmp_path / "colours")
    claim_plan(prepared, store)
    for number, (strategy, accuracy) in enumerate(
        (("linear_probe", 0.6), ("naive", 0.9), ("linear_probe", 0.7), ("clip", 0.8))
    ):
        nearest = NearestTrial({"strategy": strategy, "batch_size": 32 if number == 2 else 16})
        recipe = prepared.recipe(prepared.space.suggest(nearest)).as_dict()
        name = f"{number:04d}"
        store.add_trial(Trial(name, "search", nearest.suggested, recipe))
        store.add_record(a_record(name, (accuracy,), recipe=recipe))
    return Stages(prepared, store)


CONTROL_IS_MISSING = (
    "finals: the control, the recipe to take without a search, is missing, because it has not finished the search"
)


def test_the_control_is_a_finalist_in_addition(searched: Stages) -> None:
    plan, (record, *_) = searched.store.plan(), searched.store.records()
    assert plan is not None
    searched.store.put_plan({**plan, "control": {"key": record.key, "settings": {}}})
    searched.start(seconds=0.0).finals()
    (decision,) = searched.store.decisions("finals")
    assert decision["finalists"] == ["0001", "0000", "0002"]
    assert (decision["control"], decision["frozen_head"]) == ("0000", "0000")
    assert searched.lines == []


def test_the_best_head_is_a_finalist_in_addition(searched: Stages) -> None:
    searched.start(seconds=0.0).finals()  # decides, and has no time for the runs
    (decision,) = searched.store.decisions("finals")
    assert (decision["finalists"], decision["frozen_head"]) == (["0001", "0002"], "0002")
    assert searched.lines == [CONTROL_IS_MISSING]
    searched.start(seconds=0.0).finals()
    assert searched.store.decisions("finals") == [decision]


def test_without_a_head_in_the_search_the_missing_baseline_is_named_once(searched: Stages) -> None:
    for name in ("0000", "0002"):
        (searched.store.trial_folder(name) / "record.json").unlink()
    searched.start(seconds=0.0).finals()
    assert searched.lines == [
        CONTROL_IS_MISSING,
        "finals: the cheapest baseline is missing, because no head on frozen features (linear_probe, ...) has finished "
        "the search",
    ]
    (decision,) = searched.store.decisions("finals")
    assert (decision["finalists"], decision["frozen_head"]) == (["0001"], None)
    searched.lines.clear()
    searched.start(seconds=0.0).finals()
    assert searched.lines == []


def test_finalists_that_an_earlier_version_chose_without_a_head_stay(searched: Stages) -> None:
    old = {"at": "then", "finalists": ["0001"], "seeds": 1}
    searched.store.decide("finals", old)
    searched.start(seconds=0.0).finals()
    assert searched.store.decisions("finals") == [old]


def test_finalists_that_an_earlier_version_chose_without_the_control_stay(searched: Stages) -> None:
    plan, (record, *_) = searched.store.plan(), searched.store.records()
    assert plan is not None
    searched.store.put_plan({**plan, "control": {"key": record.key, "settings": {}}})
    old = {"at": "then", "finalists": ["0001", "0002"], "seeds": 1, "frozen_head": "0002"}
    searched.store.decide("finals", old)
    searched.start(seconds=0.0).finals()
    assert searched.store.decisions("finals") == [old]


def test_explicit_arms_have_the_best_head_as_a_finalist_too(make_plan: Callable[..., Plan], searched: Stages) -> None:
    arms = tuple({"strategy": trial.recipe["strategy"]["name"]} for trial in searched.store.trials())
    searched.prepared = replace(searched.prepared, plan=replace(searched.prepared.plan, arms=arms))
    searched.start(seconds=0.0).finals()
    assert searched.store.decisions("finals")[-1]["finalists"] == ["0001", "0002"]
