"""Balanced accuracy and the worst class of a trial: on the test set for tested finalists, else on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sweeps.reporting.formatting import (
    MISSING,
    escape_control_characters,
    format_interval,
    format_percent,
    join_words,
    pluralize,
)
from sweeps.reporting.results import RankedTrial, Results
from xfer.measure.class_accuracy import class_accuracies
from xfer.measure.intervals import wilson_interval
from xfer.records import Evaluation

CLASS_COLUMNS = ("balanced", "worst class")
"""Columns of ranking tables."""
CLASS_COLUMNS_CAPTION = (
    "Balanced accuracy is the mean over classes of the accuracy in the class, and the worst class is the one with the "
    "lowest accuracy: on the test set for tested finalists, else on the validation set. n is the number of its images "
    "for one seed. The interval counts each image once, and does not cover that this class was selected as the worst."
)
MAX_NAMED_CLASSES = 5
"""Maximum number of classes without images that are named."""


@dataclass(frozen=True)
class ClassSummary:
    """What a trial reached in its classes, on one part of the data."""

    set_name: str
    """`test` or `validation`."""
    balanced: float
    """Mean over classes with images of the accuracy in the class, in [0, 1]; mean over seeds."""
    worst: str
    """Name of the class with the lowest accuracy."""
    accuracy: float
    """Its accuracy over all seeds."""
    images: int
    """Number of its images in one evaluation."""
    low: float
    """Lower end of the 95% interval of `accuracy`, which counts each image once, whatever the number of seeds."""
    high: float
    missing: tuple[str, ...]
    """Classes without images in this part."""


def summarize_classes(evaluations: Sequence[Evaluation], classes: Sequence[str]) -> ClassSummary | None:
    """Summarise the accuracy in each class over evaluations of one recipe on one part of the data.

    Args:
        evaluations: one per seed.
        classes: names of all classes.

    Returns:
        None if no evaluation has a confusion matrix, as in sweeps of older versions.
    """
    found = class_accuracies(evaluations)
    balanced = [each.balanced_accuracy for each in evaluations if each.balanced_accuracy is not None]
    if not found or not balanced:
        return None
    worst, present = found[0], {each.label for each in found}
    low, high = wilson_interval(worst.accuracy, worst.images)
    name = classes[worst.label] if worst.label < len(classes) else f"class {worst.label}"
    missing = tuple(name for label, name in enumerate(classes) if label not in present)
    set_name = "test" if evaluations[0].part == "test" else "validation"
    return ClassSummary(set_name, fmean(balanced), name, worst.accuracy, worst.images, low, high, missing)


def trial_classes(results: Results, trial: RankedTrial) -> ClassSummary | None:
    """Summarise a trial: a finalist's final runs, on the test set once it is used; else its search run."""
    return summarize_classes(trial.test_evaluations or trial.val_evaluations, results.plan["data"]["classes"])


def search_classes(results: Results, trial: RankedTrial) -> ClassSummary | None:
    """Summarise a trial's search run on the validation set, also for a finalist."""
    val = [trial.search.val] if trial.search.val else []
    return summarize_classes(val, results.plan["data"]["classes"])


def class_cells(summary: ClassSummary | None, balanced: float | None = None) -> tuple[str, str]:
    """Format the cells of `CLASS_COLUMNS`.

    Args:
        summary: of the trial; None if its run was not evaluated in each class, such as one that was stopped early.
        balanced: balanced accuracy to show without a summary.
    """
    if summary is None:
        return format_percent(balanced), MISSING
    interval = format_interval(summary.low, summary.high)
    worst = f"{format_percent(summary.accuracy)} ({interval}), n = {summary.images:,}"
    return format_percent(summary.balanced), f"{escape_control_characters(summary.worst)} {worst}"


def class_sentence(results: Results, trial: RankedTrial) -> str | None:
    """State balanced accuracy and worst class of a trial; None if its classes were not evaluated."""
    summary = trial_classes(results, trial)
    if summary is None:
        return None
    interval = format_interval(summary.low, summary.high)
    sentence = (
        f"Its balanced accuracy on the {summary.set_name} set is {format_percent(summary.balanced)}; its worst class, "
        f"{escape_control_characters(summary.worst)}, has {format_percent(summary.accuracy)} of "
        f"{pluralize(summary.images, 'image')} correct (95% interval {interval})."
    )
    if summary.missing:
        shown = [escape_control_characters(name) for name in summary.missing[:MAX_NAMED_CLASSES]]
        more = len(summary.missing) - len(shown)
        names = join_words([*shown, *([f"{more:,} more"] if more else [])])
        sentence += f" Classes without images in this set are left out: {names}."
    return sentence
