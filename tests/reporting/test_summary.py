"""The summary: headline, caveats and reading guide."""

from __future__ import annotations

import dataclasses

from sweeps.reporting.formatting import MISSING
from sweeps.reporting.ranking import ranking_frame
from sweeps.reporting.results import Results
from sweeps.reporting.summary import caveats, headline, how_to_read, image_counts, strategy_comparison
from sweeps.reporting.tables import (
    common_settings,
    failures_table,
    ranking_table,
    search_table,
    strategies_table,
    summary_table,
)
from tests.reporting.conftest import a_record, an_evaluation, results_of, some_finals
from xfer.records import Kept, Record

AVERAGED_TWICE: tuple[Kept, ...] = ("averaged", "averaged", "last")


def test_the_headline_gives_test_and_validation_accuracy_with_intervals_and_sample_sizes(opened: Results) -> None:
    assert headline(opened) == (
        "Tied for first place is freeze_then_unfreeze(freeze_epochs=2) (training the head alone for a few epochs, then "
        "everything) on mobilenetv2_100 with adam at learning rate 0.001 (trial 0002): test accuracy 90.0% (95% "
        "interval 82.6 to 94.5; 100 images, 3 seeds). It ranks first of 2 finalists by mean validation accuracy over "
        "final runs: 94.0% (95% interval 87.5 to 97.2; 100 images, 3 seeds)."
    )


def test_the_headline_before_the_test_set_is_used() -> None:
    results = results_of([a_record("0000"), *some_finals("0000", 0.9)])
    assert headline(results) == (
        "Best on validation is naive (full fine-tuning) on mobilenetv2_100 with adam at learning rate 0.001 (trial "
        "0000): mean accuracy of its final runs 90.0% (95% interval 82.6 to 94.5; 100 images, 3 seeds)."
    )
    assert any("Nothing has been evaluated on the test set" in caveat for caveat in caveats(results))


def test_the_headline_when_nothing_finished() -> None:
    records = [a_record("0000", (), "failed"), a_record("0001", (), "failed"), a_record("0002", (0.5,), "pruned")]
    assert headline(results_of([])) == "No trial has ended yet."
    assert headline(results_of(records)) == (
        "No trial finished, so there is nothing to rank: 1 trial stopped early and 2 trials failed."
    )


def test_the_strategies_are_compared_by_final_runs_and_single_runs_are_named_apart(opened: Results) -> None:
    assert strategy_comparison(opened) == (
        "Mean validation accuracy of the best finalist, by strategy: freeze_then_unfreeze 94.0% and naive (full "
        "fine-tuning) 93.0%. Run once per recipe and not ranked, because the best of many single runs is partly luck: "
        "scratch (training from random weights) 80.0%. Without a finished run: linear_probe (1 trial stopped early; "
        "training only the new head, on frozen features)."
    )


def test_without_finals_the_strategies_are_compared_by_single_runs() -> None:
    records = [
        a_record("0000", (0.7,)),
        a_record("0001", (0.8,), strategy="clip"),
        a_record("0002", (), "failed", strategy="lora"),
    ]
    assert strategy_comparison(results_of(records)) == (
        "Best validation accuracy of a single run, by strategy: clip 80.0% and naive (full fine-tuning) 70.0%. Without "
        "a finished run: lora (1 trial failed; fine-tuning the head and low-rank updates of a frozen backbone)."
    )
    assert strategy_comparison(results_of(records[:1])) is None
    assert (
        strategy_comparison(
            results_of([a_record("0000", (), "failed"), a_record("0001", (), "failed", strategy="clip")])
        )
        is None
    )


def test_of_many_strategies_only_the_best_are_described() -> None:
    records = [a_record(f"000{i}", (0.9 - i / 100,), strategy=f"way_{i}") for i in range(8)]
    assert strategy_comparison(results_of(records)) == (
        "Best validation accuracy of a single run, by strategy: way_0 90.0%, way_1 89.0%, way_2 88.0%, way_3 87.0%, "
        "way_4 86.0% and 3 more."
    )


def test_another_order_on_the_test_set_is_a_caveat(opened: Results) -> None:
    (other_order,) = caveats(opened)
    assert other_order == (
        "On the test set the order would be 0004 (92.0%) and 0002 (90.0%): the ranking stays as it was on the "
        "validation set, because choosing by test results would make them too optimistic."
    )


def test_another_order_on_the_test_set_is_explained_below_the_first_place_too() -> None:
    records = [
        record
        for name, validation, test in (("0000", 0.95, 0.9), ("0001", 0.9, 0.73), ("0002", 0.85, 0.78))
        for record in (a_record(name), *some_finals(name, validation, test))
    ]
    (note,) = [text for text in caveats(results_of(records, ["0000", "0001", "0002"])) if "order" in text]
    assert note.startswith(
        "On the test set the order would be 0000 (90.0%), 0002 (78.0%) and 0001 (73.0%): the ranking"
    )


def test_a_finalist_with_fewer_final_runs_than_planned_is_named() -> None:
    failed = a_record("0001-s3", (), "failed", error="out of memory")
    records = [
        a_record("0000"),
        *some_finals("0000", 0.9),
        a_record("0001"),
        *some_finals("0001", 0.8, seeds=2),
        failed,
    ]
    assert "Not every finalist has all of its final runs: 0001 has 2 of 3 (1 failed)." in caveats(results_of(records))
    table = ranking_table(results_of(records))
    assert [row[table.header.index("seeds")] for row in table.rows] == ["3", "2 of 3"]


def test_a_sample_over_several_validation_sets_says_how_many_images_each_has() -> None:
    sets = [an_evaluation("val", 54, images=60, first=first) for first in (0, 40, 87)]
    finals = [dataclasses.replace(record, val=val) for record, val in zip(some_finals("0000", 0.9), sets, strict=True)]
    assert headline(results_of([a_record("0000"), *finals])).endswith(
        "; 3 seeds with 60 images each, 147 different ones)."
    )
    uneven = [dataclasses.replace(finals[0], val=an_evaluation("val", 50, images=58)), *finals[1:]]
    assert "3 seeds with 58 to 60 images each, 147 different ones" in headline(results_of([a_record("0000"), *uneven]))


def test_image_sizes_that_compete_are_listed_and_have_a_column() -> None:
    records = [a_record("0000", (0.8,)), a_record("0001", (0.7,), image_size=160)]
    results = results_of(records, space={"image_size": "128, 160"})
    assert "153 test images of 128 and 160 px, one size in each trial. Each seed" in image_counts(results)
    assert ranking_table(results).select_columns("trial", "image size").rows == (("0000", "128 px"), ("0001", "160 px"))
    assert ranking_frame(results)["image_size"].tolist() == [128, 160]
    assert " on mobilenetv2_100 at 128 px with adam " in headline(results)
    alone = results_of(records[:1])
    assert "image size" not in {*ranking_table(alone).header, *common_settings(alone)}


def test_the_training_images_are_those_left_by_a_limit_per_class() -> None:
    def counts(*limits: int | None) -> str:
        records = [a_record(f"{i:04d}", **({} if n is None else {"images_per_class": n})) for i, n in enumerate(limits)]
        return image_counts(results_of(records))

    rest = (
        "49 validation and 153 test images of 128 px. Each seed of a finalist draws another validation set of this size"
    )
    assert counts(None) == f"195 training, {rest}"
    assert counts(30, 30) == f"195 training (at most 30 per class), {rest}"
    assert counts(50, 10) == f"195 training (each trial used at most 10 or 50 per class), {rest}"
    assert counts(10, None) == f"195 training (each trial used at most 10 per class, or all), {rest}"


def test_clearly_separate_intervals_need_no_caveat() -> None:
    records = [a_record("0000"), *some_finals("0000", 0.98, 0.98), a_record("0001"), *some_finals("0001", 0.6, 0.6)]
    assert caveats(results_of(records, ["0000", "0001"])) == []


def test_a_single_seed_a_reused_test_set_and_unfinished_trials_are_caveats() -> None:
    records = [a_record("0000"), *some_finals("0000", 0.9, 0.9, seeds=1)]
    results = dataclasses.replace(results_of(records, ["0000"], ["0000"], seeds=1), unfinished=["0001", "0002"])
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


def test_the_guide_says_why_a_head_on_frozen_features_is_a_finalist() -> None:
    def guide(strategy: str) -> str:
        return how_to_read(results_of([a_record("0000", strategy=strategy), a_record("0000-s1", strategy=strategy)]))[0]

    assert "The best head on frozen features is always a finalist" in guide("linear_probe")
    assert "head on frozen features" not in guide("clip")


def kept(record: Record, kept: Kept) -> Record:
    return dataclasses.replace(record, epochs=(*record.epochs[:-1], dataclasses.replace(record.epochs[-1], kept=kept)))


def test_the_report_names_the_weights_that_runs_kept_and_counts_them() -> None:
    finals = [kept(run, name) for run, name in zip(some_finals("0000", 0.9), AVERAGED_TWICE, strict=True)]
    search = [kept(a_record("0000"), "averaged"), kept(a_record("0001", (0.8,)), "start"), a_record("0002", (0.7,))]
    results = results_of([*search, *finals])
    (sentence,) = (text for text in how_to_read(results) if "moving average" in text)
    assert sentence.endswith(
        "Kept were the averaged weights in 3, the last weights in 1 and the weights of the start in 1 of 5 runs."
    )
    assert ranking_table(results).select_columns("trial", "weights kept").rows == (("0000", "averaged 2, last 1"),)
    assert search_table(results).select_columns("trial", "weights kept").rows == (
        ("0000", "averaged"),
        ("0001", "start"),
        ("0002", MISSING),
    )


def test_a_report_on_heads_does_not_mention_averages() -> None:
    results = results_of([a_record("0000", strategy="logistic_probe")])
    assert not any("moving average" in text for text in how_to_read(results))
    assert "weights kept" not in ranking_table(results).header


def test_the_guide_lists_the_sources_of_a_warm_start() -> None:
    records = [a_record("0000")]
    taken = {"from": [{"sweep": "dogs", "distance": 0.456, "trials": ["0003", "0001"]}], "params": [{}, {}]}
    assert how_to_read(results_of(records, warm_start={"asked": True, **taken}))[1].startswith(
        "The search started with 2 recipes from earlier sweeps on similar data: dogs (distance 0.46)."
    )
    without_sources = results_of(records, warm_start={"asked": True, "from": [], "params": []})
    assert "no earlier sweep in the storage used similar data" in how_to_read(without_sources)[1]
    assert not any("arm start" in text or "started with" in text for text in how_to_read(results_of(records)))


def test_the_summary_fits_a_terminal_and_explains_the_strategies(opened: Results) -> None:
    table = summary_table(opened)
    assert table.header == ("rank", "strategy", "validation", "test", "trial")
    assert table.rows == (
        ("1", "freeze_then_unfreeze(freeze_epochs=2)", "94.0% (87.5 to 97.2)", "90.0% (82.6 to 94.5)", "0002"),
        ("1", "naive", "93.0% (86.3 to 96.6)", "92.0% (85.0 to 95.9)", "0004"),
    )
    assert table.note(0, "strategy") == "training the head alone for a few epochs, then everything"
    assert table.note(1, "strategy") == "full fine-tuning"
    assert table.note(1, "trial") == ""
    assert summary_table(results_of([a_record("0000")])).header == ("rank", "strategy", "validation", "trial", "status")


def test_only_finalists_are_ranked_and_single_runs_are_listed_apart(opened: Results) -> None:
    ranking, search = ranking_table(opened), search_table(opened)
    assert [row[ranking.header.index("trial")] for row in ranking.rows] == ["0002", "0004"]
    assert ranking.header[:4] == ("rank", "strategy", "validation", "test")
    assert search.header[:4] == ("strategy", "validation", "trial", "status")
    assert [row[1:4] for row in search.rows] == [
        ("97.0% (91.5 to 99.0)", "0004", "finished, finalist"),
        ("95.0% (88.8 to 97.8)", "0002", "finished, finalist"),
        ("80.0% (71.1 to 86.7)", "0000", "finished"),
        ("70.0%", "0001", "stopped early at epoch 2"),
        (MISSING, "0003", "failed"),
    ]


def test_without_finals_every_trial_is_ranked_by_its_search_run() -> None:
    results = results_of([a_record("0000", (0.7,)), a_record("0001", (0.9,)), a_record("0002", (0.95,), "pruned")])
    table = ranking_table(results)
    assert [(row[0], row[table.header.index("trial")]) for row in table.rows] == [
        ("1", "0001"),
        ("2", "0000"),
        ("3", "0002"),
    ]
    assert search_table(results).rows == ()


def test_a_finalist_of_an_earlier_start_is_listed_but_not_ranked() -> None:
    earlier = [a_record("0000", (0.8,)), *some_finals("0000", 0.95, 0.9)]
    results = results_of([*earlier, a_record("0001", (0.9,)), *some_finals("0001", 0.85, 0.8)], ["0000"], ["0001"])
    assert [row[1:] for row in ranking_table(results).select_columns("rank", "trial").rows] == [("0001",)]
    statuses = search_table(results).select_columns("trial", "status").rows
    assert statuses == (("0001", "finished, finalist"), ("0000", "finished, not ranked: 95.0% in 3 final runs"))


def test_a_table_explains_each_strategy_once() -> None:
    records = [a_record(f"000{i}", strategy=name) for i, name in enumerate(("clip", "clip", "naive", "my_own"))]
    assert ranking_table(results_of(records)).notes == (
        "full fine-tuning, gradients clipped",
        "",
        "full fine-tuning",
        "",
    )


def test_only_settings_that_vary_have_a_column(opened: Results) -> None:
    assert ranking_table(opened).header[-1] == "clip norm"
    assert "clip norm" not in common_settings(opened)
    assert common_settings(opened)["optimizer"] == "adam"


def test_the_strategies_table_counts_outcomes_and_describes_each_strategy(opened: Results) -> None:
    table = strategies_table(opened)
    assert table.header[:6] == ("strategy", "finals", "trials", "finished", "best", "median")
    assert table.header[6:] == ("stopped early", "failed", "description")
    assert [row[:2] for row in table.rows] == [
        ("freeze_then_unfreeze", "94.0%"),
        ("naive", "93.0%"),
        ("scratch", MISSING),
        ("linear_probe", MISSING),
    ]
    assert table.rows[1] == ("naive", "93.0%", "2", "1", "97.0%", "97.0%", "0", "1", "full fine-tuning")


def test_the_description_of_a_strategy_explains_its_name() -> None:
    table = strategies_table(results_of([a_record("0000", strategy="clip"), a_record("0001", strategy="my_own")]))
    assert dict(zip(("clip", "my_own"), (row[-1] for row in table.rows), strict=True)) == {
        "clip": "full fine-tuning, gradients clipped",
        "my_own": "",
    }


def test_failed_runs_are_listed_with_their_errors(opened: Results) -> None:
    assert failures_table(opened).rows == (("0003", "naive", "0", "loss is NaN at step 12"),)
