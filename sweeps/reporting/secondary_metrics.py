"""Results other than accuracy: calibration, robustness to noise, confusion, and the benefits of transfer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from sweeps.reporting.formatting import (
    escape_control_characters,
    format_choice,
    format_percent,
    format_percentage_points,
    join_words,
    pluralize,
)
from sweeps.reporting.ranking import ranked_trials
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import noise_estimate
from sweeps.reporting.tables import Table, format_accuracy_interval
from xfer.measure.benefits import TransferBenefits, accuracy_curve, transfer_benefits
from xfer.records import Evaluation

BASELINE = "scratch"
"""Strategy without transfer, with which the others are compared."""
NUM_CONFUSED_PAIRS = 3
"""Number of confused class pairs listed per finalist."""

SECONDARY_METRICS_CAPTION = (
    "Means over each finalist's seeds on the test set. Balanced accuracy weights every class equally. Calibration "
    "error is the mean gap between the confidence in the predicted class and how often it is correct; lower is better."
)
TRANSFER_BENEFITS_CAPTION = (
    "Validation accuracy of each strategy's best search run minus that of the best run from scratch on the same "
    "backbone, in percentage points: before the first step (start), after the first epoch (early), gain per epoch "
    "until half of the rise is complete (slope), and at convergence (asymptote). A strategy that starts high has less "
    "left to gain, so its slope may well be lower. Each run has its own optimizer and learning rate, and a single "
    "seed: these are differences between recipes."
)


def secondary_metrics_table(results: Results) -> Table:
    """Tabulate further test metrics of the finalists, as means over their seeds.

    Returns:
        One row per finalist in ranking order; no rows before the test set is used. Metrics that were not measured, as
        in sweeps of older versions, have no column.
    """
    tested = [trial for trial in ranked_trials(results) if trial.test]
    kinds = dict.fromkeys(
        noisy.kind for trial in tested for record in trial.finals if record.test for noisy in record.test.noisy
    )
    columns: dict[str, Callable[[Evaluation], float | None]] = {
        "top-5": lambda evaluation: evaluation.top5_accuracy,
        "balanced": lambda evaluation: evaluation.balanced_accuracy,
        "calibration error": lambda evaluation: evaluation.calibration_error,
        "under noise": lambda evaluation: evaluation.noisy_accuracy,
        **{kind: _accuracy_under(kind) for kind in kinds},
    }
    all_values = {name: [trial.test_mean(read) for trial in tested] for name, read in columns.items()}
    measured = {name: values for name, values in all_values.items() if any(value is not None for value in values)}
    rows = []
    for row, trial in enumerate(tested):
        cells = {name: format_percent(values[row]) for name, values in measured.items()}
        if noise := noise_estimate([record.test for record in trial.finals if record.test]):
            cells["under noise"] = format_accuracy_interval(noise.mean, noise)
        rows.append(
            (
                escape_control_characters(trial.name),
                format_choice(trial.search.recipe["strategy"]),
                format_percent(trial.test.mean if trial.test else None),
                *cells.values(),
            )
        )
    header = ("trial", "strategy", "accuracy", *map(escape_control_characters, measured))
    return Table(header, tuple(rows) if measured else ())


def secondary_metrics_caption(results: Results) -> str:
    """Explain the columns of `secondary_metrics_table`, and how many images the accuracy under noise rests on."""
    images = [
        record.test.noisy_images
        for trial in results.trials
        for record in trial.finals
        if record.test and record.test.noisy
    ]
    if not images:
        missing = "was not measured (--no-noise)" if results.plan.get("noise") is False else "has not been measured"
        return (
            f"{SECONDARY_METRICS_CAPTION} Accuracy under noise {missing}. No intervals are given here; small "
            f"differences may be chance."
        )
    total = results.plan["data"]["test"]
    sample = f"{min(images):,} of {total:,} test images, the same ones for every run"
    drawn = " (a sample stratified by class)" if min(images) < total else ""
    return (
        f"{SECONDARY_METRICS_CAPTION} Under noise is the mean over the noise types to its right, each at five "
        f"severities, with its 95% interval over images and seeds; it rests on {sample}{drawn}. The other columns have "
        f"no intervals; small differences may be chance."
    )


def most_confused(results: Results) -> list[str]:
    """Name the class pairs that each finalist confused most often on the test set, one sentence per finalist."""
    classes = results.plan["data"]["classes"]
    sentences = []
    for trial in ranked_trials(results):
        errors: Counter[tuple[int, int]] = Counter()
        tests = [record.test for record in trial.finals if record.test and record.test.confusion]
        for test in tests:
            errors.update({(true, predicted): n for true, predicted, n in test.confusion if true != predicted})
        if not tests or not errors:
            continue
        most_common = sorted(errors.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_CONFUSED_PAIRS]
        pairs = [
            f"{_class_name(classes, true)} as {_class_name(classes, predicted)} ({count})"
            for (true, predicted), count in most_common
        ]
        total = sum(len(test.images) for test in tests)
        sentences.append(
            f"{escape_control_characters(trial.name)} made {pluralize(errors.total(), 'error')} in {total:,} test "
            f"predictions over {pluralize(len(tests), 'seed')}, most often classifying {join_words(pairs)}."
        )
    return sentences


def transfer_benefits_table(results: Results) -> Table:
    """Compare each strategy's best search run with the best run from scratch on the same backbone.

    Returns:
        Start, early, slope and asymptote as differences in validation accuracy (`xfer.measure.benefits`). The table
        has no rows if no run from scratch finished, or if an older version did not measure the accuracy at the start.
    """
    best: dict[tuple[str, str], RankedTrial] = {}
    for trial in sorted(filter(_has_curve, results.trials), key=lambda trial: (-_accuracy(trial), trial.name)):
        best.setdefault((format_choice(_backbone(trial)), trial.strategy), trial)
    rows = []
    for (backbone, strategy), trial in best.items():
        baseline = best.get((backbone, BASELINE))
        if baseline is None or strategy == BASELINE:
            continue
        benefits = transfer_benefits(accuracy_curve(trial.search), accuracy_curve(baseline.search))
        names = f"{escape_control_characters(trial.name)} vs. {escape_control_characters(baseline.name)}"
        rows.append((escape_control_characters(strategy), backbone, names, *_benefit_cells(benefits)))
    return Table(("strategy", "backbone", "trials", "start", "early", "slope", "asymptote"), tuple(rows))


def _benefit_cells(benefits: TransferBenefits) -> Sequence[str]:
    return (
        format_percentage_points(benefits.start),
        format_percentage_points(benefits.early),
        f"{format_percentage_points(benefits.slope)} per epoch",
        format_percentage_points(benefits.asymptote),
    )


def _accuracy_under(kind: str) -> Callable[[Evaluation], float | None]:
    def accuracy(evaluation: Evaluation) -> float | None:
        accuracies = [noisy.accuracy for noisy in evaluation.noisy if noisy.kind == kind]
        return fmean(accuracies) if accuracies else None

    return accuracy


def _has_curve(trial: RankedTrial) -> bool:
    run = trial.search
    is_complete = bool(run.epochs) and all(math.isfinite(epoch.val_accuracy) for epoch in run.epochs)
    return run.status == "finished" and run.start_accuracy is not None and is_complete


def _accuracy(trial: RankedTrial) -> float:
    assert trial.search_accuracy is not None, "only trials with a curve are compared"
    return trial.search_accuracy


def _backbone(trial: RankedTrial) -> dict[str, object]:
    recipe = trial.search.recipe
    return {"name": recipe["backbone"], **recipe["backbone_args"]}


def _class_name(classes: Sequence[str], index: int) -> str:
    return escape_control_characters(classes[index] if index < len(classes) else f"class {index}")
