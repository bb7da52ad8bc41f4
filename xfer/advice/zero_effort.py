"""Classifiers on frozen features, without training of the network: nearest neighbours and a logistic probe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xfer.data.split import Indices, Split, stratified_sample
from xfer.feature_extraction.feature_cache import Rows
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.measure.data_curve import accuracy_by_images
from xfer.measure.logistic_probe import choose_penalty, logistic_probe_classes
from xfer.measure.nearest_neighbours import nearest_neighbour_classes
from xfer.measure.zero_effort import KNN, LOGISTIC_PROBE
from xfer.seeding import derive_seed

NEIGHBOURS = (5, 20)
"""Numbers of neighbours; capped at the number of training images."""

MAX_IMAGES = 2_000
"""Maximum number of images of each part. A larger part is sampled, which bounds the time. Features of a sample are not
shared with later runs, which compute all of them."""

EvaluatedPart = Literal["val", "test"]


def frozen_feature_rows(
    features: FrozenFeatures, split: Split, part: EvaluatedPart, split_seed: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per classifier, fitted on the training part and evaluated on another part.

    Args:
        features: below the classifier of a network.
        split: parts of the images.
        part: what is evaluated.
        split_seed: determines the sample of a large part, and the folds that choose the penalty.

    Raises:
        ValueError: the features are not finite.
    """
    seed = derive_seed(split_seed, "zero effort")
    known, labels, queries, truth = _samples(features, split, part, seed)

    def row(method: str, predicted: Any, **settings: float) -> dict[str, Any]:
        counts = {"correct": int((predicted == truth).sum()), "images": len(truth), "train_images": len(labels)}
        return {"method": method, **settings, **counts}

    for k in sorted({min(k, len(labels)) for k in NEIGHBOURS}):
        yield row(KNN, nearest_neighbour_classes(known, labels, queries, k), k=k)
    penalty = choose_penalty(known, labels, seed=seed)
    yield row(LOGISTIC_PROBE, logistic_probe_classes(known, labels, queries, penalty), penalty=penalty)


def data_curve(features: FrozenFeatures, split: Split, split_seed: int) -> list[dict[str, Any]]:
    """Return the accuracies on the validation part of logistic probes on growing numbers of training images.

    Args:
        features: below the classifier of a network.
        split: parts of the images.
        split_seed: determines the sample of a large part, the draws and the folds that choose penalties.

    Returns:
        The points of `xfer.measure.data_curve.accuracy_by_images`.

    Raises:
        ValueError: the features are not finite.
    """
    seed = derive_seed(split_seed, "zero effort")
    return accuracy_by_images(*_samples(features, split, "val", seed), seed)


def _samples(
    features: FrozenFeatures, split: Split, part: EvaluatedPart, seed: int
) -> tuple[Rows, NDArray[np.int64], Rows, NDArray[np.int64]]:
    """Return features and classes of the training images and of the evaluated images."""
    labels = features.pack.labels.astype(np.int64)
    train, evaluated = (stratified_sample(labels, split.of(of), MAX_IMAGES, seed) for of in ("train", part))
    is_sampled = max(len(split.train_and_val), len(split.of(part))) > MAX_IMAGES
    known, queries = (_embeddings(features, indices, is_sampled) for indices in (train, evaluated))
    if not (np.isfinite(known).all() and np.isfinite(queries).all()):
        raise ValueError("features must be finite, but some are not: check that the weights fit the network")
    return known, labels[train], queries, labels[evaluated]


def _embeddings(features: FrozenFeatures, indices: Indices, is_sampled: bool) -> Rows:
    if is_sampled:
        return np.concatenate(list(features.compute(indices, None)))
    rows: Rows = features.rows(indices).numpy()
    return rows
