"""Calibration of the first finalist on the test set, as it is and after temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sweeps.reporting.figures import ReportFigure
from sweeps.reporting.formatting import escape_control_characters, format_percent, join_words, pluralize
from sweeps.reporting.plot_style import MUTED, SERIES, format_percent_axis, new_figure, render_svg
from sweeps.reporting.ranking import ranked_finalists
from sweeps.reporting.results import Results
from sweeps.reporting.sections import Section
from xfer.measure.held_out import HeldOutRun

BINS = 15
"""Number of bins of equal width, as in Guo et al. 2017, https://arxiv.org/abs/1706.04599."""
MIN_BIN_PREDICTIONS = 10
"""Minimum number of predictions in a bin that is drawn."""
OVERCONFIDENT_BY = 0.02
"""Difference between mean confidence and accuracy from which a network is called overconfident or underconfident."""

CALIBRATION_CAPTION = (
    f"How often predictions of a confidence are correct, over all seeds, in {BINS} bins of equal width; bins with "
    f"fewer than {MIN_BIN_PREDICTIONS} predictions are left out. On the dotted line, confidence equals accuracy."
)


def calibration_sections(results: Results) -> list[Section]:
    """Show the calibration curve of the first finalist before and after temperature scaling.

    Returns:
        No section before the test set is used; one with the reason if no predictions are stored.
    """
    best = next((trial for trial in ranked_finalists(results) if trial.test), None)
    if best is None:
        return []
    name, runs = escape_control_characters(best.name), [*results.held_out.values()]
    title = f"Calibration of trial {name}"
    if not runs:
        reason = f"No predictions of trial {name} are stored, as in sweeps of earlier versions."
        return [Section(title, (reason,))]
    svg = render_svg(partial(_curves, runs), salt="calibration")
    figure = svg and ReportFigure("calibration", title, CALIBRATION_CAPTION, svg)
    return [Section(title, (_calibration_sentence(runs),), figure=figure or None)]


def calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Return the expected calibration error in [0, 1] over `BINS` bins, each including its upper edge.

    Args:
        confidence: [N], probability of the predicted class.
        correct: [N], whether the prediction is correct.

    >>> calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, False, False]))
    0.25
    """
    differences = np.bincount(_bins(confidence), weights=confidence - correct, minlength=BINS)
    return float(np.abs(differences).sum() / len(correct))


def _calibration_sentence(runs: Sequence[HeldOutRun]) -> str:
    before = fmean(calibration_error(run.test.probabilities[:, 0], run.test.correct) for run in runs)
    confidence = fmean(float(run.test.probabilities[:, 0].mean()) for run in runs)
    accuracy = fmean(float(run.test.correct.mean()) for run in runs)
    images, seeds = pluralize(len(runs[0].test.images), "test image"), pluralize(len(runs), "seed")
    excess = confidence - accuracy
    verdict = ""
    if abs(excess) >= OVERCONFIDENT_BY:
        verdict = f", so the network is {'over' if excess > 0 else 'under'}confident"
    sentence = (
        f"The mean confidence is {format_percent(confidence)} and the accuracy {format_percent(accuracy)} ({images}, "
        f"{seeds}){verdict}. The expected calibration error is {format_percent(before)}"
    )
    fitted = [run.temperature for run in runs if run.temperature is not None]
    without = len(runs) - len(fitted)
    val_images = pluralize(len(runs[0].val.images), "image")
    why_not = f"the validation set of {val_images} does not determine one, for example because it has no mistakes"
    if not fitted:
        return f"{sentence}. No temperature was fitted: {why_not}."
    after = fmean(calibration_error(run.test.scaled_probability, run.test.correct) for run in runs)
    temperatures = join_words([f"{temperature:.2f}" for temperature in fitted])
    sentence += (
        f", and {format_percent(after)} if the logits are divided by a temperature that was fitted on the validation "
        f"set ({val_images}) of each seed: {temperatures}."
    )
    if without:
        sentence += f" {pluralize(without, 'seed')} stayed unscaled: {why_not}."
    return f"{sentence} Scaling changes no prediction; the exported network does not do it."


def _curves(runs: Sequence[HeldOutRun]) -> Figure:
    figure, axes = new_figure(height=4.2, right=0.6)
    correct = np.concatenate([run.test.correct for run in runs])
    before = np.concatenate([run.test.probabilities[:, 0] for run in runs])
    after = np.concatenate([run.test.scaled_probability for run in runs])
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
    _curve(axes, before, correct, SERIES[1], "s", "as trained")
    if any(run.temperature is not None for run in runs):
        _curve(axes, after, correct, SERIES[0], "o", "with temperature")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    format_percent_axis(axes.xaxis, "confidence: probability of the predicted class")
    format_percent_axis(axes.yaxis, "accuracy")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _curve(
    axes: Axes, confidence: NDArray[np.float64], correct: NDArray[np.bool_], colour: str, marker: str, label: str
) -> None:
    bins = _bins(confidence)
    counts = np.bincount(bins, minlength=BINS)
    drawn = counts >= MIN_BIN_PREDICTIONS
    means = (
        np.bincount(bins, weights=values, minlength=BINS)[drawn] / counts[drawn] for values in (confidence, correct)
    )
    axes.plot(*means, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label, clip_on=False)


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)
