"""Alike: how far apart two data sets are, by what was measured of them before anything was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from xfer.advice.dataset_profile import DatasetProfile
from xfer.measure.feature_spread import FeatureSpread

MAX_DISTANCE = 0.75
"""Data sets farther apart than this are not alike: a rule of thumb, set after looking at MobileNetV2 at 128 px on the
data of `xfer.advice.dataset_profile.MIN_ERROR_REDUCTION` (2026-11-25; of Stanford Cars eight classes). Dogs vs Cats stood
.46 from
Hymenoptera, ten classes of Caltech-101 .66 from Dogs vs Cats and .78 from Hymenoptera, Simpsons 1.0 from Dogs vs Cats,
and QuickDraw at least 1.3 from everything else. Whether recipes carry over that far is what a sweep finds out."""


@dataclass(frozen=True)
class DatasetView:
    """A data set as a pretrained network sees it."""

    measured: DatasetProfile
    weights: str
    """The SHA-256 of that network's weights."""


@dataclass(frozen=True)
class DistanceTerm:
    """One thing in which data sets differ."""

    read: Callable[[DatasetProfile], float | None]
    """None where it was not measured."""
    unit: float
    """The difference that counts as 1: as much as separates data that want other recipes, by rule of thumb."""
    same_network: bool = False
    """Whether figures of two networks cannot be compared."""


def _spread(read: Callable[[FeatureSpread], float]) -> Callable[[DatasetProfile], float | None]:
    return lambda data: None if data.spread is None else read(data.spread)


DISTANCE_TERMS: dict[str, DistanceTerm] = {
    # Counts are compared by their ratio: a factor of about 3 each is a unit.
    "classes": DistanceTerm(lambda data: math.log10(data.classes), 0.5),
    "images_per_class": DistanceTerm(lambda data: math.log10(max(1, data.images_per_class[1])), 0.5),
    # Whether frozen features serve decides more than anything else what recipe is wanted, so these units are small.
    "above_chance": DistanceTerm(lambda data: max(0.0, data.gain_over_chance), 0.2),
    "removed": DistanceTerm(lambda data: min(1.0, max(-1.0, data.error_reduction)), 0.3),
    # How the features lie: hints only. LogME is not among them: it can be compared for the same images alone.
    "norm": DistanceTerm(_spread(lambda spread: math.log2(max(spread.norm, 1e-9))), 0.5, True),
    "variance_share": DistanceTerm(_spread(lambda spread: spread.variance_share), 0.2, True),
    "dimensions": DistanceTerm(_spread(lambda spread: math.log10(spread.dimensions)), 0.3, True),
    # The same photos in half the size are other data to a network: a factor of 2 in the side is a unit.
    "image_size": DistanceTerm(lambda data: math.log2(data.image_size), 1.0),
}
"""What is compared: counts, norms and sizes by their logarithms, shares as they are."""

NETWORK_MISMATCH_DISTANCE = 1.0
"""What it counts, in units, that two data sets were seen by different networks, or by other weights of the same."""


def dataset_distance(one: DatasetView, other: DatasetView) -> float:
    """How far apart two data sets are: the root mean square of their differences in the units of `DISTANCE_TERMS`.

    Symmetric, at least 0, and 0 for a data set and itself. Terms that one of them was not measured in are left out, and
    where another network looked, those that only one network's figures can be compared in.
    """
    same = (one.measured.backbone, one.weights) == (other.measured.backbone, other.weights)
    found = [0.0 if same else NETWORK_MISMATCH_DISTANCE]
    for term in DISTANCE_TERMS.values():
        values = term.read(one.measured), term.read(other.measured)
        if values[0] is not None and values[1] is not None and (same or not term.same_network):
            found.append((values[0] - values[1]) / term.unit)
    return math.sqrt(math.fsum(value**2 for value in found) / len(found))
