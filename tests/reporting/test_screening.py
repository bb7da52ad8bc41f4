"""The table of the backbone screening."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.reporting.formatting import MISSING
from sweeps.reporting.render import render
from sweeps.reporting.screening import SCREENING_CAPTION, screening_caption, screening_table
from tests.reporting.conftest import a_record, an_evaluation, results_of
from xfer.records import Record

DECISION = {"by": "accuracy", "kept": ["vit", "resnet"], "dropped": ["old"], "penalties": {"vit": 0.1, "resnet": 10.0}}


def a_head(number: int, backbone: str, probe: str, penalty: float, accuracy: float, **changes: Any) -> Record:
    strategy = {"name": probe, "penalty": penalty}
    record = a_record(f"screen-{number:02d}", [accuracy], backbone=backbone)
    val = an_evaluation("val", round(100 * accuracy))
    return replace(
        record, **{"phase": "screen", "recipe": {**record.recipe, "strategy": strategy}, "val": val, **changes}
    )


def heads() -> list[Record]:
    return [
        a_head(0, "old", "ridge_probe", 1.0, 0.5, status="failed", epochs=(), val=None, error="no memory"),
        a_head(1, "resnet", "logistic_probe", 10.0, 0.7),
        a_head(2, "vit", "logistic_probe", 0.1, 0.8),
        a_head(3, "vit", "ridge_probe", 100.0, 0.9),
    ]


def test_each_backbone_has_a_row_with_its_best_head_best_first() -> None:
    results = replace(results_of([*heads(), a_record("0000")]), screening=DECISION)
    table = screening_table(results)
    assert table.header == ("backbone", "selected", "best head", "validation", "lp_ft penalty", "heads")
    assert table.rows == (
        ("vit", "yes", "ridge_probe(penalty=100)", "90.0% (82.6 to 94.5)", "0.1", "2"),
        ("resnet", "yes", "logistic_probe(penalty=10)", "70.0% (60.4 to 78.1)", "10", "1"),
        ("old", "no", "all failed", MISSING, MISSING, "1"),
    )


def test_the_deciding_objective_has_a_column_if_it_is_not_accuracy() -> None:
    records = [
        replace(head, epochs=tuple(replace(e, val_balanced_accuracy=0.25) for e in head.epochs)) for head in heads()
    ]
    table = screening_table(replace(results_of(records), screening={**DECISION, "by": "balanced_accuracy"}))
    assert table.header[2:5] == ("best head", "balanced accuracy", "validation")
    assert [row[3] for row in table.rows] == ["25.0%", "25.0%", MISSING]


def test_heads_are_not_trials_and_have_their_own_section(tmp_path: Path) -> None:
    results = replace(results_of([*heads(), a_record("0000")]), screening=DECISION)
    assert [trial.name for trial in results.trials] == ["0000"]
    page = render(results, tmp_path)
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert "Backbone screening" in text
        assert "ridge" in text
        assert "no memory" in text  # failed runs of all phases are listed
    assert SCREENING_CAPTION in page.read_text()


def test_without_a_screening_there_is_no_section(tmp_path: Path) -> None:
    page = render(results_of([a_record("0000")]), tmp_path)
    assert "Backbone screening" not in page.read_text()


@pytest.mark.parametrize(
    ("best_frozen", "best_on_imagenet", "sentence"),
    [
        ("vit", "resnet", "vit has the best frozen features, and resnet the highest published accuracy on ImageNet. "),
        ("vit", "vit", "vit has both the best frozen features and the highest published accuracy on ImageNet. "),
        ("vit", None, "vit has the best frozen features; no accuracy on ImageNet is published for any of these"),
    ],
)
def test_the_caption_of_a_panel_begins_with_the_networks_that_are_fine_tuned_in_any_case(
    tmp_path: Path, best_frozen: str, best_on_imagenet: str | None, sentence: str
) -> None:
    decision = {**DECISION, "best_frozen": best_frozen, "best_on_imagenet": best_on_imagenet}
    results = replace(results_of([*heads(), a_record("0000")]), screening=decision)
    assert screening_caption(results).startswith(sentence)
    assert screening_caption(results).endswith(SCREENING_CAPTION)
    assert sentence in render(results, tmp_path).with_name("report.md").read_text(encoding="utf-8")
    assert screening_caption(replace(results, screening=DECISION)) == SCREENING_CAPTION
