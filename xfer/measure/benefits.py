"""Benefits of transfer over training the same network from scratch: a higher start, slope and asymptote.

The three benefits are those of Torrey & Shavlik (2009, Handbook of Research on Machine Learning Applications): accuracy
before the first step, speed of improvement, and final accuracy. Each is computed from one learning curve; the benefit
is the difference between two curves.

The accuracy before the first step says something only about a head that was fitted before (`FITTED_HEADS`): a new head
starts at random, so it guesses whatever the network below it knows. And a curve from scratch that never leaves guessing
(`learned_nothing`) is no baseline: the difference to it is only what the transferred network reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfer.records import Evaluation, Record

Curve = Sequence[float]
"""Accuracies in [0, 1] before the first step and after each epoch: at least 2 points."""

MIN_FIT_POINTS = 6
"""Minimum number of points for fitting a limit: three parameters, and the rest to test them."""
MAX_ASYMPTOTE_ERROR = 0.01
"""Largest standard error of a fitted limit that is accepted: one point of accuracy."""
DECAY_RATIOS = (0.0, *np.exp(-np.geomspace(20, 1e-3, 100)).tolist())
"""Grid for a curve's decay ratio: from converged in one epoch to thousands of epochs."""


FITTED_HEADS = frozenset({"lp_ft"})
"""Strategies that fit the head before the first step and then train on: only they start above guessing."""


@dataclass(frozen=True)
class TransferBenefits:
    """Accuracy gained by transfer: transferred minus from scratch, above 0 where transfer is better."""

    start: float
    """Difference before the first step, in [-1, 1]. Zero but for chance, unless the head was fitted before."""
    slope: float
    """Difference of `slope`, in accuracy per epoch. Fair only where both curves have equally many epochs."""
    asymptote: float
    """Difference of `asymptote`, in [-1, 1]."""
    early: float
    """Difference after the first epoch, in [-1, 1]: the advantage that remains once the new head has been trained."""


def transfer_benefits(transferred: Curve, scratch: Curve) -> TransferBenefits:
    """Computes the benefits of transfer from two curves of the same network and training.

    >>> benefits = transfer_benefits([0.2, 0.8, 0.9, 0.9], [0.1, 0.3, 0.5, 0.6])
    >>> [round(value, 3) for value in (benefits.start, benefits.slope, benefits.asymptote, benefits.early)]
    [0.1, 0.4, 0.3, 0.5]

    Args:
        transferred: curve from pretrained weights.
        scratch: curve from random weights.

    Raises:
        ValueError: If a curve has fewer than 2 points or values outside [0, 1].
    """
    pretrained, random = _check_curve(transferred), _check_curve(scratch)
    return TransferBenefits(
        start=pretrained[0] - random[0],
        slope=slope(pretrained) - slope(random),
        asymptote=asymptote(pretrained) - asymptote(random),
        early=pretrained[1] - random[1],
    )


def majority_rate(evaluation: Evaluation) -> float | None:
    """Returns the accuracy of always answering the most frequent class of the evaluated images, in [0, 1].

    >>> majority_rate(Evaluation("val", 0.7, (0, 1, 2), (True, True, False), confusion=((0, 0, 2), (1, 0, 1))))
    0.6666666666666666

    Returns:
        None if the evaluation has no confusion matrix.
    """
    counts: dict[int, int] = {}
    for true, _, images in evaluation.confusion:
        counts[true] = counts.get(true, 0) + images
    return max(counts.values()) / sum(counts.values()) if counts else None


def learned_nothing(low: float, guessing: float) -> bool:
    """Returns whether an accuracy cannot be told from guessing.

    >>> learned_nothing(low=0.41, guessing=0.51), learned_nothing(low=0.60, guessing=0.51)
    (True, False)

    Args:
        low: lower end of the accuracy's confidence interval, in [0, 1].
        guessing: accuracy of always answering the most frequent class, in [0, 1].
    """
    return low <= guessing


def accuracy_curve(record: Record) -> Curve:
    """Returns a run's validation accuracies, from before its first step to its last epoch.

    Raises:
        ValueError: If the accuracy before the first step was not measured.
    """
    if record.start_accuracy is None:
        raise ValueError(
            f"trial {record.trial} has no accuracy before its first step: train its recipe again with this version"
        )
    return (record.start_accuracy, *(epoch.val_accuracy for epoch in record.epochs))


def slope(curve: Curve) -> float:
    """Mean gain in accuracy per epoch during the first half of the rise, at least 0.

    The rise goes from the first accuracy to the highest one, with straight lines between epochs. Half of the rise is
    divided by the number of epochs until it is first reached: later noise has no influence, and nothing is
    extrapolated. A curve that never exceeds its first accuracy has slope 0. The resolution is one epoch: a curve that
    converges within it has reached half of its rise after half an epoch.

    >>> slope([0.0, 0.2, 0.4, 0.4])
    0.2

    Raises:
        ValueError: If the curve has fewer than 2 points or values outside [0, 1].
    """
    curve = _check_curve(curve)
    rise = max(curve) - curve[0]
    middle = curve[0] + rise / 2
    if middle <= curve[0]:  # no rise, or one that is lost in rounding
        return 0.0
    end = next(epoch for epoch, accuracy in enumerate(curve) if accuracy >= middle)
    below, above = curve[end - 1], curve[end]
    return (rise / 2) / (end - 1 + (middle - below) / (above - below))


def asymptote(curve: Curve) -> float:
    """Accuracy that the curve converges to, in [0, 1].

    The limit a of the curve a - b r^t, r in [0, 1), fitted to all points by least squares, if the curve determines it:
    there are at least 6 points, the best r lies within the range searched, and the limit's standard error (from the
    curvature of the fit and the residual scatter) is at most 0.01. Otherwise (too short, too noisy, still straight or
    of another shape) the mean of the last quarter of the points, which underestimates a curve that still rises. A
    fitted limit may exceed every observed accuracy, but not leave [0, 1].

    >>> round(asymptote([0.9 - 0.8 * 0.5**epoch for epoch in range(6)]), 6)
    0.9
    >>> asymptote([0.5, 0.7, 0.6, 0.8])
    0.8

    Raises:
        ValueError: If the curve has fewer than 2 points or values outside [0, 1].
    """
    curve = _check_curve(curve)
    if min(curve) == max(curve):
        return curve[0]
    if len(curve) >= MIN_FIT_POINTS:
        limit, error = _fitted_limit(np.asarray(curve, dtype=np.float64))
        if error <= MAX_ASYMPTOTE_ERROR:
            return min(max(limit, 0.0), 1.0)
    last = curve[-math.ceil(len(curve) / 4) :]
    return math.fsum(last) / len(last)


def _fitted_limit(curve: NDArray[np.float64]) -> tuple[float, float]:
    """Fits a - b r^t; returns a and its standard error, infinite if r is at the end of its range."""
    epochs = np.arange(len(curve), dtype=np.float64)

    def fit(ratio: float) -> tuple[float, float, NDArray[np.float64]]:
        """Limit, height and residuals for a given ratio: a linear problem."""
        decay = ratio**epochs
        centred = decay - decay.mean()
        height = -float(centred @ (curve - curve.mean())) / float(centred @ centred)
        limit = float(curve.mean() + height * decay.mean())
        return limit, height, curve - limit + height * decay

    def ratio_derivative(ratio: float) -> NDArray[np.float64]:
        """Derivative of `ratio**epochs` with respect to the ratio."""
        return np.concatenate(([0.0], epochs[1:] * ratio ** (epochs[1:] - 1)))

    def loss_slope(ratio: float) -> float:
        """A number with the sign of the derivative of the squared residuals with respect to the ratio."""
        _, height, residuals = fit(ratio)
        return height * float(residuals @ ratio_derivative(ratio))

    squares = [float(residuals @ residuals) for _, _, residuals in map(fit, DECAY_RATIOS)]
    best = int(np.argmin(squares))
    if best == len(DECAY_RATIOS) - 1:
        return math.nan, math.inf
    low, high = DECAY_RATIOS[max(best - 1, 0)], DECAY_RATIOS[best + 1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if loss_slope(middle) < 0 else (low, middle)
    limit, height, residuals = fit(low)
    jacobian = np.stack((np.ones_like(epochs), -(low**epochs), -height * ratio_derivative(low)), axis=1)
    scatter = math.sqrt(float(residuals @ residuals) / (len(curve) - 3))
    try:
        # With A = QR, inv(A'A) = inv(R) inv(R)'; its first entry is the variance of the limit.
        limit_row = np.linalg.inv(np.linalg.qr(jacobian, mode="r"))[0]
    except np.linalg.LinAlgError:
        return limit, math.inf
    return limit, scatter * float(np.linalg.norm(limit_row))


def _check_curve(curve: Curve) -> tuple[float, ...]:
    values = tuple(float(accuracy) for accuracy in curve)
    if len(values) < 2:
        raise ValueError(
            f"a curve needs at least 2 points, got {len(values)}: give the accuracy before the first step and "
            f"after each epoch"
        )
    invalid = [value for value in values if not 0 <= value <= 1]
    if invalid:
        raise ValueError(f"accuracies of a curve must be in [0, 1], got {invalid[0]:g}: divide percentages by 100")
    return values
