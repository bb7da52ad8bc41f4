"""Metrics and tags of a trial in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import describe_plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.tracking.mapping import epoch_metrics, plan_params, record_tags
from xfer.records import Record


@pytest.mark.parametrize(
    ("given", "params"),
    [
        ({"epochs": 5}, {"epochs": "5"}),
        ({"epochs": None, "steps": 40}, {"steps": "40"}),
        ({"epochs": None}, {}),
    ],
    ids=["epochs", "steps", "the default"],
)
def test_the_length_of_trials_is_a_param_however_it_was_given(
    make_plan: Callable[..., Plan], storage: Path, given: dict[str, Any], params: dict[str, str]
) -> None:
    found = plan_params(describe_plan(prepare(make_plan(**given), storage)))
    assert {key: found[key] for key in ("epochs", "steps") if key in found} == params
    lengths = [key for key in found if key.startswith("lengths.")]
    assert bool(lengths) == ("epochs" not in params), found


def test_the_weights_that_a_run_keeps_are_a_tag_and_their_accuracies_metrics(record: Record, tmp_path: Path) -> None:
    last = replace(record.epochs[-1], kept="averaged", raw_val_accuracy=0.5, averaged_val_accuracy=0.75)
    kept = replace(record, epochs=(*record.epochs[:-1], last))
    assert record_tags(kept)["xfer.kept"] == "averaged"
    values = {metric.key: metric.value for metric in epoch_metrics(last, tmp_path)}
    assert (values["raw_val_accuracy"], values["averaged_val_accuracy"]) == (0.5, 0.75)
    assert "kept" not in values


def test_a_run_without_a_choice_of_weights_has_no_such_tag(record: Record, tmp_path: Path) -> None:
    first = replace(record.epochs[0], kept=None, raw_val_accuracy=None, averaged_val_accuracy=None)
    assert "xfer.kept" not in record_tags(replace(record, epochs=(first,)))
    assert {"kept", "raw_val_accuracy"}.isdisjoint(metric.key for metric in epoch_metrics(first, tmp_path))
