"""The table of importances names what exceeds chance, and says why there is none."""

from __future__ import annotations

from dataclasses import replace

from sweeps.reporting.importance import MIN_TRIALS, importance_sections
from sweeps.reporting.results import Importance, Importances
from tests.reporting.conftest import a_record, results_of

STRANGE = "<script>\x1b"


def some_results(count: int = 1):
    return results_of([a_record(f"{number:04d}") for number in range(count)])


def test_choices_beyond_chance_are_named() -> None:
    choices = (Importance(STRANGE, 0.6, 2.34, 40), Importance("sgd.learning_rate", 0.4, 0.99, 11))
    (section,) = importance_sections(replace(some_results(), importances=Importances(choices, 40, 40, 5)))
    assert section.sentences == (
        "More than by chance, <script>\\x1b made the difference between the best 5 and all 40 finished trials.",
    )
    assert section.table.header == ("choice", "importance", "times chance", "trials")
    assert section.table.rows == (
        ("<script>\\x1b", "60.0%", "2.3", "40"),
        ("sgd.learning_rate", "40.0%", "1.0", "11"),
    )


def test_it_is_said_if_no_choice_exceeds_chance_and_if_trials_were_sampled() -> None:
    choices = (Importance("optimizer", 1.0, 0.8, 200),)
    (section,) = importance_sections(replace(some_results(), importances=Importances(choices, 500, 200, 20)))
    assert section.sentences == (
        "No choice made more difference than chance explains between the best 20 and 200 of 500 finished trials.",
    )


def test_too_few_trials_are_a_reason() -> None:
    (section,) = importance_sections(some_results(3))
    assert section.sentences == (f"3 trials finished, too few for importances ({MIN_TRIALS} are needed).",)
    assert importance_sections(results_of([])) == []
    assert importance_sections(some_results(MIN_TRIALS)) == []
