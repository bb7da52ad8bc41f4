"""The first screen of a report: answer, gains, cost, what would settle the rest, and commands that work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.reporting.first_screen import first_screen
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from tests.reporting.conftest import a_plan, a_record, results_of, some_finals

CONTROL = {"control": {"key": "key-0003", "settings": {}}}
COMMAND = "python -m sweeps.folder --data photos --storage 'my runs'"
ROWS = [
    {"backbone": "mobilenetv2_100", "method": "knn", "k": k, "correct": correct, "images": 100, "train_images": 48}
    for k, correct in ((5, 70), (20, 72))
]


@pytest.fixture
def results() -> Results:
    """Finals of two recipes with the same answers, the control, and a run from scratch."""
    plan = a_plan(**CONTROL)
    plan["provenance"] |= {"command": COMMAND}
    records = [
        a_record("0001", (0.6, 0.92), strategy="clip"),
        a_record("0002", (0.6, 0.9), strategy="naive"),
        a_record("0003", (0.6, 0.7), strategy="lp_ft"),
        a_record("0004", (0.3, 0.55), strategy="scratch"),
        *some_finals("0001", 0.91, 0.9, strategy="clip"),
        *some_finals("0002", 0.9, 0.9, strategy="naive"),
        *some_finals("0003", 0.7, 0.7, strategy="lp_ft"),
    ]
    found = results_of(records, ["0001", "0002", "0003"], **plan)
    rows = [{"at": "", "part": part, "rows": ROWS, "why_none": {}} for part in ("val", "test")]
    return replace(found, zero_effort=rows)


def test_the_answer_names_what_is_tied_and_the_cheapest_of_it(results: Results) -> None:
    screen = first_screen(results)
    assert screen.answer.startswith("Tied: clip and naive. The cheapest is ")
    assert screen.split == "test"
    assert [(bar.name, bar.is_tied) for bar in screen.bars] == [
        *(("clip", True), ("naive", True), ("lp_ft", False), ("kNN (k=20)", False), ("scratch", False))
    ]


def test_every_row_has_the_gain_of_the_winner_over_it(results: Results) -> None:
    rows = {bar.name: (bar.role, f"{bar.estimate.mean:.2f}", bar.gain) for bar in first_screen(results).bars}
    assert rows["clip"] == ("", "0.90", "")
    assert rows["kNN (k=20)"] == ("no training", "0.72", "+18.0")
    assert rows["scratch"] == ("one run, validation set", "0.55", "+37.0")
    role, accuracy, gain = rows["lp_ft"]
    assert (role, accuracy) == ("the control", "0.70")
    assert gain.startswith("+20.0 (+")


def test_positions_lie_on_the_axis_from_the_lowest_to_the_highest_end(results: Results) -> None:
    screen = first_screen(results)
    ends = [screen.position(end) for bar in screen.bars for end in (bar.estimate.low, bar.estimate.high)]
    assert (min(ends), max(ends)) == (0.0, 100.0)


def test_the_cost_counts_every_run_of_search_and_finals(results: Results) -> None:
    assert first_screen(results).cost.startswith("13 runs, ")


def test_the_commands_name_the_storage_and_can_be_given_as_they_are(results: Results) -> None:
    name = results.plan["name"]
    assert [command for _, command in first_screen(results).commands] == [
        f"python -m xfer predict --model 'my runs/{name}/model' PHOTO ...",
        f"python -m sweeps reproduce {name} --storage 'my runs'",
        f"python -m sweeps ui {name} --storage 'my runs'",
    ]


def test_before_the_test_set_is_opened_there_are_no_commands_and_accuracies_are_on_validation() -> None:
    records = [a_record("0001", (0.6, 0.92), strategy="clip"), a_record("0002", (0.5, 0.6), "pruned")]
    screen = first_screen(results_of(records))
    assert (screen.split, screen.answer, screen.commands) == ("validation", "", ())
    assert [bar.name for bar in screen.bars] == ["clip"]


def test_a_sweep_without_a_finished_trial_has_no_rows() -> None:
    assert first_screen(results_of([])).bars == ()
    assert first_screen(results_of([a_record("0000", (), "failed", error="loss is NaN")])).bars == ()


def test_the_report_begins_with_it_in_both_formats(results: Results, tmp_path: Path) -> None:
    html = render(results, tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    for page in (html, markdown):
        assert page.index("Tied: clip and naive.") < page.index("How the winner was chosen") < page.index("Ranking")
        assert "python -m sweeps reproduce" in page


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        (
            {"unfinished": ["0002-s2"]},
            "that has not ended: 4 of 4 search runs and 9 final runs have ended",
        ),
        ({"openings": ()}, "9 final runs have ended, the test set has not been opened."),
    ],
)
def test_a_snapshot_of_a_sweep_that_has_not_ended_says_so(
    results: Results, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    snapshot = replace(results, plan={**results.plan, "trials": 4}, **changes)
    assert expected in first_screen(snapshot).snapshot
    assert bool(first_screen(snapshot).snapshot) == bool(expected)
    page = render(snapshot, tmp_path).read_text()
    assert expected in page


def test_during_the_search_the_runs_of_the_search_are_counted() -> None:
    early = Results(a_plan(trials=4), [a_record("0001")], unfinished=["0002"])
    assert first_screen(early).snapshot == (
        "A snapshot of a sweep that has not ended: 1 of 4 search runs have ended, the test set has not been opened."
    )


def test_a_search_without_finals_ends_with_its_trials() -> None:
    assert first_screen(Results(a_plan(trials=1, finalists=0), [a_record("0001")])).snapshot == ""
    failed = a_record("0001", (0.5,), "failed", error="ValueError: no")
    assert first_screen(Results(a_plan(trials=1), [failed])).snapshot == ""


def test_what_is_as_good_without_any_training_is_part_of_the_answer(results: Results) -> None:
    assert "without any training" not in first_screen(results).answer
    rows = [{**row, "correct": 93} for row in ROWS]
    better = replace(results, zero_effort=[{"at": "", "part": "test", "rows": rows, "why_none": {}}])
    better = replace(better, zero_effort=[{**better.zero_effort[0], "part": part} for part in ("val", "test")])
    assert first_screen(better).answer.endswith(
        "kNN (k=5), without any training, is at least as good here: 93.0% (86.3 to 96.6)."
    )
