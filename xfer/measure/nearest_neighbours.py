"""Nearest neighbours on frozen features: a classifier without any training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.07
"""Temperature of the votes: a neighbour of cosine similarity s counts exp(s / TEMPERATURE). Caron et al. 2021, DINO,
https://arxiv.org/abs/2104.14294, after Wu et al. 2018, https://arxiv.org/abs/1805.01978."""

CHUNK = 1_024
"""Number of queries whose similarities are in memory at a time."""


def nearest_neighbour_classes(
    features: NDArray[Any], labels: NDArray[np.int64], queries: NDArray[Any], k: int
) -> NDArray[np.int64]:
    """Classify images by a weighted vote of their k nearest neighbours in cosine similarity.

    Among equally similar images those that come first in `features` are the nearest; among classes with equal votes the
    lowest one is predicted. A row of zeros has similarity 0 to every other.

    Args:
        features: of labelled images, [N, D], finite.
        labels: their classes, [N], not negative.
        queries: features of the images to classify, [Q, D].
        k: number of neighbours, at least 1; capped at N.

    Returns:
        The predicted classes, [Q].

    Raises:
        ValueError: k is below 1, or there are no labelled images.
    """
    if k < 1 or not len(features):
        raise ValueError(f"at least one neighbour is needed, got k = {k} and {len(features)} labelled images")
    k = min(k, len(features))
    known = _unit_rows(features)
    predicted = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), CHUNK):
        similarity = _unit_rows(queries[start : start + CHUNK]) @ known.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        # Relative to the nearest one, so that the exponential stays within (0, 1].
        closeness = np.take_along_axis(similarity, nearest, axis=1)
        weights = np.exp((closeness - closeness[:, :1]) / TEMPERATURE)
        votes = np.zeros((len(nearest), int(labels.max()) + 1))
        np.add.at(votes, (np.arange(len(nearest))[:, None], labels[nearest]), weights)
        predicted[start : start + CHUNK] = votes.argmax(axis=1)
    return predicted


def _unit_rows(features: NDArray[Any]) -> NDArray[np.float64]:
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / np.where(norms > 0, norms, 1.0)
    return unit
