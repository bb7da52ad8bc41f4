"""Methods are compared across data sets: ranks, critical difference, interquartile means, and what may be concluded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.reporting.across_data_sets import (
    compare_across,
    conclusions,
    data_sets_needed,
    friedman_p_value,
    interquartile_mean,
    mean_gap,
    rank_columns,
)
from sweeps.reporting.comparison_page import write_comparison
from sweeps.reporting.results import Results
from tests.reporting.conftest import a_plan, a_record, some_finals

ACCURACIES = np.array([[0.91, 0.84, 0.77, 0.95], [0.89, 0.86, 0.77, 0.90], [0.60, 0.55, 0.70, 0.65]])
"""[methods][data sets]"""


def a_sweep(number: int, accuracies: Mapping[str, float], **plan: object) -> Results:
    records = [a_record(f"{i:04d}", (0.5, value), strategy=name) for i, (name, value) in enumerate(accuracies.items())]
    data = {**a_plan()["data"], "pack": str(number) * 64, "folder": f"photos{number}"}
    return Results(a_plan(data=data, name=f"folder-photos{number}", **plan), records)


def sweeps_with(*accuracies: Mapping[str, float]) -> dict[str, Results]:
    return {f"folder-photos{number}": a_sweep(number, each) for number, each in enumerate(accuracies)}


def test_ranks_and_friedmans_test_are_those_computed_by_hand_and_by_scipy() -> None:
    assert rank_columns(ACCURACIES).tolist() == [[1, 2, 1.5, 1], [2, 1, 1.5, 2], [3, 3, 3, 3]]
    assert friedman_p_value(ACCURACIES) == pytest.approx(stats.friedmanchisquare(*ACCURACIES).pvalue)
    assert math.isnan(friedman_p_value(ACCURACIES[:2]))


def test_the_interquartile_mean_equals_the_trimmed_mean_of_scipy_where_that_trims_whole_values() -> None:
    values = np.random.default_rng(0).random((3, 20))
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=-1))
    assert interquartile_mean([0.2, 0.4, 0.9]) == pytest.approx((0.25 * 0.2 + 0.4 + 0.25 * 0.9) / 1.5)


def test_the_gap_over_data_sets_has_the_t_interval_of_scipy() -> None:
    differences = [0.02, 0.05, -0.01, 0.03]
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    gap = mean_gap(differences)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((np.mean(differences), interval.low, interval.high))
    assert math.isnan(mean_gap([0.1]).low)


def test_a_strategy_counts_with_its_best_run_and_methods_that_a_sweep_lacks_are_left_out() -> None:
    sweeps = sweeps_with({"clip": 0.9, "naive": 0.8, "scratch": 0.5}, {"clip": 0.7, "naive": 0.6})
    more = a_record("0009", (0.5, 0.95), strategy="naive")
    first = sweeps["folder-photos0"]
    sweeps["folder-photos0"] = Results(first.plan, [*first.records, more])
    comparison = compare_across(sweeps)
    naive = comparison.methods.index("naive")
    assert comparison.values[naive][0].estimate.mean == pytest.approx(0.95)
    assert comparison.values[naive][0].runs == 2
    assert comparison.left_out == {"scratch": ("folder-photos1",)}
    assert comparison.mean_ranks == (1.5, 1.5)


def test_with_too_few_data_sets_nothing_is_concluded_from_ranks() -> None:
    sweeps = sweeps_with(*({"clip": 0.9, "naive": 0.8, "scratch": 0.5} for _ in range(3)))
    said = " ".join(conclusions(compare_across(sweeps)))
    assert data_sets_needed(3) > 2
    assert "clip has the best mean rank of 3 methods: 1.0 on 3 data sets." in said
    assert ("No difference of ranks" in said) == (data_sets_needed(3) > 3)


def test_with_enough_data_sets_the_worse_methods_are_named_and_the_rest_stays_undecided() -> None:
    accuracies = [{"clip": 0.9 + 0.01 * (i % 2), "naive": 0.9 + 0.01 * ((i + 1) % 2), "scratch": 0.5} for i in range(8)]
    comparison = compare_across(sweeps_with(*accuracies))
    said = " ".join(conclusions(comparison))
    assert set(comparison.indistinguishable) == {"clip", "naive"}
    assert "It is better than scratch beyond chance" in said
    assert "Undecided between clip and naive: more data sets would settle it." in said
    assert "is ahead of scratch by 40.5 points on average" in said


def test_few_data_sets_are_called_few() -> None:
    few, more = ([{"clip": 0.9, "naive": 0.8}] * count for count in (4, 5))
    assert "4 data sets are few" in " ".join(conclusions(compare_across(sweeps_with(*few))))
    assert "are few" not in " ".join(conclusions(compare_across(sweeps_with(*more))))


def test_a_probe_counts_once_if_it_was_a_strategy_too() -> None:
    row = {"backbone": "b", "method": "logistic_probe", "correct": 80, "images": 100, "train_images": 9, "penalty": 1.0}
    rows = [{"at": "", "part": "val", "rows": [row], "why_none": {}}]
    sweeps = {
        name: replace(results, zero_effort=rows)
        for name, results in sweeps_with(*[{"clip": 0.9, "naive": 0.8, "logistic_probe": 0.8}] * 2).items()
    }
    assert compare_across(sweeps).methods == ("clip", "naive", "logistic_probe")
    sweeps = {
        name: replace(results, zero_effort=rows)
        for name, results in sweeps_with(*[{"clip": 0.9, "naive": 0.7}] * 2).items()
    }
    assert compare_across(sweeps).methods == ("clip", "logistic probe, no training", "naive")


def test_methods_that_are_equal_are_said_to_be_so() -> None:
    accuracies = [{"clip": 0.9, "naive": 0.9, "scratch": 0.9} for _ in range(8)]
    said = " ".join(conclusions(compare_across(sweeps_with(*accuracies))))
    assert "By their ranks, no method is shown to be worse than the best" in said
    assert "ahead of" not in said


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (sweeps_with({"clip": 0.9, "naive": 0.8}), "at least two sweeps, got 1"),
        (sweeps_with({"clip": 0.9}, {"naive": 0.8}), "at least 2 methods that finished in every sweep, found 0"),
        (
            {"a": a_sweep(1, {"clip": 0.9, "naive": 0.8}), "b": a_sweep(1, {"clip": 0.9, "naive": 0.8})},
            "a and b are sweeps of the same images",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(sweeps: dict[str, Results], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_across(sweeps)


def test_the_page_the_text_and_the_table_have_the_same_methods_and_show_names_as_text(tmp_path: Path) -> None:
    sweeps = sweeps_with({"clip": 0.9, "naive": 0.8}, {"clip": 0.7, "naive": 0.75})
    name, results = "folder-photos0", sweeps["folder-photos0"]
    data = {**results.plan["data"], "folder": "<script>alert(1)</script>"}
    finals = [record for strategy in (0, 1) for record in some_finals(f"{strategy:04d}", 0.9 - 0.1 * strategy, 0.85)]
    sweeps[name] = Results({**results.plan, "data": data}, [*results.records, *finals])
    _, page = write_comparison(sweeps, tmp_path, "python -m sweeps compare a b")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    figures = {"figures/accuracies.svg", "figures/ranks.svg"}
    assert written == {"comparison.html", "comparison.md", "comparison.csv", *figures}
    html, markdown = page.read_text(), (tmp_path / "comparison.md").read_text()
    frame = pd.read_csv(tmp_path / "comparison.csv")
    assert set(frame["method"]) == {"clip", "naive"}
    assert len(frame) == 4
    assert markdown.count("\n| method | mean rank |") == 1
    assert markdown.count("\n| clip | 1.5 |") == 1
    for text in (html, markdown):
        assert "clip" in text
        assert "python -m sweeps compare a b" in text
        assert "85.0%" in text
        assert "<script>" not in text
