"""What was searched: settings of the best trial at an edge of their range, and combinations that no trial has."""

from __future__ import annotations

import pytest

from sweeps.reporting.coverage import coverage_sections, edge, settings_at_edge
from sweeps.reporting.formatting import MISSING
from tests.reporting.conftest import a_record, results_of

SPACE = {
    "strategy": "naive, freeze_then_unfreeze, ridge_probe",
    "optimizer": "sgd, adam",
    "weight_decay": "1e-06..0.01 log",
    "batch_size": "16, 32, 64",
    "clip_norm": "none, 0.5, 1.0",
    "freeze_then_unfreeze.freeze_epochs": "1..3",
    "sgd.learning_rate": "0.001..0.1 log",
    "adam.learning_rate": "3e-05..0.01 log",
}


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        (0.0045, "0.0001..0.005 log", "high end"),
        (0.004, "0.0001..0.005 log", ""),
        (0.00011, "0.0001..0.005 log", "low end"),
        (0.26, "0.25..1", "low end"),
        (0.6, "0.25..1", ""),
        (3, "1..3", "high end"),
        (2, "1..3", ""),
        (64, "16, 32, 64", "high end"),
        (32, "16, 32, 64", ""),
        (16, "16, 32", ""),
        (1.0, "none, 0.5, 1.0", ""),
        (9, "9", ""),
        (0.0, "0..0", ""),
        (-1.0, "-2..-1", "high end"),
    ],
)
def test_an_edge_is_a_twentieth_of_the_range_on_its_own_scale(value: float, text: str, expected: str) -> None:
    assert edge(value, text) == expected


def test_only_axes_that_the_best_trial_has_are_checked() -> None:
    results = results_of([a_record("0000", learning_rate=0.0098, weight_decay=0.01, batch_size=32)], space=SPACE)
    assert settings_at_edge(results, results.trials[0]) == [
        "weight decay 0.01 (high end of 1e-06..0.01 log)",
        "adam learning rate 0.0098 (high end of 3e-05..0.01 log)",
    ]
    frozen = a_record("0000", strategy="freeze_then_unfreeze", learning_rate=1e-3)
    results = results_of([frozen], space={**SPACE, "freeze_then_unfreeze.freeze_epochs": "1..2"})
    assert settings_at_edge(results, results.trials[0]) == ["freeze_then_unfreeze freeze epochs 2 (high end of 1..2)"]


def test_a_head_in_closed_form_has_no_learning_rate_at_an_edge() -> None:
    results = results_of([a_record("0000", (0.9,), strategy="ridge_probe", learning_rate=0.01)], space=SPACE)
    assert settings_at_edge(results, results.trials[0]) == []


def test_combinations_that_no_trial_has_are_counted_and_empty_in_the_table() -> None:
    records = [
        a_record("0000", (0.5, 0.8)),
        a_record("0001", (0.5, 0.9)),
        a_record("0002", (0.5,), "pruned", strategy="freeze_then_unfreeze", optimizer={"name": "sgd"}),
        a_record("0003", (0.7,), strategy="ridge_probe"),
    ]
    (section,) = coverage_sections(results_of(records, space=SPACE))
    assert section.table.header == ("strategy", "sgd", "adam")
    assert section.table.rows == (
        ("naive", MISSING, "2: 90.0%"),
        ("freeze_then_unfreeze", "1: none finished", MISSING),
    )
    assert section.sentences[1] == "Of 4 combinations of strategy and optimizer, 2 were never tried."


def test_the_sentence_on_edges_names_the_option_that_searches_further() -> None:
    (section,) = coverage_sections(results_of([a_record("0000", weight_decay=1e-6)], space=SPACE))
    assert section.sentences[0] == (
        "Of the best trial, 0000, 1 setting lies at an edge of what was searched, so better values may lie beyond: "
        "weight decay 1e-06 (low end of 1e-06..0.01 log). --vary AXIS=LOW..HIGH searches further."
    )
    (section,) = coverage_sections(results_of([a_record("0000", weight_decay=1e-4)], space=SPACE))
    assert section.sentences[0] == "No setting of the best trial, 0000, lies at an edge of its range."


def test_a_single_combination_has_no_table() -> None:
    space = {"strategy": "naive", "optimizer": "adam"}
    (section,) = coverage_sections(results_of([a_record("0000")], space=space))
    assert section.table.rows == ()
    assert coverage_sections(results_of([a_record("0000", (0.5,), "pruned")], space=space)) == []
