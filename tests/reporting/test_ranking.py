"""The order of the ranking, and the columns of its data frame and CSV."""

from __future__ import annotations

import io
import math

import pandas as pd
import pytest

from sweeps.reporting.ranking import (
    best_value,
    ranked_finalists,
    ranked_trials,
    ranking_csv,
    ranking_frame,
    ranking_parquet,
    tally_by_strategy,
)
from sweeps.reporting.results import Results
from tests.reporting.conftest import a_record, results_of, some_finals

REQUIRED = (
    "rank,trial,strategy,freeze_epochs,clip_norm,backbone,optimizer,schedule,augmentation,mixing,loss,learning_rate,"
    "weight_decay,batch_size,epochs,status,val_accuracy,test_accuracy,test_ci_low,test_ci_high,seeds,seconds"
)
FURTHER = (
    ",val_ci_low,val_ci_high,val_images,test_images,search_val_accuracy,key,objective,on_front,val_loss,"
    "val_balanced_accuracy,val_top5_accuracy,val_calibration_error,val_noisy_accuracy,test_loss,"
    "test_balanced_accuracy,test_top5_accuracy,test_calibration_error,test_noisy_accuracy,gap,distance,start_accuracy,"
    "flops,peak_memory_mb,embedding_loss,head,activation,batch_norm,colour,body_rate,clip_value,images_per_class,views,balance,"
    "drop_path,"
    "test_noisy_images,steps,test_flip_accuracy,val_worst_class,val_worst_class_accuracy,val_worst_class_ci_low,"
    "val_worst_class_ci_high,val_worst_class_images,test_worst_class,test_worst_class_accuracy,test_worst_class_ci_low,"
    "test_worst_class_ci_high,test_worst_class_images,kept,image_size,tied_with_best,diff_to_best,diff_low,diff_high,"
    "control"
)


def names(results: Results) -> list[str]:
    """The trials' names, best first."""
    return [trial.name for trial in ranked_trials(results)]


def test_finalists_keep_the_order_fixed_before_the_test_set_was_used(opened: Results) -> None:
    assert names(opened) == ["0002", "0004", "0000", "0001", "0003"]
    reversed_order = Results(opened.plan, opened.records, [{"at": "later", "finalists": ["0004", "0002"]}])
    assert names(reversed_order)[:2] == ["0004", "0002"]


def test_the_last_use_of_the_test_set_decides() -> None:
    records = [
        record for name in ("0000", "0001") for record in (a_record(name), *some_finals(name, accuracy=0.9, test=0.9))
    ]
    assert names(results_of(records, ["0000", "0001"], ["0001", "0000"])) == ["0001", "0000"]


def test_a_finalist_added_after_the_test_set_was_used_ranks_behind_the_tested_ones() -> None:
    late = [a_record("0001"), *some_finals("0001", 0.99)]
    assert names(results_of([a_record("0000"), *some_finals("0000", 0.8, 0.8), *late], ["0000"])) == ["0000", "0001"]


def test_untested_finalists_are_ranked_by_the_mean_of_their_final_runs() -> None:
    lucky = [a_record("0000", (0.99,)), *some_finals("0000", 0.85)]
    solid = [a_record("0001", (0.95,)), *some_finals("0001", 0.90)]
    assert names(results_of([*lucky, *solid, a_record("0002", (0.97,))])) == ["0001", "0000", "0002"]


def test_the_best_value_is_that_of_the_ranking(opened: Results) -> None:
    assert best_value(opened) == pytest.approx(0.94)
    assert best_value(results_of([a_record("0000", (0.7,)), a_record("0001", (0.9,), "pruned")])) == 0.7
    assert best_value(results_of([a_record("0000", (0.9,), "pruned")])) is None
    assert best_value(results_of([])) is None


def test_finalists_outside_the_last_opening_are_ordered_by_their_search_runs() -> None:
    earlier = [a_record("0000", (0.7,)), *some_finals("0000", 0.95, 0.9), a_record("0002", (0.8,))]
    results = results_of([*earlier, a_record("0001", (0.9,)), *some_finals("0001", 0.85, 0.8)], ["0000"], ["0001"])
    assert [trial.name for trial in ranked_finalists(results)] == ["0001"]
    assert names(results) == ["0001", "0002", "0000"]


def test_other_trials_are_ranked_by_accuracy_then_by_completed_epochs() -> None:
    results = results_of(
        [
            a_record("0000", (), "failed"),
            a_record("0001", (0.9,), "pruned"),
            a_record("0002", (0.4, 0.5), "pruned"),
            a_record("0003", (0.4, 0.6), "pruned"),
            a_record("0004", (0.3,)),
            a_record("0005", (0.8,)),
            a_record("0006", (0.9, math.nan), "failed"),
        ]
    )
    assert names(results) == ["0005", "0004", "0003", "0002", "0001", "0006", "0000"]


def test_the_columns_are_in_the_documented_order(opened: Results) -> None:
    assert ranking_csv(ranking_frame(opened)).splitlines()[0] == REQUIRED + FURTHER
    assert ranking_csv(ranking_frame(results_of([]))) == REQUIRED + FURTHER + "\n"


def test_the_values_of_a_finalist_come_from_its_final_runs(opened: Results) -> None:
    row = ranking_frame(opened).iloc[0]
    assert row["val_accuracy"] == pytest.approx(0.94)
    assert row["search_val_accuracy"] == pytest.approx(0.95)
    assert row["test_accuracy"] == pytest.approx(0.90)
    assert row["test_ci_low"] < 0.90 < row["test_ci_high"]
    assert (row["seeds"], row["val_images"], row["test_images"]) == (3, 100, 100)
    assert row["seconds"] == pytest.approx(40.0)
    assert (row["freeze_epochs"], row["epochs"], row["key"]) == (2, 2, "key-0002")


def test_the_values_of_other_trials_come_from_their_search_run_and_are_never_test_values(opened: Results) -> None:
    finished, pruned, failed = (ranking_frame(opened).iloc[row] for row in (2, 3, 4))
    assert finished["val_accuracy"] == pytest.approx(0.8)
    assert finished["val_ci_low"] < 0.8 < finished["val_ci_high"]
    assert pruned["val_accuracy"] == pytest.approx(0.7)
    assert pd.isna(pruned["val_ci_low"])
    assert pd.isna(failed["val_accuracy"])
    assert list(ranking_frame(opened)["seeds"]) == [3, 3, 1, 1, 0]
    assert ranking_frame(opened)["test_accuracy"].iloc[2:].isna().all()


def test_a_failed_final_run_adds_only_its_time() -> None:
    finals = [*some_finals("0000", 0.9, seeds=2), a_record("0000-s3", (), "failed", error="out of memory")]
    row = ranking_frame(results_of([a_record("0000"), *finals])).iloc[0]
    assert (row["seeds"], row["seconds"]) == (2, 40.0)


def test_the_csv_can_be_read_back(opened: Results) -> None:
    read = pd.read_csv(io.StringIO(ranking_csv(ranking_frame(opened))), dtype={"trial": str})
    assert list(read["rank"]) == [1, 1, 3, 4, 5]
    assert list(read["trial"]) == names(opened)
    assert list(read["mixing"]) == ["none"] * 5
    assert read["val_accuracy"].dtype == read["test_ci_low"].dtype == float
    assert read["clip_norm"].iloc[1] == 1.0
    assert "nan" not in ranking_csv(ranking_frame(opened)).lower()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\N{FULLWIDTH EQUALS SIGN}1"])
def test_no_csv_cell_is_a_formula(name: str) -> None:
    text = ranking_csv(ranking_frame(results_of([a_record("0000", strategy=name)])))
    cell = pd.read_csv(io.StringIO(text))["strategy"].iloc[0]
    assert cell.lstrip(" ")[0] in "'\\"


def test_negative_numbers_remain_numbers() -> None:
    frame = pd.read_csv(io.StringIO(ranking_csv(ranking_frame(results_of([a_record("0000", weight_decay=-1.0)])))))
    assert frame["weight_decay"].iloc[0] == -1.0


def test_the_parameters_of_a_choice_are_shown() -> None:
    record = a_record("0000", optimizer={"name": "sgd", "momentum": 0.9}, backbone_args={"pad_type": "same"})
    row = ranking_frame(results_of([record])).iloc[0]
    assert (row["optimizer"], row["backbone"]) == ("sgd(momentum=0.9)", "mobilenetv2_100(pad_type=same)")


def test_strategies_are_tallied_in_the_order_of_the_ranking(opened: Results) -> None:
    tallies = tally_by_strategy(opened)
    assert [tally.strategy for tally in tallies] == ["freeze_then_unfreeze", "naive", "scratch", "linear_probe"]
    assert [tally.best for tally in tallies] == [0.95, 0.97, 0.8, None]
    assert [tally.median_value for tally in tallies] == [0.95, 0.97, 0.8, None]
    assert tallies[1].counts == {"finished": 1, "failed": 1}
    assert [tally.finalist and tally.finalist.name for tally in tallies] == ["0002", "0004", None, None]
    assert [tally.representative and tally.representative.name for tally in tallies] == ["0002", "0004", "0000", None]
    assert [tally.why_unfinished for tally in tallies] == ["", "", "", "1 trial stopped early"]


def test_the_parquet_file_has_the_columns_and_types_of_the_frame(opened: Results) -> None:
    frame = ranking_frame(opened)
    read = pd.read_parquet(io.BytesIO(ranking_parquet(frame)), dtype_backend="numpy_nullable")
    assert list(read.columns) == list(frame.columns)
    assert read["rank"].tolist() == frame["rank"].tolist()
    pd.testing.assert_series_equal(read["val_accuracy"], frame["val_accuracy"])
    assert str(read["epochs"].dtype) == "Int64"
    assert ranking_parquet(ranking_frame(results_of([])))
