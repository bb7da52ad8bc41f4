"""The trial queue: which trials are started, under which numbers and in which order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.ledger import TrialLedger
from sweeps.engine.trials.trial_queue import search_trials, trial_numbers
from tests.engine.conftest import EPOCHS, a_recipe, a_record
from xfer.objectives import ACCURACY
from xfer.recipe import recipe_from_dict


def test_a_damaged_trial_is_started_again_under_its_own_number_and_no_other_twice(tmp_path: Path) -> None:
    """Given ten trials, of which the fourth's config.json is torn: that one is missing, not an eleventh."""
    prepared: Any = SimpleNamespace(
        plan=Plan("folder", "Which?", trials=10, epochs=EPOCHS),
        space=space_for(["test_efficientnet"], EPOCHS),
        recipe=lambda config: recipe_from_dict(a_recipe()),
    )
    store = Store(tmp_path / "colours")
    params = prepared.space.known_good()[0]
    for number in range(10):
        store.add_trial(Trial(f"{number:04d}", "search", params, a_recipe()))
        store.add_record(a_record(f"{number:04d}"))
    (store.trial_folder("0003") / "config.json").write_bytes(b"{")
    (store.trial_folder("0003") / "record.json").unlink()
    ledger = TrialLedger(store, (ACCURACY,), max_checkpoints=3)
    sampler = AskTellSampler(prepared.space, "tpe", seed=0)
    assert [trial.name for trial in search_trials(prepared, sampler, ledger)] == ["0003"]


def test_unfinished_trials_come_first_and_out_of_budget_none_is_proposed(prepared: Prepared, tmp_path: Path) -> None:
    store = Store(tmp_path / "colours")
    params = prepared.space.known_good()[0]
    store.add_trial(Trial("0005", "search", params, a_recipe()))
    ledger = TrialLedger(store, (ACCURACY,), max_checkpoints=3)
    sampler = AskTellSampler(prepared.space, "random", seed=0)
    assert [trial.name for trial in search_trials(prepared, sampler, ledger, lambda: True)] == ["0005"]
    names = [trial.name for trial in search_trials(prepared, sampler, ledger, lambda: len(ledger.trials) >= 4)]
    assert names == ["0005", "0000", "0001", "0002"]
    assert sorted(names) == [trial.name for trial in store.trials()]


def test_known_good_probes_come_before_fine_tuned_trials(prepared: Prepared) -> None:
    sampler = AskTellSampler(prepared.space, "random", seed=0)
    trials = prepared.plan.trials
    assert trial_numbers(prepared, sampler, probes_first=False) == list(range(trials))
    numbers = trial_numbers(prepared, sampler, probes_first=True)
    known = [prepared.space.configured(params)["strategy"] for params in prepared.space.known_good()]
    probes = [known.index("linear_probe"), known.index("logistic_probe")]
    assert numbers[:2] == sorted(probes)
    assert 0 not in probes
    assert numbers[2:] == [number for number in range(trials) if number not in probes]
