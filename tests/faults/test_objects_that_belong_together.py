"""Fault 7, continued: of two objects that belong together one is damaged, and the other is not used for something else.

With the recipe of the best trial damaged, its number was once proposed again with another recipe, and the report gave
the accuracy of the old one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.engine import selection
from sweeps.engine.console.progress import ProgressView
from sweeps.engine.launch import claim_plan
from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.presearch.warm_start import recover_params
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials.ledger import TrialLedger
from sweeps.engine.trials.run_options import RunOptions
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch, an_evaluation
from xfer.objectives import ACCURACY

DAMAGE = [b"", b'{"phase": "search", "par', b'{"phase": "search"}', b"null", None]
"""Contents of a damaged object; None for a missing one."""


def damage(path: Path, content: bytes | None) -> None:
    """Damage or remove a file."""
    path.unlink() if content is None else path.write_bytes(content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two trials that have ended, one that is running, and a final run of the first."""
    store = Store(tmp_path / "colours")
    store.put_plan(a_plan())
    for name, rate in (("0000", 1e-3), ("0001", 2e-3), ("0002", 3e-3)):
        recipe = a_recipe(learning_rate=rate)
        store.add_trial(Trial(name, "search", {"adam.learning_rate": rate}, recipe))
        store.add_epoch(name, an_epoch(1, 0.2))
        if name != "0002":
            store.add_record(a_record(name, recipe=recipe))
    recipe = a_recipe(learning_rate=1e-3, seed=1)
    store.add_trial(Trial("0000-s1", "final", {}, recipe))
    store.add_record(a_record("0000-s1", recipe=recipe))
    return store


def ledger_of(store: Store) -> TrialLedger:
    """The ledger of the next start."""
    return TrialLedger(store, (ACCURACY,), max_checkpoints=1)


@pytest.mark.parametrize("content", DAMAGE, ids=repr)
@pytest.mark.parametrize("name", ["0001", "0000-s1"])
def test_a_damaged_recipe_is_restored_from_the_record(store: Store, name: str, content: bytes | None) -> None:
    before = ledger_of(store).records
    damage(store.trial_folder(name) / "config.json", content)
    ledger = ledger_of(store)
    assert ledger.records == before
    assert ledger.trials[name].recipe == before[name].recipe
    assert ledger.notes == [f"trial {name}: its config.json was damaged and is restored from its record"]
    assert json.loads((store.trial_folder(name) / "config.json").read_bytes())["recipe"] == before[name].recipe
    assert ledger_of(store).notes == []


@pytest.mark.parametrize("content", DAMAGE, ids=repr)
def test_a_running_trial_whose_recipe_is_damaged_is_set_aside_as_a_whole(store: Store, content: bytes | None) -> None:
    damage(store.trial_folder("0002") / "config.json", content)
    ledger = ledger_of(store)
    assert "0002" not in ledger.trials
    assert ledger.notes[0].startswith("trial 0002 is set aside as 0002.")
    assert store.trial_names() == ["0000", "0000-s1", "0001"]
    ledger.start(Trial("0002", "search", {}, a_recipe("clip")))
    assert store.epochs("0002") == (), "no epoch of another recipe"
    (aside,) = (store.folder / "trials").glob("0002.*.damaged")
    assert (aside / "epochs" / "0001.json").exists()
    assert ledger_of(store).notes == []


def test_a_record_under_another_recipe_keeps_its_own(store: Store) -> None:
    """An earlier version proposed the number of a damaged recipe again."""
    (store.trial_folder("0001") / "config.json").unlink()
    store.add_trial(Trial("0001", "search", {"adam.learning_rate": 0.09}, a_recipe(learning_rate=0.09)))
    ledger = ledger_of(store)
    assert ledger.records["0001"].recipe["learning_rate"] == 2e-3
    assert ledger.trials["0001"].recipe["learning_rate"] == 2e-3
    assert {trial.name: trial for trial in store.trials()}["0001"].recipe["learning_rate"] == 2e-3


def test_a_final_run_of_another_recipe_than_its_finalist_is_run_again(store: Store) -> None:
    (store.trial_folder("0000-s1") / "record.json").unlink()
    store.add_record(a_record("0000-s1", key="key of another recipe"))
    ledger = ledger_of(store)
    assert "0000-s1" not in ledger.records.keys() | ledger.trials.keys()
    assert "it is a run of another recipe than 0000" in ledger.notes[0]
    assert "0000-s1" not in store.trial_names()


def test_an_unfinished_final_run_of_another_recipe_is_set_aside_when_it_starts(store: Store) -> None:
    (store.trial_folder("0000-s1") / "record.json").unlink()
    store.add_epoch("0000-s1", an_epoch(1, 0.9))
    ledger = ledger_of(store)
    ledger.start(Trial("0000-s1", "final", {}, a_recipe(learning_rate=0.5, seed=1)))
    assert store.epochs("0000-s1") == ()
    assert {trial.name: trial for trial in store.trials()}["0000-s1"].recipe["learning_rate"] == 0.5


def test_a_run_that_was_trained_again_is_evaluated_again(store: Store) -> None:
    store.add_test("0000-s1", an_evaluation("test", 7))
    (store.trial_folder("0000-s1") / "record.json").write_bytes(b"{")
    assert store.record("0000-s1") is None
    store.add_record(a_record("0000-s1"))
    record = store.record("0000-s1")
    assert record is not None
    assert record.test is None
    store.add_test("0000-s1", an_evaluation("test", 5))
    store.add_record(a_record("0000-s1"))  # written already
    assert store.test("0000-s1") == an_evaluation("test", 5)


@pytest.mark.slow
def test_a_sweep_goes_on_from_what_it_knew_with_a_damaged_recipe(
    one_thread: None, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """The reported accuracy belongs to the recipe that reached it."""
    plan = make_plan(trials=3, epochs=1, strategies=("linear_probe",), finalists=1, seeds=1, sampler="tpe")
    prepared = prepare(plan, tmp_path)
    store = Store(tmp_path / "colours")
    claim_plan(prepared, store)

    def start() -> Sweep:
        return Sweep(prepared, store, RunOptions(tracking_uri=""), ProgressView(Console(file=screen), "colours"))

    screen = io.StringIO()
    start().search()
    trials, records = {trial.name: trial for trial in store.trials()}, store.records()
    for trial in trials.values():
        assert recover_params(trial.recipe, prepared) == trial.params
        assert recover_params({**trial.recipe, "image_size": 16}, prepared) is None
    (best,) = selection.select_best(records, 1)
    for name in trials:
        (store.trial_folder(name) / "config.json").write_bytes(b"{")
    sweep = start()
    sweep.search()
    assert "restored from its record" in screen.getvalue()
    assert store.records() == records
    assert [dict(trial.recipe) for trial in store.trials()] == [dict(trial.recipe) for trial in trials.values()]
    assert [trial.recipe["learning_rate"] for trial in sweep._final_trials()] == [trials[best].recipe["learning_rate"]]
    assert sweep.sampler is not None
    replayed = {trial.user_attrs["trial"]: trial.params for trial in sweep.sampler._study.get_trials()}
    assert replayed == {name: trial.params for name, trial in trials.items()}
