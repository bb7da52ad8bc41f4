"""The overhead benchmark: its trials write what real trials write, and its numbers go to the right section."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.overhead import Cost, cost_rows, no_op_trainable, replace_sections
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import trainable
from sweeps.engine.trials.trainable import TrialContext, trial_config
from tests.engine.conftest import EPOCHS, a_recipe
from xfer.recipe import recipe_from_dict
from xfer.records import Record


def test_a_trial_that_trains_nothing_writes_every_epoch_and_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Record] = []
    monkeypatch.setattr(trainable, "report_to_tune", reported.append)
    store, trial = Store(tmp_path / "colours"), Trial("0000", "search", {}, a_recipe())
    store.add_trial(trial)
    no_op_trainable(trial_config(trial, TrialContext(str(store.folder), "pack", None, 1, 0.0)))
    (record,) = store.records()
    assert record.status == "finished"
    assert record.key == recipe_from_dict(a_recipe()).key
    assert store.epochs("0000") == record.epochs
    assert [len(each.epochs) for each in reported] == list(range(1, EPOCHS + 1))
    assert reported[-1] == record
    assert asdict(record)["val"]["part"] == "val"


def test_the_cost_per_trial_excludes_one_time_costs() -> None:
    base = Cost(20, 5.0, 1.0, 4.0, 0.5, 0.0, 0.01, 0.02, 0.0, 0.0, 0.0)
    large = Cost(120, 5.0, 4.0, 5.0, 1.5, 3e4, 0.01, 0.02, 0.0, 0.0, 0.0)
    assert (
        cost_rows(base, [large]).splitlines()[-1]
        == "| 120 | 5.0 s | 4.0 s | 5.0 s | 40 ms | 10 ms | 30 KB | 10 ms, 20 ms |"
    )


def test_a_section_replaces_the_one_with_its_title_and_leaves_the_others() -> None:
    before = "# Results\n\n## Row 1\n\nfirst\n\n## Row 4\n\nold\n\n## Row 6\n\nlast\n"
    assert replace_sections(before, ["## Row 4\n\nnew\n"]) == before.replace("old", "new")
    assert replace_sections(before, ["## Row 7\n\nmore\n"]) == before + "\n## Row 7\n\nmore\n"
