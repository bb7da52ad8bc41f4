"""Spread of a data set's frozen features, independent of its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureSpread:
    """Three statistics of N feature vectors. Comparable only between features of the same network."""

    norm: float
    """Mean L2 norm of a vector, above 0."""
    variance_share: float
    """Fraction of the mean squared norm that is distance from the common mean, in [0, 1]: near 0 the network sees
    all images as alike."""
    dimensions: float
    """Participation ratio of the variances along the principal components, their squared sum over the sum of their
    squares (Gao et al. 2017, https://doi.org/10.1101/214262): the number of directions in which the images differ,
    in [1, min(N - 1, D)]."""


def feature_spread(features: NDArray[Any]) -> FeatureSpread:
    """Computes the spread of feature vectors.

    Args:
        features: [N, D], finite.

    Raises:
        ValueError: If no two vectors differ.
    """
    if features.ndim != 2 or len(features) < 2 or (features == features[0]).all():
        raise ValueError(f"features must be [N, D] with at least two different rows, got shape {features.shape}")
    x = features.astype(np.float64)
    squares = float(np.square(x).sum(axis=1).mean())
    centred = x - x.mean(axis=0)
    gram = (
        centred @ centred.T if len(x) <= x.shape[1] else centred.T @ centred
    )  # both have the same nonzero eigenvalues
    total = float(np.trace(gram))
    return FeatureSpread(
        norm=float(np.linalg.norm(x, axis=1).mean()),
        variance_share=min(1.0, total / len(x) / squares),
        dimensions=total**2 / float(np.square(gram).sum()),
    )
