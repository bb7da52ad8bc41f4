"""The summary: headline, caveats and reading guide."""

from __future__ import annotations

import dataclasses

from sweeps.reporting.results import Results
from sweeps.reporting.summary import caveats, headline, how_to_read, strategy_comparison
from sweeps.reporting.tables import common_settings, failures_table, ranking_table, strategies_table, summary_table
from tests.reporting.conftest import a_record, results_of, some_finals


def test_the_headline_gives_test_and_validation_accuracy_with_intervals_and_sample_sizes(opened: Results) -> None:
    assert headline(opened) == (
        "Best is freeze_then_unfreeze(freeze_epochs=2) on mobilenetv2_100 with adam at learning rate 0.001 (trial "
        "0002): test accuracy 90.0% (95% interval 82.6 to 94.5; 100 images, 3 seeds). Its validation accuracy, on "
        "which it was selected, is 94.0% (95% interval 87.5 to 97.2; 100 images, 3 seeds)."
    )


def test_the_headline_before_the_test_set_is_used() -> None:
    results = results_of([a_record("0000"), *some_finals("0000", 0.9)])
    assert headline(results) == (
        "Best on validation is naive on mobilenetv2_100 with adam at learning rate 0.001 (trial 0000): accuracy 90.0% "
        "(95% interval 82.6 to 94.5; 100 images, 3 seeds)."
    )
    assert any("Nothing has been evaluated on the test set" in caveat for caveat in caveats(results))


def test_the_headline_when_nothing_finished() -> None:
    records = [a_record("0000", (), "failed"), a_record("0001", (), "failed"), a_record("0002", (0.5,), "pruned")]
    assert headline(results_of([])) == "No trial has ended yet."
    assert headline(results_of(records)) == (
        "No trial finished, so there is nothing to rank: 1 trial stopped early and 2 trials failed."
    )


def test_the_strategies_are_compared_in_one_sentence(opened: Results) -> None:
    assert strategy_comparison(opened) == (
        "Best validation accuracy of a single search run, by strategy: naive 97.0%, freeze_then_unfreeze 95.0% and "
        "scratch 80.0%; no trial of linear_probe finished."
    )
    assert strategy_comparison(results_of([a_record("0000")])) is None


def test_overlapping_intervals_are_a_caveat(opened: Results) -> None:
    close, higher = caveats(opened)
    assert close == ("The test intervals of the top two, 0002 and 0004, overlap: which one is better is not settled.")
    assert higher.startswith("On the test set, finalist 0004 scored higher (92.0%).")


def test_clearly_separate_intervals_need_no_caveat() -> None:
    records = [a_record("0000"), *some_finals("0000", 0.98, 0.98), a_record("0001"), *some_finals("0001", 0.6, 0.6)]
    assert caveats(results_of(records, ["0000", "0001"])) == []


def test_a_single_seed_a_reused_test_set_and_unfinished_trials_are_caveats() -> None:
    records = [a_record("0000"), *some_finals("0000", 0.9, 0.9, seeds=1)]
    results = dataclasses.replace(results_of(records, ["0000"], ["0000"]), unfinished=["0001", "0002"])
    one_seed, used_twice, unfinished = caveats(results)
    assert "one seed only" in one_seed
    assert "used 2 times, so it is no longer untouched" in used_twice
    assert unfinished == "2 trials have started but not ended: 0001, 0002."


def test_the_guide_says_when_the_test_set_was_used(opened: Results) -> None:
    assert how_to_read(opened)[1] == (
        "The test set was used once, after the ranking of the finalists was fixed: at 2025-11-20T12:00:00+00:00 for "
        "0002 and 0004."
    )


def test_the_guide_mentions_finalists_only_if_there_are_any(opened: Results) -> None:
    assert "re-trained as finalists on new seeds" in how_to_read(opened)[0]
    assert "finalists on new seeds" not in how_to_read(results_of([a_record("0000")]))[0]


def test_the_guide_lists_the_sources_of_a_warm_start() -> None:
    records = [a_record("0000")]
    taken = {"from": [{"sweep": "dogs", "distance": 0.456, "trials": ["0003", "0001"]}], "params": [{}, {}]}
    assert how_to_read(results_of(records, warm_start={"asked": True, **taken}))[1].startswith(
        "The search started with 2 recipes from earlier sweeps on similar data: dogs (distance 0.46)."
    )
    without_sources = results_of(records, warm_start={"asked": True, "from": [], "params": []})
    assert "no earlier sweep in the storage used similar data" in how_to_read(without_sources)[1]
    assert not any("arm start" in text or "started with" in text for text in how_to_read(results_of(records)))


def test_the_summary_fits_a_terminal(opened: Results) -> None:
    table = summary_table(opened, top=2)
    assert table.header == ("rank", "trial", "strategy", "status", "validation", "test")
    assert [row[:2] for row in table.rows] == [("1", "0002"), ("2", "0004")]
    assert table.rows[0][5] == "90.0% (82.6 to 94.5)"
    assert all(len(row) == len(table.header) for row in table.rows)


def test_only_settings_that_vary_have_a_column(opened: Results) -> None:
    assert ranking_table(opened).header[-1] == "clip norm"
    assert "clip norm" not in common_settings(opened)
    assert common_settings(opened)["optimizer"] == "adam"


def test_a_trial_that_was_stopped_early_shows_its_last_epoch(opened: Results) -> None:
    status = ranking_table(opened).header.index("status")
    assert [row[status] for row in ranking_table(opened).rows][2:] == ["finished", "stopped early at epoch 2", "failed"]
    assert [row[3] for row in summary_table(opened).rows][2:] == ["finished", "stopped", "failed"]


def test_the_strategies_table_counts_outcomes_and_describes_each_strategy(opened: Results) -> None:
    table = strategies_table(opened)
    assert table.header[5:] == ("stopped early", "failed", "description")
    assert table.rows[0] == ("naive", "2", "1", "97.0%", "97.0%", "0", "1", "full fine-tuning")


def test_the_description_of_a_strategy_explains_its_name() -> None:
    table = strategies_table(results_of([a_record("0000", strategy="clip"), a_record("0001", strategy="my_own")]))
    assert dict(zip(("clip", "my_own"), (row[-1] for row in table.rows), strict=True)) == {
        "clip": "full fine-tuning with gradient clipping",
        "my_own": "",
    }


def test_failed_runs_are_listed_with_their_errors(opened: Results) -> None:
    assert failures_table(opened).rows == (("0003", "naive", "0", "loss is NaN at step 12"),)
