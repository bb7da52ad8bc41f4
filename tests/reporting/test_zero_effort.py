"""Zero-effort rows of a report: intervals, the table, and the comparison with the winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.reporting.formatting import MISSING
from sweeps.reporting.ranking import ranking_csv, ranking_frame
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from sweeps.reporting.screening import screening_table
from sweeps.reporting.zero_effort import describe_rows, row_estimate, zero_effort_comparison, zero_effort_table
from tests.reporting.conftest import a_plan, a_record, some_finals

BACKBONE = "mobilenetv2_100"


def a_measurement(part: str, *correct: int, images: int = 84, backbones: Sequence[str] = (BACKBONE,)) -> dict[str, Any]:
    """Stored rows with these numbers of correct images for kNN with 5 and 20 neighbours and the logistic probe."""
    methods: list[dict[str, Any]] = [
        {"method": "knn", "k": 5},
        {"method": "knn", "k": 20},
        {"method": "logistic_probe", "penalty": 1.0},
    ]
    rows = [
        {"backbone": backbone, **method, "correct": count, "images": images, "train_images": 195}
        for backbone in backbones
        for method, count in zip(methods, correct, strict=True)
    ]
    return {"at": "2025-11-20T12:00:00+00:00", "part": part, "rows": rows, "why_none": {}}


def a_sweep(*measured: dict[str, Any], val: float = 0.9, test: float | None = None) -> Results:
    """A sweep with one finalist."""
    openings = [] if test is None else [{"at": "2025-11-20", "finalists": ["0001"]}]
    records = [a_record("0001", (0.5, val)), *some_finals("0001", val, test)]
    return Results(a_plan(), records, openings, zero_effort=measured)


def test_the_interval_is_wilsons() -> None:
    """By hand, z = 1.96: centre (73/84 + z²/168) / (1 + z²/84) = 0.8529, half width 0.0731."""
    estimate = row_estimate({"correct": 73, "images": 84})
    assert (estimate.mean, estimate.images, estimate.seeds) == (73 / 84, 84, 1)
    assert (round(estimate.low, 3), round(estimate.high, 3)) == (0.781, 0.925)


def test_the_console_line_has_every_method_with_its_interval_and_the_number_of_images() -> None:
    assert describe_rows(a_measurement("val", 73, 70, 75)) == [
        "before any training: kNN (k=5) 86.9% (78.1 to 92.5), kNN (k=20) 83.3% (73.9 to 89.8), "
        "logistic probe 89.3% (80.9 to 94.3) of 84 validation images"
    ]


def test_several_backbones_have_a_line_each_and_one_without_rows_says_why() -> None:
    measurement = a_measurement("val", 1, 1, 1, images=1, backbones=("one", "two"))
    lines = describe_rows({**measurement, "why_none": {"three": "no such weights"}})
    expected = [f"before any training, {name}" for name in ("one", "two", "three")]
    assert [line.split(":")[0] for line in lines] == expected
    assert lines[0].endswith("of 1 validation image")
    assert lines[2] == "before any training, three: not measured (no such weights)"


def test_the_table_has_no_test_column_before_the_test_set_is_opened() -> None:
    table = zero_effort_table(a_sweep(a_measurement("val", 73, 70, 75)))
    assert table.header == (
        *("backbone", "without training", "validation", "validation images", "training images", "penalty"),
    )
    assert table.rows[0] == (BACKBONE, "kNN (k=5)", "86.9% (78.1 to 92.5)", "84", "195", MISSING)
    assert [row[1] for row in table.rows] == ["kNN (k=5)", "kNN (k=20)", "logistic probe"]


def test_the_table_shows_both_sets_and_a_backbone_without_a_finalist_has_no_test_accuracy() -> None:
    measured = (
        a_measurement("val", 73, 70, 75, backbones=(BACKBONE, "other")),
        a_measurement("test", 130, 120, 140, images=153),
    )
    table = zero_effort_table(a_sweep(*measured, test=0.9)).select_columns("backbone", "test", "test images")
    assert table.rows[2] == (BACKBONE, "91.5% (86.0 to 95.0)", "153")
    assert [row[1:] for row in table.rows[3:]] == [(MISSING, MISSING)] * 3


def test_a_winner_that_is_clearly_better_is_compared_in_one_sentence() -> None:
    assert zero_effort_comparison(a_sweep(a_measurement("val", 5, 4, 6, images=100), val=0.9)) == (
        f"Without any training, a logistic probe on frozen features of {BACKBONE} reaches 6.0% (95% interval 2.8 to "
        "12.5; 100 images, 1 seed) on the validation set; the winner reaches 90.0% (95% interval 82.6 to 94.5; 100 "
        "images, 3 seeds), 84.0 points higher."
    )


@pytest.mark.parametrize(
    ("test", "correct", "ending"),
    [
        (
            0.9,
            89,
            "1.0 points higher. The intervals overlap: it is not settled",
        ),
        (0.9, 90, "the same. The winner does not beat this, the cheapest method. The intervals overlap"),
        (0.9, 95, "5.0 points lower. The winner does not beat this, the cheapest method. The intervals overlap"),
        (0.3, 95, "65.0 points lower. The winner does not beat this, the cheapest method."),
    ],
)
def test_a_tie_and_a_defeat_are_said_after_the_comparison_on_the_test_set(
    test: float, correct: int, ending: str
) -> None:
    measured = (a_measurement("val", 40, 90, 50, images=100), a_measurement("test", 0, correct, 0, images=100))
    sentence = zero_effort_comparison(a_sweep(*measured, test=test))
    assert sentence is not None
    assert "kNN (k=20) on frozen features" in sentence  # the best one on validation, whatever the test set says
    assert f"{100 * test:.1f}%" in sentence
    assert "on the test set" in sentence
    assert ending in sentence
    assert ("overlap" in sentence) == ("overlap" in ending)


def test_nothing_is_compared_without_a_measurement_or_a_winner() -> None:
    assert zero_effort_comparison(a_sweep()) is None
    assert zero_effort_table(a_sweep()).rows == ()
    assert zero_effort_comparison(Results(a_plan(), [], zero_effort=[a_measurement("val", 1, 2, 3)])) is None


def a_zero_shot_measurement(part: str, *correct: int, images: int = 84) -> dict[str, Any]:
    """Stored zero-shot rows with these numbers of correct images for one and seven prompts."""
    rows = [
        {"backbone": "tiny_clip", "method": "zero_shot", "prompts": prompts, **counts}
        for prompts, count in zip((1, 7), correct, strict=True)
        if (counts := {"correct": count, "images": images, "train_images": 0})
    ]
    return {"at": "2026-12-01T12:00:00+00:00", "part": part, "rows": rows, "why_none": {}, "zero_shot": "tiny_clip"}


def test_zero_shot_rows_stand_below_the_others_on_both_sets() -> None:
    measured = (a_measurement("val", 73, 70, 75), a_zero_shot_measurement("val", 40, 42))
    table = zero_effort_table(a_sweep(*measured, a_zero_shot_measurement("test", 21, 19, images=42), test=0.9))
    assert [row[:2] for row in table.rows[3:]] == [
        ("tiny_clip", "zero-shot (1 prompt)"),
        ("tiny_clip", "zero-shot (7 prompts)"),
    ]
    assert table.select_columns("test", "test images", "training images", "penalty").rows[3] == (
        *("50.0% (35.5 to 64.5)", "42", "0", MISSING),
    )


def test_the_winner_is_compared_with_zero_shot_if_that_is_the_best_row() -> None:
    sentence = zero_effort_comparison(a_sweep(a_measurement("val", 40, 50, 45), a_zero_shot_measurement("val", 60, 70)))
    assert sentence is not None
    assert sentence.startswith("Without any training, zero-shot (7 prompts) with tiny_clip reaches 83.3% ")


def test_the_report_compares_right_after_the_headline_and_the_ranking_is_unchanged(tmp_path: Path) -> None:
    results = a_sweep(a_measurement("val", 73, 70, 75), val=0.9)
    render(results, tmp_path)
    sentence = zero_effort_comparison(results)
    assert sentence is not None
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.index("Best on validation is") < text.index("Without any training, ") < text.index("Ranking")
        assert text.index("Ranking") < text.index("Without training") < text.index("Learning curves")
    assert ranking_csv(ranking_frame(results)) == ranking_csv(ranking_frame(replace(results, zero_effort=())))


def test_the_screening_has_a_column_for_the_fewest_neighbours_if_they_were_measured() -> None:
    decision = {"by": "accuracy", "kept": [BACKBONE], "dropped": ["other"], "penalties": {}}
    table = screening_table(Results(a_plan(), [], screening=decision, zero_effort=[a_measurement("val", 73, 70, 75)]))
    assert table.select_columns("backbone", "kNN").rows == ((BACKBONE, "86.9% (78.1 to 92.5)"), ("other", MISSING))
    assert "kNN" not in screening_table(Results(a_plan(), [], screening=decision)).header
