"""The live view says how sure the best so far is, and how many others may be as good."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sweeps.engine.console.best_so_far import best_so_far
from sweeps.engine.console.progress import ProgressView
from tests.engine.conftest import a_record
from xfer.measure.intervals import wilson_interval
from xfer.records import as_dict


def test_the_interval_is_wilsons_and_those_within_chance_are_tied() -> None:
    best = best_so_far({"0000": 0.9, "0001": 0.85, "0002": 0.5}, images=100)
    assert best is not None
    assert (best.name, best.mean, (best.low, best.high)) == ("0000", 0.9, wilson_interval(0.9, 100))
    assert (best.tied, best.others) == (("0001",), 2)
    assert best.describe(100) == "(82.6 to 94.5; 100 images), not shown to be better than 1 of 2 others (0001)"


def test_with_enough_images_the_best_stands_alone() -> None:
    best = best_so_far({"0000": 0.9, "0001": 0.85}, images=10_000)
    assert best is not None
    assert best.describe(10_000).endswith("better than all others")


def test_the_nearest_of_those_tied_are_named() -> None:
    best = best_so_far({"0000": 0.86, "0001": 0.9, "0002": 0.87, "0003": 0.88, "0004": 0.89, "0005": 0.2}, images=100)
    assert best is not None
    assert best.describe(100).endswith("not shown to be better than 4 of 5 others (0004, 0003, 0002, ...)")


def test_final_runs_of_a_finalist_are_averaged() -> None:
    best = best_so_far({"0003-s1": 0.9, "0003-s2": 0.8, "0001-s1": 0.84}, images=50)
    assert best is not None
    assert (best.name, best.runs) == ("0003", 2)
    assert best.mean == pytest.approx(0.85)
    assert "50 images, mean of 2 runs" in best.describe(50)


def test_before_the_first_result_there_is_no_best() -> None:
    assert best_so_far({}, images=100) is None


def test_the_live_view_and_the_lines_of_a_log_say_so() -> None:
    screen = io.StringIO()
    view = ProgressView(Console(file=screen, width=200), "colours", images=100)
    view.begin("search", 3)
    for name, accuracy in (("0000", 0.9), ("0001", 0.85)):
        record = as_dict(a_record(name, (0.4, accuracy)))
        view.started(name, record["recipe"])
        view.on_epoch(record)
        view.on_trial_end(name, "finished", accuracy)
    view.console.print(view.render())
    expected = "best so far: 90.0% on validation (82.6 to 94.5; 100 images), not shown to be better than 1 of 1 others"
    assert expected in " ".join(screen.getvalue().split())


def test_the_trials_of_an_earlier_start_count() -> None:
    view = ProgressView(Console(file=io.StringIO(), width=200), "colours", images=100)
    view.begin("search", 3, accuracies={"0000": 0.89, "0002": None})
    record = as_dict(a_record("0001", (0.4, 0.9)))
    view.started("0001", record["recipe"])
    view.on_epoch(record)
    view.on_trial_end("0001", "finished", 0.9)
    view.console.print(view.render())
    assert "1 of 1 others" in " ".join(view.console.file.getvalue().split())  # type: ignore[attr-defined]
