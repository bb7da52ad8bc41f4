"""Confusion matrix and accuracy by class of the first finalist on the test set, pooled over its seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sweeps.reporting.figures import ReportFigure
from sweeps.reporting.formatting import (
    MISSING,
    class_name,
    escape_control_characters,
    format_interval,
    format_percent,
    truncate,
)
from sweeps.reporting.plot_style import ACCENT, FIGURE_WIDTH, SERIES, render_svg
from sweeps.reporting.ranking import ranked_finalists
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.sections import NO_TABLE, Section
from sweeps.reporting.tables import Table
from xfer.measure.class_accuracy import class_accuracies
from xfer.measure.intervals import wilson_interval

MAX_DRAWN_CLASSES = 30
"""Maximum number of classes of a confusion matrix that is drawn; with more, its largest entries are listed."""
MAX_LISTED_PAIRS = 20
"""Maximum number of confused pairs that are listed."""

CELL_OPACITY = 0.45
"""Opacity of a cell with all images of its class, so that its number can be read on a light and on a dark page."""
LABEL_LENGTH = 18
"""Maximum number of characters of a class name at an axis."""
CHARACTER_WIDTH = 0.085
"""Width of a character at an axis in inches, a little more than its mean."""

CONFUSION_CAPTION = (
    "Rows are true classes, with the number of their test images for one seed; columns are predicted classes. A cell "
    "is the percentage of the row's images, over all seeds. Blue: correct, pink: mistaken, empty: none."
)
CLASSES_CAPTION = (
    "Worst class first. n is the number of test images of the class for one seed, and the 95% interval (Wilson) counts "
    "each image once, whatever the number of seeds. All images are those of the whole data set. The last column has "
    "the number of such predictions over all seeds."
)

Counts = Mapping[tuple[int, int], int]
"""Number of predictions by (true class, predicted class)."""


def confusion_sections(results: Results) -> list[Section]:
    """Show what the first finalist confuses: the matrix, or its largest entries, then the accuracy in each class.

    Returns:
        No sections before the test set is used; a section with the reason if no confusion matrix was stored.
    """
    best = next((trial for trial in ranked_finalists(results) if trial.test_evaluations), None)
    if best is None:
        return []
    title = f"Confusion matrix of trial {escape_control_characters(best.name)}"
    counts = pooled_counts(best)
    if not counts:
        return [Section(title, ("The sweep was run by a version that did not store confusion matrices.",))]
    names = results.plan["data"]["classes"]
    if results.classes <= MAX_DRAWN_CLASSES:
        images = {found.label: found.images for found in class_accuracies(best.test_evaluations)}
        svg = render_svg(partial(_matrix, counts, images, names), salt="confusion")
        figure = svg and ReportFigure("confusion", title, CONFUSION_CAPTION, svg)
        matrix = Section(title, figure=figure or None)
    else:
        listed = f"A matrix of {results.classes:,} classes cannot be read, so the most frequent confusions are listed."
        matrix = Section(title, (listed,), table=confused_pairs(counts, names))
    return [matrix, Section("Accuracy by class", table=_classes_table(results, best), caption=CLASSES_CAPTION)]


def pooled_counts(trial: RankedTrial) -> Counts:
    """Add up the confusion matrices of a trial on the test set over its seeds; empty if none was stored."""
    counts: Counter[tuple[int, int]] = Counter()
    for evaluation in trial.test_evaluations:
        counts.update({(true, predicted): count for true, predicted, count in evaluation.confusion})
    return counts


def confused_pairs(counts: Counts, names: Sequence[str]) -> Table:
    """List the most frequent confusions with the part of the true class's predictions that they are."""
    sizes = _class_sizes(counts)
    errors = {pair: count for pair, count in counts.items() if pair[0] != pair[1]}
    if not errors:
        return NO_TABLE
    rows = tuple(
        (class_name(names, true), class_name(names, predicted), f"{count:,}", format_percent(count / sizes[true]))
        for (true, predicted), count in sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:MAX_LISTED_PAIRS]
    )
    return Table(("true class", "predicted class", "errors", "of the class"), rows)


def _classes_table(results: Results, trial: RankedTrial) -> Table:
    """Accuracy in each class, and what its images are most often taken for."""
    names, totals = results.plan["data"]["classes"], results.plan["data"].get("images")
    counts = pooled_counts(trial)
    mistaken: dict[int, tuple[int, int]] = {}  # (count, predicted class) by true class
    for (true, predicted), count in sorted(counts.items()):
        if true != predicted and count > mistaken.get(true, (0, 0))[0]:
            mistaken[true] = (count, predicted)
    rows = []
    for found in class_accuracies(trial.test_evaluations):
        low, high = wilson_interval(found.accuracy, found.images)
        count, predicted = mistaken.get(found.label, (0, 0))
        rows.append(
            (
                class_name(names, found.label),
                f"{format_percent(found.accuracy)} ({format_interval(low, high)})",
                f"{found.images:,}",
                *((f"{totals[found.label]:,}",) if totals else ()),
                f"{class_name(names, predicted)} ({count:,})" if count else MISSING,
            )
        )
    header = ("class", "accuracy", "n", *(("all images",) if totals else ()), "most often taken for")
    return Table(header, tuple(rows))


def _matrix(counts: Counts, images: Mapping[int, int], names: Sequence[str]) -> Figure:
    """Draw the matrix with square cells; every row has its class name on the left."""
    number, sizes = len(names), _class_sizes(counts)
    labels = [truncate(escape_control_characters(name), LABEL_LENGTH) for name in names]
    rows = [f"{label} (n = {images.get(index, 0):,})" for index, label in enumerate(labels)]
    left, top = (0.2 + CHARACTER_WIDTH * max(map(len, texts)) for texts in (rows, labels))  # inches
    cell = min(0.55, (FIGURE_WIDTH - left - 0.1) / number)
    size = number * cell
    figure = Figure(figsize=(FIGURE_WIDTH, top + size + 0.1))
    axes = figure.add_axes(
        (left / FIGURE_WIDTH, 0.1 / (top + size + 0.1), size / FIGURE_WIDTH, size / (top + size + 0.1))
    )
    for (true, predicted), count in counts.items():
        rate = count / sizes[true]
        colour = ACCENT if true == predicted else SERIES[3]
        axes.add_patch(
            Rectangle((predicted, true), 1, 1, facecolor=colour, alpha=CELL_OPACITY * math.sqrt(rate), linewidth=0)
        )
        text = f"{100 * rate:.0f}" if rate >= 0.005 else "<1"
        axes.text(predicted + 0.5, true + 0.5, text, ha="center", va="center", fontsize=8.5)
    axes.set_xlim(0, number)
    axes.set_ylim(number, 0)
    axes.xaxis.tick_top()
    centres = [index + 0.5 for index in range(number)]
    axes.set_xticks(centres, labels, rotation=90)
    axes.set_yticks(centres, rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _class_sizes(counts: Counts) -> Counter[int]:
    sizes: Counter[int] = Counter()
    for (true, _), count in counts.items():
        sizes[true] += count
    return sizes
