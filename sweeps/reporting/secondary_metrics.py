"""Results other than accuracy: calibration, robustness to noise, confusion, and the benefits of transfer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from sweeps.reporting.formatting import (
    MISSING,
    class_name,
    describe_strategy,
    escape_control_characters,
    format_choice,
    format_estimate,
    format_percent,
    format_percentage_points,
    format_status,
    join_words,
    pluralize,
)
from sweeps.reporting.ranking import ranked_trials
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import noise_estimate
from sweeps.reporting.tables import Table, format_accuracy_interval, strategy_notes
from xfer.measure.benefits import (
    FITTED_HEADS,
    TransferBenefits,
    accuracy_curve,
    learned_nothing,
    majority_rate,
    transfer_benefits,
)
from xfer.records import Evaluation

BASELINE = "scratch"
"""Strategy without transfer, with which the others are compared."""
OTHER_BASELINE = "small_cnn"
"""Strategy without transfer that has a network of its own, and so cannot be compared."""
NUM_CONFUSED_PAIRS = 3
"""Number of confused class pairs listed per finalist."""

SECONDARY_METRICS_CAPTION = (
    "Means over each finalist's seeds on the test set. Balanced accuracy weights every class equally. Calibration "
    "error is the mean gap between the confidence in the predicted class and how often it is correct; lower is better."
)
FLIPS_CAPTION = (
    " With flips is the accuracy if the probabilities for an image and for its mirror image are averaged. It plays no "
    "part in the ranking, and the exported network does not do it. It means little where a mirror image shows "
    "something else, such as digits or text."
)
TRANSFER_BENEFITS_CAPTION = (
    "Validation accuracy of each strategy's best search run minus that of the best run from scratch on the same "
    "backbone, in percentage points: after the first epoch (early), gain per epoch until half of the rise is complete "
    "(slope), and at convergence (asymptote). A strategy that learns much in its first epoch has less left to gain, so "
    "its slope may well be lower. These are single runs, one of each, with optimizers and learning rates of their own: "
    "differences between recipes, without intervals. "
)
START_CAPTION = (
    "Start is the difference before the first step, of strategies that fit the head before it. Any other new head "
    "starts at random, and so at guessing."
)
NO_START_CAPTION = (
    "There is no difference before the first step to report: every head here starts at random, and so at guessing."
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
        "with flips": lambda evaluation: evaluation.flip_accuracy,
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
    return Table(header, tuple(rows) if measured else (), strategy_notes(trial.strategy for trial in tested))


def secondary_metrics_caption(results: Results) -> str:
    """Explain the columns of `secondary_metrics_table`, and how many images the accuracy under noise rests on."""
    tests = [record.test for trial in results.trials for record in trial.finals if record.test]
    caption = SECONDARY_METRICS_CAPTION + (FLIPS_CAPTION if any(test.flip_correct for test in tests) else "")
    images = [test.noisy_images for test in tests if test.noisy]
    if not images:
        missing = "was not measured (--no-noise)" if results.plan.get("noise") is False else "has not been measured"
        return (
            f"{caption} Accuracy under noise {missing}. No intervals are given here; small differences may be chance."
        )
    total = results.plan["data"]["test"]
    sample = f"{min(images):,} of {total:,} test images, the same ones for every run"
    drawn = " (a sample stratified by class)" if min(images) < total else ""
    return (
        f"{caption} Under noise is the mean over the noise types to its right, each at five "
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
            f"{class_name(classes, true)} as {class_name(classes, predicted)} ({count})"
            for (true, predicted), count in most_common
        ]
        total = sum(len(test.images) for test in tests)
        sentences.append(
            f"{escape_control_characters(trial.name)} made {pluralize(errors.total(), 'error')} in {total:,} test "
            f"predictions over {pluralize(len(tests), 'seed')}, most often classifying {join_words(pairs)}."
        )
    return sentences


@dataclass(frozen=True)
class TransferComparison:
    """Comparison of strategies with training from scratch."""

    table: Table
    """Start (if any strategy has one), early, slope and asymptote as differences in validation accuracy
    (`xfer.measure.benefits`). No rows if there is no run from scratch that learned something."""
    remarks: tuple[str, ...]
    """What is not compared, and why. None in a sweep that did not train from scratch."""
    caption: str
    """Explains the columns of the table."""


def compare_with_scratch(results: Results) -> TransferComparison:
    """Compare each strategy's best search run with the best run from scratch on the same backbone and image size.

    A baseline that was stopped early, failed or learned nothing is not compared with, but named with the reason, and so
    is a strategy without a finished run. Runs of older versions, which did not measure the accuracy at the start, are
    left out.
    """
    by_backbone: dict[str, dict[str, list[RankedTrial]]] = {}
    trials = [trial for trial in results.trials if trial.strategy != OTHER_BASELINE]
    for trial in sorted(trials, key=lambda trial: (-(trial.search_accuracy or 0.0), trial.name)):
        strategies = by_backbone.setdefault(_backbone(trial, results), {})
        strategies.setdefault(trial.strategy, []).append(trial)
    rows: list[_BenefitRow] = []
    remarks = []
    if any(BASELINE in strategies for strategies in by_backbone.values()):
        for backbone, strategies in by_backbone.items():
            where = f" on {backbone}" if len(by_backbone) > 1 else ""
            baseline = next(filter(_has_curve, strategies.get(BASELINE, [])), None)
            if reason := _why_no_baseline(results, strategies.get(BASELINE, []), baseline, where):
                remarks.append(reason)
            elif baseline is not None:
                for strategy, group in strategies.items():
                    if strategy == BASELINE:
                        continue
                    if best := next(filter(_has_curve, group), None):
                        rows.append(_benefit_row(backbone, best, baseline))
                    elif not any(trial.status == "finished" for trial in group):
                        name = escape_control_characters(strategy)
                        remarks.append(f"{name}{where} is not compared: {_ends(group)}.")
    return TransferComparison(_benefits_table(rows), tuple(remarks), _benefits_caption(rows))


def _why_no_baseline(
    results: Results, trials: Sequence[RankedTrial], baseline: RankedTrial | None, where: str
) -> str | None:
    """Say why there is nothing to compare with; None if there is, or if an older version stored the runs."""
    if not trials:
        return f"Nothing was trained from scratch{where}, so transfer is not compared with it there."
    if baseline is not None:
        estimate, val = baseline.search_validation, baseline.search.val
        guessing = (majority_rate(val) if val else None) or results.guessing_rate
        if estimate is None or not learned_nothing(estimate.low, guessing):
            return None
        epochs = pluralize(len(baseline.search.epochs), "epoch")
        return (
            f"The run from scratch{where} (trial {escape_control_characters(baseline.name)}) learned nothing in "
            f"{epochs}: its validation accuracy is {format_estimate(estimate)}, and always answering the most frequent "
            f"class gets {format_percent(guessing)}. A comparison with it would say nothing about transfer. Training "
            "from scratch needs more epochs or more images."
        )
    if any(trial.status == "finished" for trial in trials):
        return None
    return f"Training from scratch{where} is no baseline: {_ends(trials)}."


def _ends(trials: Sequence[RankedTrial]) -> str:
    """How trials without a finished run ended."""
    return join_words(
        [
            f"trial {escape_control_characters(trial.name)} {_was(trial.status)}"
            f"{format_status(trial.status, len(trial.search.epochs))}"
            for trial in sorted(trials, key=lambda trial: trial.name)
        ]
    )


def _was(status: str) -> str:
    return "was " if status == "pruned" else ""


@dataclass(frozen=True)
class _BenefitRow:
    strategy: str
    backbone: str
    trials: str
    benefits: TransferBenefits

    @property
    def has_start(self) -> bool:
        return self.strategy in FITTED_HEADS


def _benefit_row(backbone: str, trial: RankedTrial, baseline: RankedTrial) -> _BenefitRow:
    benefits = transfer_benefits(accuracy_curve(trial.search), accuracy_curve(baseline.search))
    names = f"{escape_control_characters(trial.name)} vs. {escape_control_characters(baseline.name)}, one run each"
    return _BenefitRow(trial.strategy, backbone, names, benefits)


def _benefits_table(rows: Sequence[_BenefitRow]) -> Table:
    with_start = any(row.has_start for row in rows)
    cells = []
    for row in rows:
        start = format_percentage_points(row.benefits.start) if row.has_start else MISSING
        cells.append(
            (
                escape_control_characters(row.strategy),
                row.backbone,
                row.trials,
                *((start,) * with_start),
                format_percentage_points(row.benefits.early),
                f"{format_percentage_points(row.benefits.slope)} per epoch",
                format_percentage_points(row.benefits.asymptote),
            )
        )
    header = ("strategy", "backbone", "trials", *(("start",) * with_start), "early", "slope", "asymptote")
    return Table(header, tuple(cells), tuple(describe_strategy(row.strategy) for row in rows))


def _benefits_caption(rows: Sequence[_BenefitRow]) -> str:
    return TRANSFER_BENEFITS_CAPTION + (START_CAPTION if any(row.has_start for row in rows) else NO_START_CAPTION)


def _accuracy_under(kind: str) -> Callable[[Evaluation], float | None]:
    def accuracy(evaluation: Evaluation) -> float | None:
        accuracies = [noisy.accuracy for noisy in evaluation.noisy if noisy.kind == kind]
        return fmean(accuracies) if accuracies else None

    return accuracy


def _has_curve(trial: RankedTrial) -> bool:
    run = trial.search
    is_complete = bool(run.epochs) and all(math.isfinite(epoch.val_accuracy) for epoch in run.epochs)
    return run.status == "finished" and run.start_accuracy is not None and is_complete


def _backbone(trial: RankedTrial, results: Results) -> str:
    """Name of a trial's backbone, with the image size if several compete."""
    recipe = trial.search.recipe
    size = f" at {recipe['image_size']} px" if "image_size" in results.plan["space"] else ""
    return format_choice({"name": recipe["backbone"], **recipe["backbone_args"]}) + size
