"""More photos: accuracy of a logistic probe by number of training images, and what twice as many would add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from sweeps.reporting.figures import ReportFigure
from sweeps.reporting.formatting import escape_control_characters, format_percent, format_percentage_points
from sweeps.reporting.plot_style import ACCENT, MUTED, PAPER, format_percent_axis, new_figure, render_svg
from sweeps.reporting.results import Results
from sweeps.reporting.sections import Section

RESAMPLES = 1_000
"""Number of bootstrap samples behind the interval of the gain."""
SEED = 0
EXPONENTS = np.linspace(0.05, 2, 79)
"""Exponents of the power law to choose from."""
TITLE = "More photos"
CAPTION = (
    "Accuracy of a logistic probe on frozen features on the validation set. Small dots: one draw of training images; "
    "large dots: their mean. The line is the power law a + b n^-c of the error, dashed where it extrapolates."
)

Point = Mapping[str, Any]
"""As in `xfer.measure.data_curve.accuracy_by_images`."""


@dataclass(frozen=True)
class DataCurve:
    """A power law of the error in the number of training images, and the gain that it predicts for twice as many."""

    points: tuple[Point, ...]
    parameters: tuple[float, float, float]
    """Limit a, scale b and exponent c of the error a + b n^-c."""
    gain: float
    """Predicted accuracy with twice the training images minus that with all of them."""
    low: float
    high: float
    """95% interval of the gain, from binomial resampling of every draw."""


def fit_data_curve(points: Sequence[Point]) -> DataCurve | None:
    """Fit the error of the probes by number of training images.

    Args:
        points: at least three numbers of images, smallest first.

    Returns:
        None if there are fewer points.
    """
    if len(points) < 3:
        return None
    images = np.concatenate([[point["train_images"]] * len(point["correct"]) for point in points]).astype(float)
    shares = np.concatenate([np.asarray(point["correct"]) / point["images"] for point in points])
    evaluated = points[0]["images"]
    found = _fit(images, 1 - shares[None])
    resampled = np.random.default_rng(SEED).binomial(evaluated, shares, size=(RESAMPLES, len(shares))) / evaluated
    low, high = np.quantile(_gains(_fit(images, 1 - resampled), images.max()), (0.025, 0.975))
    limit, scale, exponent = map(float, found[0])
    gain = float(_gains(found, images.max())[0])
    return DataCurve(tuple(points), (limit, scale, exponent), gain, min(float(low), gain), max(float(high), gain))


def data_curve(results: Results) -> DataCurve | None:
    """Return the data curve of a sweep; None if none was measured."""
    return None if results.data_curve is None else fit_data_curve(results.data_curve["points"])


def twice_the_photos(results: Results) -> str | None:
    """State in one sentence what twice the training images would add; None if no curve was measured."""
    curve = data_curve(results)
    if curve is None:
        return None
    return f"Twice the photos: {_gain_text(curve)} for a logistic probe, by extrapolation."


def data_curve_sections(results: Results) -> list[Section]:
    """Show the curve with its extrapolation; no section if none was measured."""
    curve = data_curve(results)
    if curve is None or results.data_curve is None:
        return []
    last, backbone = curve.points[-1], escape_control_characters(results.data_curve["backbone"])
    first, evaluated = curve.points[0], f"{last['images']:,} validation images"
    smallest, largest = (format_percent(float(np.mean(each["correct"])) / each["images"]) for each in (first, last))
    sentence = (
        f"With all {last['train_images']:,} training images, a logistic probe on frozen features of {backbone} is "
        f"right about {largest} of {evaluated}; with at most {first['images_per_class']} per class, {smallest} on "
        f"average. Twice the training images would add {_gain_text(curve)}, if the power law through these "
        f"{len(curve.points)} numbers of images continues. It says nothing about fine-tuning, which may gain more."
    )
    svg = render_svg(partial(_draw, curve), salt="data_curve")
    return [Section(TITLE, (sentence,), figure=ReportFigure("data_curve", TITLE, CAPTION, svg) if svg else None)]


def _gain_text(curve: DataCurve) -> str:
    low, high = format_percentage_points(curve.low), format_percentage_points(curve.high)
    return f"{format_percentage_points(curve.gain)} points ({low} to {high})"


def _fit(images: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the error a + b n^-c by least squares, with a and b at least 0 and c one of `EXPONENTS`.

    For a given exponent the problem is linear, so that all samples are solved at once.

    Args:
        images: number of training images of each observation, [N].
        errors: one row per sample, [S, N].

    Returns:
        a, b and c of each sample, [S, 3].
    """
    best, fitted = np.full(len(errors), np.inf), np.zeros((len(errors), 3))
    for exponent in EXPONENTS:
        power = images**-exponent
        deviation = power - power.mean()
        scale = np.maximum(errors @ deviation / (deviation @ deviation), 0)
        limit = errors.mean(axis=1) - scale * power.mean()
        scale = np.where(limit < 0, errors @ power / (power @ power), scale)
        limit = np.maximum(limit, 0)
        losses = np.square(errors - limit[:, None] - scale[:, None] * power).sum(axis=1)
        better = losses < best
        best = np.where(better, losses, best)
        fitted[better] = np.stack([limit, scale, np.full(len(errors), exponent)], axis=1)[better]
    return fitted


def _gains(parameters: NDArray[np.float64], images: float) -> NDArray[np.float64]:
    _, scale, exponent = parameters.T
    gains: NDArray[np.float64] = scale * (images**-exponent - (2 * images) ** -exponent)
    return gains


def _draw(curve: DataCurve) -> Figure:
    figure, axes = new_figure(height=3.4)
    limit, scale, exponent = curve.parameters
    first, last = curve.points[0]["train_images"], curve.points[-1]["train_images"]
    for ends, dash in (((first, last), "-"), ((last, 2 * last), "--")):
        images = np.geomspace(*ends, 60)
        axes.plot(images, 1 - limit - scale * images**-exponent, dash, color=ACCENT, linewidth=1.4)
    for point in curve.points:
        shares = np.asarray(point["correct"]) / point["images"]
        axes.plot([point["train_images"]] * len(shares), shares, "o", color=MUTED, markersize=3, alpha=0.7)
        axes.plot([point["train_images"]], [shares.mean()], "o", color=ACCENT, markeredgecolor=PAPER, markersize=7)
    axes.set_xscale("log")
    numbers = [*(point["train_images"] for point in curve.points), 2 * last]
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("training images")
    format_percent_axis(axes.yaxis, "validation accuracy")
    return figure
