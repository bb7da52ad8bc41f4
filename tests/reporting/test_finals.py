"""The comparison of the finalists, their ranks, and the sentences about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sweeps.reporting.finals import compare_finalists, rank_numbers
from sweeps.reporting.ranking import ranked_finalists, ranking_frame
from sweeps.reporting.results import Results
from sweeps.reporting.statistics import compare_with_best, outlook
from sweeps.reporting.tables import ranking_table
from sweeps.reporting.verdict import optimism, verdict
from tests.reporting.conftest import a_record, an_evaluation, results_of, some_finals
from xfer.records import Record


def a_finalist(trial: str, accuracy: float, test: float | None = None, **details: float | int) -> list[Record]:
    seconds, seeds = float(details.get("seconds", 10)), int(details.get("seeds", 3))
    return [a_record(trial, seconds=seconds), *some_finals(trial, accuracy, test, seeds, seconds=seconds)]


def results_with(*finalists: list[Record], opened: bool = True, **plan: object) -> Results:
    records = [record for records in finalists for record in records]
    names = [records[0].trial for records in finalists]
    return results_of(records, *([names] if opened else []), **plan)


CLOSE = results_with(a_finalist("0000", 0.94, 0.90, seconds=40), a_finalist("0001", 0.93, 0.92))
CLEAR = results_with(a_finalist("0000", 0.95, 0.94), a_finalist("0001", 0.9, 0.6), a_finalist("0002", 0.8, 0.5))


def test_finalists_are_compared_on_the_test_set_with_the_answers_of_their_runs() -> None:
    comparison = compare_finalists(CLOSE, ranked_finalists(CLOSE))
    assert comparison is not None
    assert comparison.split == "test"
    assert comparison.correct.shape == (2, 3, 100)
    assert comparison.correct.mean(axis=(1, 2)) == pytest.approx([0.90, 0.92])
    assert comparison.by_name == compare_with_best(comparison.correct, ["0000", "0001"])


def test_before_the_test_set_is_used_the_validation_set_is_behind_the_comparison() -> None:
    results = results_with(a_finalist("0000", 0.94), a_finalist("0001", 0.93), opened=False)
    comparison = compare_finalists(results, ranked_finalists(results))
    assert comparison is not None
    assert comparison.split == "validation"
    text = verdict(results)
    assert text is not None
    assert text.startswith("Tied on the validation set: 0000 and 0001 (all finalists).")


def test_images_that_a_seed_did_not_draw_are_missing() -> None:
    def redrawn(records: list[Record]) -> list[Record]:
        search, *finals = records
        drawn = [an_evaluation("val", 90, first=50 * seed) for seed in range(len(finals))]
        return [search, *(replace(final, val=val) for final, val in zip(finals, drawn, strict=True))]

    finalists = redrawn(a_finalist("0000", 0.9)), redrawn(a_finalist("0001", 0.9, seeds=2))
    results = results_with(*finalists, opened=False)
    comparison = compare_finalists(results, ranked_finalists(results))
    assert comparison is not None
    assert comparison.correct.shape == (2, 3, 200)
    assert (~np.isnan(comparison.correct)).sum(axis=2).tolist() == [[100, 100, 100], [100, 100, 0]]


def test_one_finalist_or_another_objective_has_no_comparison() -> None:
    one = results_with(a_finalist("0000", 0.94, 0.9))
    by_loss = results_with(a_finalist("0000", 0.94, 0.9), a_finalist("0001", 0.93, 0.92), objective=["loss"])
    for results in (one, by_loss, results_of([])):
        assert compare_finalists(results, ranked_finalists(results)) is None
        assert verdict(results) is None


def test_finalists_without_a_common_seed_are_not_compared() -> None:
    late = [a_record("0001"), *some_finals("0001", 0.93, 0.92)[2:]]
    results = results_with(a_finalist("0000", 0.94, 0.9, seeds=2), late)
    assert compare_finalists(results, ranked_finalists(results)) is None


def test_tied_finalists_share_rank_1_and_the_others_have_the_rank_of_their_position() -> None:
    results = results_with(
        a_finalist("0000", 0.94, 0.90), a_finalist("0001", 0.93, 0.60), a_finalist("0002", 0.92, 0.91)
    )
    frame = ranking_frame(results)
    assert frame["rank"].tolist() == [1, 2, 1]
    assert frame["tied_with_best"].tolist() == ["yes", "no", "yes"]
    assert frame["diff_to_best"].tolist() == pytest.approx([-0.01, -0.31, 0.01])
    assert frame["diff_low"][0] < 0 < frame["diff_high"][0]
    assert frame["diff_high"][1] < 0
    assert [row[0] for row in ranking_table(results).rows] == ["1", "2", "1"]


def test_a_first_trial_that_the_test_set_shows_to_be_worse_stays_first() -> None:
    results = results_with(a_finalist("0000", 0.94, 0.60), a_finalist("0001", 0.93, 0.92))
    comparison = compare_finalists(results, ranked_finalists(results))
    assert rank_numbers(["0000", "0001", "0002"], comparison) == [1, 2, 3]
    text = verdict(results)
    assert text is not None
    assert text.startswith("0001 (naive) is better than the best of the other finalists by 32.0 points on the test set")
    assert "The ranking still begins with 0000, which was first on the validation set." in text


def test_a_single_best_is_stated_with_its_difference_and_interval() -> None:
    comparison = compare_finalists(CLEAR, ranked_finalists(CLEAR))
    assert comparison is not None
    best = comparison.by_name["0000"]
    assert verdict(CLEAR) == (
        "0000 (naive) is better than the best of the other finalists by 34.0 points on the test set (95% interval "
        f"{100 * best.low:.1f} to {100 * best.high:.1f}), with a probability of over 99.9% of being the best."
    )


def test_a_tie_names_the_cheapest_and_what_would_settle_it() -> None:
    comparison = compare_finalists(CLOSE, ranked_finalists(CLOSE))
    assert comparison is not None
    expected = outlook(*comparison.correct)
    assert verdict(CLOSE) == (
        "Tied on the test set: 0000 and 0001 (all finalists). Any of them may be the best; the cheapest is 0001 "
        "(naive, 40 s for all of its runs). Finals like these find a difference of "
        f"{100 * expected.detectable:.1f} points between 0000 and 0001 in 80% of cases; the measured one is 2.0. If it "
        f"is real, about {expected.images} test images instead of 100 would settle it."
    )


def test_a_tie_within_the_margin_says_that_it_does_not_matter() -> None:
    results = results_with(a_finalist("0000", 0.94, 0.90), a_finalist("0001", 0.93, 0.92), margin=0.1)
    text = verdict(results)
    assert text is not None
    assert text.endswith("None of them is worse than the best by more than 10.0 points.")


def test_a_cheaper_finalist_within_the_margin_is_named() -> None:
    results = results_with(a_finalist("0000", 0.95, 0.96, seconds=40), a_finalist("0001", 0.9, 0.80), margin=0.5)
    text = verdict(results)
    assert text is not None
    assert text.endswith("0001 is cheaper (40 s instead of 2 min 40 s) and worse by at most 50.0 points.")


def test_the_optimism_of_the_winner_is_stated() -> None:
    assert optimism(CLOSE) == (
        "Accuracy of 0000 when it was chosen and afterwards: 90.0% in its search run, then 94.0% in the final runs on "
        "the validation set, and 90.0% on the test set. Optimism (validation minus test): +4.0 points."
    )
    assert optimism(results_with(a_finalist("0000", 0.94), opened=False)) is None


def test_the_control_of_the_plan_is_marked() -> None:
    finalists = a_finalist("0000", 0.94, 0.90), a_finalist("0001", 0.93, 0.92)
    assert ranking_frame(results_with(*finalists, control="0001"))["control"].tolist() == ["no", "yes"]
    assert ranking_frame(results_with(*finalists))["control"].isna().all()
