"""Distance between two data sets, from measurements made before any training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from xfer.advice.dataset_profile import DatasetProfile
from xfer.measure.feature_spread import FeatureSpread

MAX_DISTANCE = 0.75
"""Largest distance at which data sets count as similar. A rule of thumb, based on MobileNetV2 at 128 px and the data
sets of `xfer.advice.dataset_profile.MIN_ERROR_REDUCTION` (2026-11-25; eight classes of Stanford Cars). The distance was
0.46 from Dogs vs Cats to Hymenoptera, 0.66 from ten classes of Caltech-101 to Dogs vs Cats and 0.78 to Hymenoptera, 1.0
from Simpsons to Dogs vs Cats, and at least 1.3 from QuickDraw to all others. The sweep shows whether recipes transfer
that far."""


@dataclass(frozen=True)
class DatasetView:
    """A data set as a pretrained network sees it: its measurements, and the weights that they were made with."""

    measured: DatasetProfile
    weights: str
    """SHA-256 of the network's weights."""


@dataclass(frozen=True)
class DistanceTerm:
    """One quantity in which data sets are compared."""

    read: Callable[[DatasetProfile], float | None]
    """Reads the quantity from a profile; returns None if it was not measured."""
    unit: float
    """Difference that counts as 1: by rule of thumb, one that separates data that need different recipes."""
    same_network: bool = False
    """Whether values are comparable only if the same network has measured them."""


def _spread(read: Callable[[FeatureSpread], float]) -> Callable[[DatasetProfile], float | None]:
    return lambda data: None if data.spread is None else read(data.spread)


DISTANCE_TERMS: dict[str, DistanceTerm] = {
    # Counts are compared by their ratio: a unit is a factor of about 3.
    "classes": DistanceTerm(lambda data: math.log10(data.classes), 0.5),
    "images_per_class": DistanceTerm(lambda data: math.log10(max(1, data.images_per_class[1])), 0.5),
    # The quality of frozen features affects the choice of recipe more than anything else, so these units are small.
    "above_chance": DistanceTerm(lambda data: max(0.0, data.gain_over_chance), 0.2),
    "removed": DistanceTerm(lambda data: min(1.0, max(-1.0, data.error_reduction)), 0.3),
    # The distribution of features, a weak hint. LogME is not included: it is comparable only on the same images.
    "norm": DistanceTerm(_spread(lambda spread: math.log2(max(spread.norm, 1e-9))), 0.5, True),
    "variance_share": DistanceTerm(_spread(lambda spread: spread.variance_share), 0.2, True),
    "dimensions": DistanceTerm(_spread(lambda spread: math.log10(spread.dimensions)), 0.3, True),
    # The same images at half the size are different data to a network: a unit is a factor of 2 in the side.
    "image_size": DistanceTerm(lambda data: math.log2(data.image_size), 1.0),
}
"""Quantities to compare, by name: counts, norms and sizes by their logarithms, fractions as they are."""

NETWORK_MISMATCH_DISTANCE = 1.0
"""Difference, in units, that counts if different networks or different weights measured the two data sets."""


def dataset_distance(one: DatasetView, other: DatasetView) -> float:
    """Return the distance of two data sets: the root mean square of their differences in units of `DISTANCE_TERMS`.

    The distance is symmetric, at least 0, and 0 from a data set to itself. Terms that were not measured for both are
    omitted, and so are terms with `same_network` if different networks measured the two.
    """
    same = (one.measured.backbone, one.weights) == (other.measured.backbone, other.weights)
    differences = [0.0 if same else NETWORK_MISMATCH_DISTANCE]
    for term in DISTANCE_TERMS.values():
        values = term.read(one.measured), term.read(other.measured)
        if values[0] is not None and values[1] is not None and (same or not term.same_network):
            differences.append((values[0] - values[1]) / term.unit)
    return math.sqrt(math.fsum(difference**2 for difference in differences) / len(differences))
