"""What a resumed sweep says about its earlier starts, in its first lines and in the live view."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.console.resumption import best_search_record, progress_line
from tests.engine.conftest import a_recipe, a_record, an_epoch
from xfer.objectives import ACCURACY, parse_objectives
from xfer.records import Phase, Record, as_dict

STARTED: dict[str, Phase] = {"0000": "search", "0001": "search", "0002": "search", "0003": "search"}


@pytest.fixture
def records() -> dict[str, Record]:
    """Two finished trials, the second of which is better, and one that was stopped early."""
    return {
        "0000": a_record("0000", [0.5, 0.6]),
        "0001": a_record("0001", [0.7, 0.875], recipe=a_recipe("linear_probe")),
        "0002": a_record("0002", [0.95], status="pruned"),
    }


def test_a_new_sweep_has_no_line() -> None:
    assert progress_line({}, {}, {"search": 4}, ACCURACY, is_test_open=False) == ""


def test_the_line_has_counts_by_status_what_continues_and_the_best_finished_trial(records: dict[str, Record]) -> None:
    assert progress_line(STARTED, records, {"search": 7, "final": 6}, ACCURACY, is_test_open=False) == (
        "done so far: search 3 of 7 (2 finished, 1 stopped early); 1 run to continue; best so far 87.5% on validation, "
        "linear_probe (training only the new head, on frozen features) in trial 0001"
    )


def test_the_line_names_every_stage_that_has_begun(records: dict[str, Record]) -> None:
    started: dict[str, Phase] = {"screen-00": "screen", **STARTED, "0001-s1": "final", "0001-s2": "final"}
    more = {
        "screen-00": replace(records["0000"], trial="screen-00", phase="screen"),
        "0003": replace(records["0002"], trial="0003", status="failed"),
        "0001-s1": replace(records["0001"], trial="0001-s1", phase="final"),
    }
    line = progress_line(started, {**records, **more}, {"search": 4, "final": 2}, ACCURACY, is_test_open=True)
    assert line.startswith(
        "done so far: screening 1 of 1 (1 finished), search 4 of 4 (1 failed, 2 finished, 1 stopped early), "
        "finals 1 of 2 (1 finished), test set opened; 1 run to continue; best so far 87.5%"
    )


def test_without_a_finished_trial_the_line_says_so(records: dict[str, Record]) -> None:
    line = progress_line(STARTED, {"0002": records["0002"]}, {"search": 4}, ACCURACY, is_test_open=False)
    assert line.endswith("; 3 runs to continue; none has finished yet")


def test_the_best_is_that_of_the_objective(records: dict[str, Record]) -> None:
    (loss,) = parse_objectives("loss")
    unsure = replace(records["0001"], epochs=tuple(replace(epoch, val_loss=9.0) for epoch in records["0001"].epochs))
    best = best_search_record([records["0000"], unsure], loss)
    assert best is not None
    assert best.trial == "0000"


def _shown(view: ProgressView) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()


def test_the_live_view_shows_the_stored_best_until_a_better_trial_ends(records: dict[str, Record]) -> None:
    view = ProgressView(Console(file=io.StringIO()), "colours")
    view.begin("search", 7)
    view.show_stored_best(records["0001"])
    best = "87.5% on validation, linear_probe (training only the new head, on frozen features) in trial 0001"
    assert f"best so far: {best}" in _shown(view)
    for name, accuracy in (("0003", 0.8), ("0004", 0.9)):
        ended = a_record(name, [0.5, accuracy])
        view.started(name, dict(ended.recipe))
        view.on_epoch(as_dict(ended))
        view.on_trial_end(name, "finished", accuracy)
        assert f"in trial {'0004' if name == '0004' else '0001'}\n" in _shown(view)


def test_the_live_view_shows_the_epoch_of_a_continued_trial_at_once(records: dict[str, Record]) -> None:
    view = ProgressView(Console(file=io.StringIO()), "colours")
    view.begin("search", 7)
    recipe = {**records["0000"].recipe, "epochs": 4}
    view.started("0003", recipe, [as_dict(an_epoch(number, 0.5)) for number in (1, 2)])
    view.started("0004", recipe)
    assert "epoch 2/4" in _shown(view)
    assert "epoch 0/4" in _shown(view)
