"""What transfer bought over training the same network from scratch: a higher start, slope and asymptote.

The three benefits are Torrey & Shavlik's (2009): skill before the first step, how fast it improves, and where it ends.
Each is read off one learning curve here, and the difference of two curves is the benefit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfer.records import Record

Curve = Sequence[float]
"""Accuracies in [0, 1] before the first step and after each epoch: e epochs make e + 1 of them, at least 2."""

MIN_FIT_POINTS = 6
"""From how many points on a limit is fitted: three numbers are, and the rest must speak for them."""
MAX_ASYMPTOTE_ERROR = 0.01
"""A fitted limit is believed when its standard error is at most one point of accuracy."""
DECAY_RATIOS = (0.0, *np.exp(-np.geomspace(20, 1e-3, 100)).tolist())
"""Where the search for a curve's ratio begins: from a curve that is done in one epoch to one that takes thousands."""


@dataclass(frozen=True)
class TransferBenefits:
    """What transfer bought, in accuracy: transferred minus from scratch, above 0 where transfer is better."""

    start: float
    """Before the first step, in [-1, 1]."""
    slope: float
    """In accuracy per epoch: see `slope`. It compares fairly where both curves have equally many epochs."""
    asymptote: float
    """Converged, in [-1, 1]: see `asymptote`."""
    early: float
    """After the first epoch, in [-1, 1]: the start that is left once the untrained head has caught up."""


def transfer_benefits(transferred: Curve, scratch: Curve) -> TransferBenefits:
    """The benefits of transfer, from the curves of the same network, trained alike, from pretrained and random weights.

    >>> found = transfer_benefits([0.2, 0.8, 0.9, 0.9], [0.1, 0.3, 0.5, 0.6])
    >>> [round(each, 3) for each in (found.start, found.slope, found.asymptote, found.early)]
    [0.1, 0.4, 0.3, 0.5]

    Raises:
        ValueError: one of them is no curve.
    """
    with_it, without = _checked(transferred), _checked(scratch)
    return TransferBenefits(
        start=with_it[0] - without[0],
        slope=slope(with_it) - slope(without),
        asymptote=asymptote(with_it) - asymptote(without),
        early=with_it[1] - without[1],
    )


def accuracy_curve(record: Record) -> Curve:
    """A run's validation accuracies, from before its first step to its last epoch.

    Raises:
        ValueError: it was not measured before its first step.
    """
    if record.start_accuracy is None:
        raise ValueError(
            f"trial {record.trial} was not measured before its first step: run its recipe again with this version"
        )
    return (record.start_accuracy, *(epoch.val_accuracy for epoch in record.epochs))


def slope(curve: Curve) -> float:
    """Mean gain in accuracy per epoch until half of the rise is done, at least 0.

    The rise goes from the first accuracy to the highest one that was seen; the curve is read as straight lines between
    epochs. Half of the rise, over the epochs until it is first reached: later noise has no say, and nothing is
    extrapolated. A curve that never exceeds its first accuracy, flat or falling, has slope 0. One epoch is the finest
    that can be seen: a curve that is done within it has half its rise after half an epoch.

    >>> slope([0.0, 0.2, 0.4, 0.4])
    0.2

    Raises:
        ValueError: that is no curve.
    """
    curve = _checked(curve)
    rise = max(curve) - curve[0]
    if rise <= 0:
        return 0.0
    middle = curve[0] + rise / 2
    end = next(epoch for epoch, accuracy in enumerate(curve) if accuracy >= middle)
    below, above = curve[end - 1], curve[end]
    return (rise / 2) / (end - 1 + (middle - below) / (above - below))


def asymptote(curve: Curve) -> float:
    """Where the accuracy converges, in [0, 1].

    The limit a of the curve a - b r^t, r in [0, 1), fitted to all points by least squares, where the curve determines
    it: there are at least 6 points, the best r lies within the range searched, and the limit's standard error
    (from the curvature of the fit and the scatter around it) is at most 0.01. Otherwise, for a curve that is too
    short, too noisy, still straight or of another shape, the mean of the last quarter of the points, which is low for
    a curve that still rises. A fitted limit may lie above every accuracy that was seen, but not outside [0, 1].

    >>> round(asymptote([0.9 - 0.8 * 0.5**epoch for epoch in range(6)]), 6)
    0.9
    >>> asymptote([0.5, 0.7, 0.6, 0.8])
    0.8

    Raises:
        ValueError: that is no curve.
    """
    curve = _checked(curve)
    if min(curve) == max(curve):
        return curve[0]
    if len(curve) >= MIN_FIT_POINTS:
        limit, error = _fitted_limit(np.asarray(curve, dtype=np.float64))
        if error <= MAX_ASYMPTOTE_ERROR:
            return min(max(limit, 0.0), 1.0)
    last = curve[-math.ceil(len(curve) / 4) :]
    return math.fsum(last) / len(last)


def _fitted_limit(curve: NDArray[np.float64]) -> tuple[float, float]:
    """The limit of the best curve a - b r^t, and its standard error; infinite where r is at the end of its range."""
    epochs = np.arange(len(curve), dtype=np.float64)

    def fit(ratio: float) -> tuple[float, float, NDArray[np.float64]]:
        """Limit, height and residuals under a given ratio: what is left is linear."""
        decay = ratio**epochs
        centred = decay - decay.mean()
        height = -float(centred @ (curve - curve.mean())) / float(centred @ centred)
        limit = float(curve.mean() + height * decay.mean())
        return limit, height, curve - limit + height * decay

    def turn(ratio: float) -> NDArray[np.float64]:
        """The derivative of `ratio**epochs`."""
        return np.concatenate(([0.0], epochs[1:] * ratio ** (epochs[1:] - 1)))

    def tilt(ratio: float) -> float:
        """The sign with which the squared residuals change as the ratio grows."""
        _, height, residuals = fit(ratio)
        return height * float(residuals @ turn(ratio))

    squares = [float(residuals @ residuals) for _, _, residuals in map(fit, DECAY_RATIOS)]
    best = int(np.argmin(squares))
    if best == len(DECAY_RATIOS) - 1:
        return math.nan, math.inf
    low, high = DECAY_RATIOS[max(best - 1, 0)], DECAY_RATIOS[best + 1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tilt(middle) < 0 else (low, middle)
    limit, height, residuals = fit(low)
    directions = np.stack((np.ones_like(epochs), -(low**epochs), -height * turn(low)), axis=1)
    scatter = math.sqrt(float(residuals @ residuals) / (len(curve) - 3))
    try:
        # Of A = QR the inverse of A'A is inv(R) inv(R)': its corner belongs to the limit.
        corner = np.linalg.inv(np.linalg.qr(directions, mode="r"))[0]
    except np.linalg.LinAlgError:
        return limit, math.inf
    return limit, scatter * float(np.linalg.norm(corner))


def _checked(curve: Curve) -> tuple[float, ...]:
    values = tuple(float(accuracy) for accuracy in curve)
    if len(values) < 2:
        raise ValueError(
            f"a curve of {len(values)} points: give the accuracy before the first step and after each epoch"
        )
    wrong = [value for value in values if not 0 <= value <= 1]
    if wrong:
        raise ValueError(f"accuracy {wrong[0]:g} on a curve: accuracies lie in [0, 1], so divide percent by 100")
    return values
