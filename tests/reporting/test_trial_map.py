"""The map of all search runs: a row each, stretched to the same width, ending where the run ended."""

from __future__ import annotations

import numpy as np

from sweeps.reporting.results import Results
from sweeps.reporting.trial_map import COLUMNS, MAX_NAMED_TRIALS, cells, trial_map_sections
from tests.reporting.conftest import a_plan, a_record


def test_runs_of_different_lengths_have_the_same_width_and_stopped_ones_end_early() -> None:
    records = [
        a_record("0000", (0.5, 0.9), epochs=2),
        a_record("0001", (0.1, 0.2, 0.3, 0.4), epochs=4),
        a_record("0002", (0.6,), "pruned", epochs=4),
    ]
    results = Results(a_plan(trials=3), records)
    found = cells(results, list(results.trials))
    assert found[0].tolist() == [0.5] * (COLUMNS // 2) + [0.9] * (COLUMNS // 2)
    assert found[1].tolist() == [value for value in (0.1, 0.2, 0.3, 0.4) for _ in range(COLUMNS // 4)]
    assert np.isnan(found[2]).tolist() == [False] * (COLUMNS // 4) + [True] * (3 * COLUMNS // 4)


def test_the_section_counts_the_states_and_names_each_run() -> None:
    records = [a_record("0000"), a_record("0001", (0.6,), "pruned"), a_record("0002", (), "failed", error="lost")]
    [section] = trial_map_sections(Results(a_plan(trials=3), records))
    assert section.sentences == ("3 search runs: 1 failed, 1 finished, 1 stopped early.",)
    assert section.figure is not None
    assert "0000  naive" in section.figure.svg
    assert "stopped" in section.figure.svg


def test_thousands_of_runs_are_shown_without_names_in_a_small_figure() -> None:
    records = [a_record(f"{number:04d}") for number in range(MAX_NAMED_TRIALS + 1)]
    [section] = trial_map_sections(Results(a_plan(trials=len(records)), records))
    assert section.figure is not None
    assert "0000  naive" not in section.figure.svg
    assert len(section.figure.svg) < 50_000


def test_before_two_runs_have_an_epoch_there_is_nothing_to_see() -> None:
    assert trial_map_sections(Results(a_plan(), [a_record("0000")])) == []
