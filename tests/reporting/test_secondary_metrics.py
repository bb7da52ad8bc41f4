"""Secondary metrics of the finalists, and the benefits of transfer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.reporting.formatting import MISSING
from sweeps.reporting.ranking import ranking_frame
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from sweeps.reporting.secondary_metrics import (
    compare_with_scratch,
    most_confused,
    secondary_metrics_caption,
    secondary_metrics_table,
)
from tests.reporting.conftest import a_plan, a_record, an_evaluation, results_of
from xfer.measure.benefits import transfer_benefits
from xfer.records import CorruptionScore, Record

CLASSES = ["ants", "bees", "wasps"]
DATA = {**a_plan()["data"], "classes": CLASSES}


def a_tested_run(trial: str, seed: int, **metrics: object) -> Record:
    """A final run with these test metrics."""
    test = replace(an_evaluation("test", 80, first=1000), **metrics)  # type: ignore[arg-type]
    return a_record(f"{trial}-s{seed}", (0.5, 0.8), test=test)


@pytest.fixture
def finished() -> Results:
    """A sweep with a finalist on two seeds."""
    noisy = [
        (CorruptionScore("blur", 1, 10, 9), CorruptionScore("blur", 5, 10, 5), CorruptionScore("grey", 1, 20, 18)),
        (CorruptionScore("blur", 1, 10, 7), CorruptionScore("blur", 5, 10, 3), CorruptionScore("grey", 1, 20, 14)),
    ]
    confusions = [((0, 0, 50), (0, 1, 3), (1, 0, 5), (2, 1, 12)), ((0, 1, 4), (1, 2, 1), (2, 0, 15))]
    runs = [
        a_tested_run("0000", seed + 1, balanced_accuracy=0.7, calibration_error=0.1 * seed, noisy=n, confusion=c)
        for seed, (n, c) in enumerate(zip(noisy, confusions, strict=True))
    ]
    return results_of([a_record("0000", (0.5, 0.8)), a_record("0001"), *runs], ["0000"], data=DATA)


def test_test_metrics_are_means_over_seeds_with_a_column_for_each_noise_type(finished: Results) -> None:
    table = secondary_metrics_table(finished)
    assert table.header == (
        *("trial", "strategy", "accuracy", "balanced", "calibration error", "under noise", "blur", "grey"),
    )
    assert table.rows == (("0000", "naive", "80.0%", "70.0%", "5.0%", "70.0% (30.7 to 92.5)", "60.0%", "80.0%"),)


def test_the_accuracy_with_flips_is_a_column_of_its_own_and_explained(finished: Results) -> None:
    assert "With flips" not in secondary_metrics_caption(finished)
    records = [
        replace(record, test=replace(record.test, flip_correct=(True,) * 9 + (False,))) if record.test else record
        for record in finished.records
    ]
    results = replace(finished, records=records)
    table = secondary_metrics_table(results)
    assert table.header[3:7] == ("balanced", "calibration error", "with flips", "under noise")
    assert table.rows[0][5] == "90.0%"
    assert "With flips is the accuracy if the probabilities" in secondary_metrics_caption(results)
    assert ranking_frame(results)["test_flip_accuracy"].iloc[0] == pytest.approx(0.9)


def test_the_caption_says_how_many_images_the_accuracy_under_noise_rests_on(finished: Results) -> None:
    caption = secondary_metrics_caption(finished)
    assert "it rests on 20 of 153 test images, the same ones for every run (a sample stratified by class)" in caption
    whole = Results({**finished.plan, "data": {**DATA, "test": 20}}, finished.records, finished.openings)
    assert "it rests on 20 of 20 test images, the same ones for every run. The other" in secondary_metrics_caption(
        whole
    )


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({}, "Accuracy under noise has not been measured."),
        ({"noise": False}, "Accuracy under noise was not measured (--no-noise)."),
    ],
)
def test_the_caption_says_if_noise_is_missing(plan: dict[str, object], text: str) -> None:
    results = results_of([a_record("0000"), a_tested_run("0000", 1, top5_accuracy=0.95)], ["0000"], **plan)
    assert text in secondary_metrics_caption(results)


def test_top_five_accuracy_has_a_column_if_it_was_measured() -> None:
    results = results_of([a_record("0000"), a_tested_run("0000", 1, top5_accuracy=0.95)], ["0000"])
    assert secondary_metrics_table(results).header == ("trial", "strategy", "accuracy", "top-5")
    assert secondary_metrics_table(results).rows == (("0000", "naive", "80.0%", "95.0%"),)


def test_the_table_is_empty_for_older_sweeps_and_before_the_test_set_is_used(opened: Results) -> None:
    assert secondary_metrics_table(opened).rows == ()
    assert most_confused(opened) == []
    assert secondary_metrics_table(results_of([a_record("0000")])).rows == ()


def test_the_most_confused_classes_are_listed_over_all_seeds(finished: Results) -> None:
    assert most_confused(finished) == [
        "0000 made 40 errors in 200 test predictions over 2 seeds, most often classifying wasps as ants (15), wasps as "
        "bees (12) and ants as bees (7)."
    ]


def test_a_finalist_without_errors_is_not_listed() -> None:
    results = results_of([a_record("0000"), a_tested_run("0000", 1, confusion=((0, 0, 50), (1, 1, 50)))], ["0000"])
    assert most_confused(results) == []


# --- benefits of transfer --------------------------------------------------------------------------------------------


def a_run(trial: str, strategy: str, start: float | None, curve: Sequence[float], **recipe: object) -> Record:
    return replace(a_record(trial, curve, strategy=strategy, **recipe), start_accuracy=start)  # type: ignore[arg-type]


SCRATCH, NAIVE = (0.4, 0.6, 0.7), (0.8, 0.9, 0.9)


def test_the_best_run_of_each_strategy_is_compared_with_the_best_from_scratch() -> None:
    results = results_of(
        [
            a_run("0000", "scratch", 0.1, SCRATCH),
            a_run("0001", "scratch", 0.2, (0.2, 0.2, 0.2)),
            a_run("0002", "naive", 0.2, NAIVE),
            a_run("0003", "naive", 0.9, (0.5, 0.5, 0.5)),
            a_run("0004", "linear_probe", 0.1, (0.1, 0.1, 0.1)),
        ]
    )
    table = compare_with_scratch(results).table
    assert table.header == ("strategy", "backbone", "trials", "early", "slope", "asymptote")
    benefits = transfer_benefits([0.2, *NAIVE], [0.1, *SCRATCH])
    assert table.rows[0][:3] == ("naive", "mobilenetv2_100", "0002 vs. 0000, one run each")
    assert table.rows[0][3:] == (
        "+40.0",
        f"{100 * benefits.slope:+.1f} per epoch",
        f"{100 * benefits.asymptote:+.1f}",
    )
    assert [row[0] for row in table.rows] == ["naive", "linear_probe"]
    assert table.notes == ("full fine-tuning", "training only the new head, on frozen features")
    assert table.rows[1][3] == "-30.0"
    assert compare_with_scratch(results).remarks == ()


def test_only_a_head_that_was_fitted_before_has_a_start_to_compare() -> None:
    runs = [a_run("0000", "scratch", 0.5, SCRATCH), a_run("0001", "naive", 0.48, NAIVE)]
    without = compare_with_scratch(results_of(runs))
    assert "start" not in without.table.header
    assert without.caption.endswith("every head here starts at random, and so at guessing.")
    with_start = compare_with_scratch(results_of([*runs, a_run("0002", "lp_ft", 0.85, (0.88, 0.89, 0.89))]))
    starts = with_start.table.select_columns("strategy", "start").rows
    assert dict(starts) == {"naive": MISSING, "lp_ft": "+35.0"}
    assert "Any other new head starts at random" in with_start.caption


@pytest.mark.parametrize(
    ("accuracy", "images", "frequent", "learned"),
    [
        (0.55, 49, 0.51, False),
        (0.40, 100, 0.5, False),
        (0.75, 100, 0.8, False),
        (0.10, 200, 0.1, False),
        (0.60, 1_000, 0.51, True),
        (0.75, 100, 0.5, True),
    ],
    ids=["near guessing", "below guessing", "always one class", "ten classes", "many images", "learned"],
)
def test_a_run_from_scratch_that_learned_nothing_is_no_baseline(
    accuracy: float, images: int, frequent: float, learned: bool
) -> None:
    scratch = a_run("0000", "scratch", 0.1, (0.3, 0.4, accuracy), images=images)
    assert scratch.val is not None
    rare = images - round(frequent * images)
    confusion = ((0, 0, round(frequent * images)), (1, 0, rare - rare // 2), (2, 0, rare // 2))
    scratch = replace(scratch, val=replace(scratch.val, confusion=confusion))
    comparison = compare_with_scratch(results_of([scratch, a_run("0001", "naive", 0.2, NAIVE)]))
    assert bool(comparison.table.rows) == learned
    assert len(comparison.remarks) == (not learned)


def test_the_remark_on_a_run_that_learned_nothing_has_the_numbers() -> None:
    scratch = a_run("0000", "scratch", 0.1, (0.3, 0.4, 0.55))
    (remark,) = compare_with_scratch(results_of([scratch, a_run("0001", "naive", 0.2, NAIVE)])).remarks
    assert remark == (
        "The run from scratch (trial 0000) learned nothing in 3 epochs: its validation accuracy is 55.0% (95% interval "
        "45.2 to 64.4; 100 images, 1 seed), and always answering the most frequent class gets 50.0%. A comparison with "
        "it would say nothing about transfer. Training from scratch needs more epochs or more images."
    )


def test_an_arm_without_a_finished_run_is_named_with_its_end() -> None:
    naive, pruned = a_run("0002", "naive", 0.2, NAIVE), replace(a_run("0000", "scratch", 0.1, (0.4,)), status="pruned")
    failed = a_record("0001", (), "failed", strategy="scratch")
    assert compare_with_scratch(results_of([pruned, failed, naive])).remarks == (
        "Training from scratch is no baseline: trial 0000 was stopped early at epoch 1 and trial 0001 failed.",
    )
    scratch = a_run("0000", "scratch", 0.1, (0.5, 0.7, 0.8))
    lora = replace(a_run("0003", "lora", 0.1, (0.4, 0.4)), status="pruned")
    comparison = compare_with_scratch(results_of([scratch, naive, lora]))
    assert [row[0] for row in comparison.table.rows] == ["naive"]
    assert comparison.remarks == ("lora is not compared: trial 0003 was stopped early at epoch 2.",)


def test_a_sweep_that_does_not_train_from_scratch_compares_nothing_and_remarks_nothing() -> None:
    comparison = compare_with_scratch(
        results_of([a_run("0000", "naive", 0.2, NAIVE), a_run("0001", "small_cnn", 0.1, NAIVE)])
    )
    assert (comparison.table.rows, comparison.remarks) == ((), ())


def test_only_runs_in_the_same_image_size_are_compared() -> None:
    runs = [
        a_run("0000", "scratch", 0.1, SCRATCH),
        a_run("0001", "naive", 0.2, NAIVE),
        a_run("0002", "clip", 0.2, NAIVE, image_size=160),
    ]
    comparison = compare_with_scratch(results_of(runs, space={"image_size": "128, 160"}))
    assert [row[:2] for row in comparison.table.rows] == [("naive", "mobilenetv2_100 at 128 px")]
    assert comparison.remarks == (
        "Nothing was trained from scratch on mobilenetv2_100 at 160 px, so transfer is not compared with it there.",
    )


def test_only_runs_on_the_same_backbone_are_compared() -> None:
    results = results_of(
        [
            a_run("0000", "scratch", 0.1, SCRATCH, backbone="resnet18"),
            a_run("0001", "naive", 0.2, NAIVE, backbone="resnet50"),
            a_run("0002", "naive", 0.2, NAIVE, backbone="resnet18", backbone_args={"pad_type": "same"}),
        ]
    )
    comparison = compare_with_scratch(results)
    assert comparison.table.rows == ()
    assert comparison.remarks == tuple(
        f"Nothing was trained from scratch on {backbone}, so transfer is not compared with it there."
        for backbone in ("resnet50", "resnet18(pad_type=same)")
    )


@pytest.mark.parametrize(
    "baseline",
    [
        a_run("0000", "scratch", None, SCRATCH),
        replace(a_run("0000", "scratch", 0.1, SCRATCH), status="pruned"),
        a_run("0000", "scratch", 0.1, (0.3, float("nan"), 0.6)),
        a_run("0000", "clip", 0.1, SCRATCH),
    ],
    ids=["start not measured", "pruned", "a gap in the curve", "no scratch"],
)
def test_without_a_complete_curve_from_scratch_there_is_no_comparison(baseline: Record) -> None:
    assert compare_with_scratch(results_of([baseline, a_run("0001", "naive", 0.2, NAIVE)])).table.rows == ()


# --- in the report ---------------------------------------------------------------------------------------------------


def test_both_pages_have_both_sections_once_there_are_results(finished: Results, tmp_path: Path) -> None:
    curves = [a_run("0002", "scratch", 0.1, SCRATCH), a_run("0003", "naive", 0.2, NAIVE)]
    results = Results(finished.plan, [*finished.records, *curves], finished.openings)
    html = render(results, tmp_path / "new")
    for page in (html.read_text(), (tmp_path / "new" / "report.md").read_text()):
        for text in ("Secondary metrics", "wasps as ants (15)", "Benefits of transfer", "0003 vs. 0002"):
            assert text in page
    html = render(results_of([a_record("0000")]), tmp_path / "old")
    for page in (html.read_text(), (tmp_path / "old" / "report.md").read_text()):
        assert "Secondary metrics" not in page
        assert "Benefits of transfer" not in page


def test_a_hostile_class_name_is_plain_text(finished: Results, tmp_path: Path) -> None:
    evil = ["<script>alert(1)</script>", "`bees`|\x1b[31m", "wasps"]
    results = Results({**finished.plan, "data": {**DATA, "classes": evil}}, finished.records, finished.openings)
    html = render(results, tmp_path)
    assert "<script>" not in html.read_text()
    markdown = (tmp_path / "report.md").read_text()
    assert "<script>" not in markdown
    assert "\x1b" not in markdown


def test_reporting_imports_neither_torch_nor_ray() -> None:
    code = "import sys, sweeps.reporting.secondary_metrics; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
