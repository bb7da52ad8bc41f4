"""How the search went: the best so far, and whether early values rank the trials as the last ones do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweeps.reporting.results import Results
from sweeps.reporting.search_history import history_sections, rank_correlations
from sweeps.reporting.sections import Section
from tests.reporting.conftest import a_record, results_of


def sections_of(results: Results) -> tuple[Section, Section]:
    best, stopping = history_sections(results)
    return best, stopping


def test_the_best_trial_is_placed_in_the_search() -> None:
    records = [
        a_record("0000", (0.5, 0.7), seconds=10.0),
        a_record("0001", (0.5, 0.9), seconds=20.0),
        a_record("0002", (0.5, 0.99), "pruned", seconds=5.0),
        a_record("0003", (0.5, 0.9), seconds=40.0),
    ]
    best, _ = sections_of(results_of(records))
    assert best.sentences[0] == (
        "The best search run, trial 0001 with 90.0%, was number 2 of 4, after 30 s of 1 min 15 s of run time. The 2 "
        "trials after it took 45 s; none was better."
    )
    assert best.figure is not None
    last, _ = sections_of(results_of(records[:2]))
    assert "It was the last trial, so more trials may find a better one." in last.sentences[0]


def test_a_loss_has_its_best_at_the_lowest_value() -> None:
    best, _ = sections_of(results_of([a_record("0000", (0.5,)), a_record("0001", (0.9,))], objective=["loss"]))
    assert best.sentences[0].startswith("The best search run, trial 0000 with 0.6,")


def test_there_is_no_history_of_one_trial() -> None:
    assert history_sections(results_of([a_record("0000"), a_record("0001", (0.5,), "pruned")])) == []


def test_rank_correlations_are_spearmans_with_the_interval_of_bonett_and_wright() -> None:
    random = np.random.default_rng(0)
    last = random.normal(size=20)
    curves = [(end + 2 * random.normal(), end + random.normal(), end) for end in last]
    found = rank_correlations(curves)
    assert [one.epoch for one in found] == [1, 2]
    for epoch, one in enumerate(found):
        expected = stats.spearmanr([curve[epoch] for curve in curves], last).statistic
        assert one.correlation == pytest.approx(expected)
        error = 1.959964 * math.sqrt((1 + expected**2 / 2) / 17)
        assert (one.low, one.high) == pytest.approx(
            (math.tanh(math.atanh(expected) - error), math.tanh(math.atanh(expected) + error)), abs=1e-6
        )


def test_shorter_runs_are_compared_at_the_same_fraction() -> None:
    longer = [(0.1 * i, 9.0, 0.2 * i, 9.0, 0.3 * i, i) for i in range(3)]
    shorter = [(0.1 * i, 0.2 * i, i) for i in range(3, 6)]  # epochs 2, 4 and 6 of the longer runs
    found = {one.epoch: one.correlation for one in rank_correlations([*longer, *shorter])}
    assert found[1] == pytest.approx(1.0)
    assert found[3] == pytest.approx(1.0)
    assert found[2] < 1


def curves(count: int, noise: float) -> list[tuple[float, ...]]:
    random = np.random.default_rng(1)
    ends = random.uniform(0.5, 0.9, count)
    return [(float(np.clip(end + noise * random.normal(), 0, 1)), float(end)) for end in ends]


@pytest.mark.parametrize(
    ("count", "noise", "verdict"),
    [
        (40, 0.01, "early values predict the last ones, so stopping there was safe"),
        (40, 5.0, "early values do not predict the last ones, so stopping there was unsafe"),
        (6, 0.2, "the runs are too few to tell whether stopping there is safe"),
    ],
)
def test_the_verdict_on_early_stopping_needs_an_interval_on_one_side(count: int, noise: float, verdict: str) -> None:
    records = [a_record(f"{i:04d}", curve, epochs=2) for i, curve in enumerate(curves(count, noise))]
    stopped = a_record("0099", (0.3,), "pruned", epochs=2)
    _, stopping = sections_of(results_of([*records, stopped]))
    assert "1 trial was stopped early, the first after 50% of its epochs. After epoch 1 of 2" in stopping.sentences[0]
    assert stopping.sentences[0].endswith(f"{count} runs): {verdict}.")
    _, without = sections_of(results_of(records))
    assert without.sentences[0].startswith("No trial was stopped early. ")
    assert " was safe" not in without.sentences[0]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (
            [a_record(f"{i:04d}", (0.5, 0.6 + i / 10)) for i in range(4)],
            "4 search runs of several epochs finished, too",
        ),
        (
            [a_record(f"{i:04d}", (0.5 + i / 10,)) for i in range(6)],
            "0 search runs of several epochs finished, too few",
        ),
        ([a_record(f"{i:04d}", (0.5, 0.6)) for i in range(6)], "All finished runs have the same last value"),
    ],
    ids=["few runs", "heads of one epoch", "equal values"],
)
def test_what_cannot_be_correlated_has_a_reason(records: list, reason: str) -> None:
    _, stopping = sections_of(results_of(records))
    assert stopping.figure is None
    assert stopping.sentences[0].startswith(reason)
