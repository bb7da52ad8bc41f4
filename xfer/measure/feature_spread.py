"""Spread: how the frozen features of a data set lie, whatever its labels say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureSpread:
    """Three numbers about N feature vectors. Only those of the same network can be compared."""

    norm: float
    """The mean L2 norm of a vector, above 0."""
    variance_share: float
    """How much of the mean squared norm is distance from the common mean, in [0, 1]: near 0 all images look alike to
    the network."""
    dimensions: float
    """The participation ratio of the variances along the principal components, their sum squared over the sum of their
    squares (Gao et al. 2017): along how many directions the images differ, in [1, min(N - 1, D)]."""


def feature_spread(features: NDArray[Any]) -> FeatureSpread:
    """How feature vectors lie.

    Args:
        features: [N, D], finite.

    Raises:
        ValueError: there are no two different vectors.
    """
    if features.ndim != 2 or len(features) < 2 or (features == features[0]).all():
        raise ValueError(f"features [N, D] with at least two different rows are wanted; these are {features.shape}")
    x = features.astype(np.float64)
    squares = float(np.square(x).sum(axis=1).mean())
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T if len(x) <= x.shape[1] else centred.T @ centred  # both have the same eigenvalues
    total = float(np.trace(gram))
    return FeatureSpread(
        norm=float(np.linalg.norm(x, axis=1).mean()),
        variance_share=min(1.0, total / len(x) / squares),
        dimensions=total**2 / float(np.square(gram).sum()),
    )
