"""Balanced accuracy and the worst class: in sentences, ranking tables, ranking.csv and the pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.reporting.formatting import MISSING
from sweeps.reporting.ranking import ranking_frame
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from sweeps.reporting.summary import accuracy_by_class
from sweeps.reporting.tables import ranking_table, search_table, summary_table
from tests.reporting.conftest import a_plan, a_record, an_evaluation, results_of
from xfer.measure.class_accuracy import ClassAccuracy, class_accuracies
from xfer.records import Evaluation, Part, Record

DATA = {**a_plan()["data"], "classes": ["ants", "bees", "wasps"]}
SENTENCE = (
    "Its balanced accuracy on the {part} set is 72.5%; its worst class, bees, has 50.0% of 20 images correct (95% "
    "interval 29.9 to 70.1). Classes without images in this set are left out: wasps."
)
CELLS = ("72.5%", "bees 50.0% (29.9 to 70.1), n = 20")


def by_class(part: Part) -> Evaluation:
    """80 images of ants, 76 of them correct, and 20 of bees, 10 of them correct."""
    confusion = ((0, 0, 76), (0, 1, 4), (1, 0, 10), (1, 1, 10))
    return replace(an_evaluation(part, 86), confusion=confusion, balanced_accuracy=0.725)


def a_run(trial: str, **changes: Any) -> Record:
    return replace(a_record(trial, (0.5, 0.86)), val=by_class("val"), **changes)


@pytest.fixture
def searched() -> Results:
    return results_of([a_run("0000"), a_record("0001", (0.3,), status="pruned")], data=DATA)


@pytest.fixture
def tested() -> Results:
    finals = [a_run(f"0000-s{seed}", test=by_class("test")) for seed in (1, 2, 3)]
    return results_of([a_run("0000"), *finals], ["0000"], data=DATA)


def test_balanced_accuracy_and_worst_class_are_of_the_validation_set_before_the_test_set_is_used(
    searched: Results,
) -> None:
    assert accuracy_by_class(searched) == SENTENCE.format(part="validation")


def test_three_seeds_on_the_same_test_images_do_not_narrow_the_interval_of_the_worst_class(tested: Results) -> None:
    assert accuracy_by_class(tested) == SENTENCE.format(part="test")


def test_ranking_tables_have_both_and_a_run_that_was_stopped_early_has_no_worst_class(
    searched: Results, tested: Results
) -> None:
    columns = ("balanced", "worst class")
    assert ranking_table(tested).select_columns(*columns).rows == (CELLS,)
    assert search_table(tested).select_columns(*columns).rows == (CELLS,)
    first, stopped = ranking_table(searched).select_columns(*columns).rows
    assert (first, stopped[1]) == (CELLS, MISSING)
    assert "balanced" in summary_table(tested).header


def test_tables_of_older_sweeps_without_class_results_have_neither_column() -> None:
    old = results_of([a_record("0000")], data=DATA)
    assert accuracy_by_class(old) is None
    assert not {"balanced", "worst class"} & {*ranking_table(old).header}


def test_ranking_csv_has_the_worst_class_of_both_sets(tested: Results) -> None:
    row = ranking_frame(tested).iloc[0]
    for part in ("val", "test"):
        values = [row[f"{part}_worst_class{suffix}"] for suffix in ("", "_accuracy", "_images")]
        assert values == ["bees", 0.5, 20]
        assert row[f"{part}_worst_class_ci_low"] == pytest.approx(0.299, abs=1e-3)
        assert row[f"{part}_worst_class_ci_high"] == pytest.approx(0.701, abs=1e-3)


def test_both_pages_state_the_worst_class_and_explain_the_columns(tested: Results, tmp_path: Path) -> None:
    render(tested, tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "its worst class, bees, has 50.0% of 20 images correct" in text
        assert "The interval counts each image once" in text


def test_the_class_with_most_images_is_the_worst_of_those_with_equal_accuracies() -> None:
    evaluation = replace(by_class("val"), confusion=((0, 1, 2), (1, 0, 3), (2, 2, 1)))
    assert class_accuracies([evaluation]) == [
        *(ClassAccuracy(1, 0.0, 3), ClassAccuracy(0, 0.0, 2), ClassAccuracy(2, 1.0, 1))
    ]


def test_class_accuracies_are_pooled_over_seeds_that_drew_different_images() -> None:
    other = replace(by_class("val"), confusion=((0, 0, 70), (1, 0, 5), (1, 1, 25)))
    worst, best = class_accuracies([by_class("val"), other])
    assert worst == ClassAccuracy(1, 35 / 50, 30)
    assert best == ClassAccuracy(0, 146 / 150, 80)
