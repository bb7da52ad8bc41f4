"""The answer: what it claims, and what it admits."""

from __future__ import annotations

import dataclasses

from sweeps.reporting.results import Results
from sweeps.reporting.summary import caveats, headline, how_to_read, strategy_comparison
from sweeps.reporting.tables import common_settings, failures_table, ranking_table, strategies_table, summary_table
from tests.reporting.conftest import a_record, results_of, some_finals


def test_the_headline_names_the_winner_with_both_parts_their_intervals_and_n(opened: Results) -> None:
    assert headline(opened) == (
        "Best is freeze_then_unfreeze(freeze_epochs=2) on mobilenetv2_100 with adam at learning rate 0.001 (trial "
        "0002): 90.0% (82.6% to 94.5%; 100 images, 3 seeds) on the test part, after 94.0% (87.5% to 97.2%; 100 images, "
        "3 seeds) on the validation part, which it was chosen on."
    )


def test_the_headline_before_the_test_part_is_opened() -> None:
    results = results_of([a_record("0000"), *some_finals("0000", 0.9)])
    assert headline(results).startswith("Ahead is naive on mobilenetv2_100")
    assert "100 images, 3 seeds) on the validation part." in headline(results)
    assert any("has not been opened" in caveat for caveat in caveats(results))


def test_the_headline_when_nothing_finished() -> None:
    records = [a_record("0000", (), "failed"), a_record("0001", (), "failed"), a_record("0002", (0.5,), "pruned")]
    assert headline(results_of([])) == "No trial has ended yet."
    assert headline(results_of(records)) == (
        "No trial finished, so there is nothing to rank: 1 trial pruned and 2 trials failed."
    )


def test_what_the_other_strategies_reached_is_told(opened: Results) -> None:
    assert strategy_comparison(opened) == (
        "Best single search run of each strategy on the validation part: naive 97.0%, freeze_then_unfreeze 95.0% and "
        "scratch 80.0%; no trial of linear_probe finished."
    )
    assert strategy_comparison(results_of([a_record("0000")])) is None


def test_overlapping_intervals_are_admitted(opened: Results) -> None:
    close, higher = caveats(opened)
    assert close == (
        "On the test part the intervals of the first two, 0002 and 0004, overlap: which of them is better is not "
        "settled."
    )
    assert higher.startswith("On the test part finalist 0004 came out higher, at 92.0%.")


def test_clearly_separate_intervals_need_no_caveat() -> None:
    records = [a_record("0000"), *some_finals("0000", 0.98, 0.98), a_record("0001"), *some_finals("0001", 0.6, 0.6)]
    assert caveats(results_of(records, ["0000", "0001"])) == []


def test_a_single_seed_a_second_opening_and_unfinished_trials_are_admitted() -> None:
    records = [a_record("0000"), *some_finals("0000", 0.9, 0.9, seeds=1)]
    results = dataclasses.replace(results_of(records, ["0000"], ["0000"]), unfinished=["0001", "0002"])
    one_seed, opened_twice, unfinished = caveats(results)
    assert "one seed only" in one_seed
    assert "opened 2 times, so it is no longer untouched" in opened_twice
    assert unfinished == "2 trials begun and not ended yet: 0001, 0002."


def test_the_reader_is_told_when_the_test_part_was_opened(opened: Results) -> None:
    assert (
        "opened once, after the finalists' order was fixed: at 2025-11-20T12:00:00+00:00 for 0002 and 0004."
        in (how_to_read(opened)[1])
    )
    assert "finalists on new seeds" not in how_to_read(results_of([a_record("0000")]))[0]


def test_the_reader_is_told_what_a_warm_start_took_from_where() -> None:
    records = [a_record("0000")]
    taken = {"from": [{"sweep": "dogs", "distance": 0.456, "trials": ["0003", "0001"]}], "params": [{}, {}]}
    assert how_to_read(results_of(records, warm_start={"asked": True, **taken}))[1].startswith(
        "The search began with 2 recipes taken from dogs (distance 0.46), earlier sweeps on data that look alike, by "
        "their validation scores"
    )
    nothing = results_of(records, warm_start={"asked": True, "from": [], "params": []})
    assert "no earlier sweep in the storage had data that look alike" in how_to_read(nothing)[1]
    assert not any("arm start" in said or "began with" in said for said in how_to_read(results_of(records)))


def test_the_summary_fits_a_terminal(opened: Results) -> None:
    table = summary_table(opened, top=2)
    assert table.header == ("rank", "trial", "strategy", "status", "validation", "test")
    assert [row[:2] for row in table.rows] == [("1", "0002"), ("2", "0004")]
    assert table.rows[0][5] == "90.0% (82.6 to 94.5)"
    assert all(len(row) == len(table.header) for row in table.rows)


def test_only_settings_that_differ_have_a_column(opened: Results) -> None:
    assert ranking_table(opened).header[-1] == "clip norm"
    assert "clip norm" not in common_settings(opened)
    assert common_settings(opened)["optimizer"] == "adam"


def test_the_tables_count_what_was_pruned_and_say_why_runs_failed(opened: Results) -> None:
    assert strategies_table(opened).rows[0] == ("naive", "2", "1", "97.0%", "97.0%", "0", "1")
    assert failures_table(opened).rows == (("0003", "naive", "0", "loss is NaN at step 12"),)
