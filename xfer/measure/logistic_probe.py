"""Logistic probe: a linear classifier on frozen features whose penalty is chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xfer.linear_heads import TOLERANCE, logistic_path
from xfer.measure.transferability import stratified_folds

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Penalties to choose from: the inverse of scikit-learn's C."""
DEFAULT_PENALTY = 1.0
"""Penalty if no class has two images, so that nothing can be held out."""
FOLDS = 5
"""Number of stratified folds; reduced to the size of the largest class."""

FOLD_TOLERANCE = 1e-5
"""Largest gradient entry of a converged probe during cross-validation. Penalties differ by factors of ten, and probes
that are a hundred times more precise take six times as long: 12 s instead of 2 s for 480 images of 20 classes, on one
busy core and with 1,280 random numbers as features (2026-12-01)."""

MAX_LABEL_ENTRIES = 50_000
"""Maximum number of images times classes for which every fold is held out in turn; beyond it only the first fold
is. All five folds of 1,000 images of 100 classes took 30 s on one busy core, one takes a fifth of that."""


def choose_penalty(
    features: NDArray[Any],
    labels: NDArray[np.int64],
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> float:
    """Choose the penalty of a logistic probe by cross-validation.

    Args:
        features: of the training images, [N, D], finite.
        labels: their classes, [N].
        penalties: to choose from.
        seed: determines the folds.

    Returns:
        The penalty with the lowest cross-entropy on held-out images, the largest one of equals. Cross-entropy, because
        on small data the number of correct predictions is too coarse. Held-out images of a class that a fold does not
        train on tell nothing about the penalty and are ignored. On many images of many classes only one fold is held
        out (`MAX_LABEL_ENTRIES`). `DEFAULT_PENALTY` if nothing can be held out.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    folds = min(FOLDS, int(np.bincount(targets).max()))
    if folds < 2 or len(classes) < 2:
        return DEFAULT_PENALTY
    fold_of = stratified_folds(targets, folds, seed)
    losses = dict.fromkeys(sorted(penalties, reverse=True), 0.0)
    for fold in range(folds if len(labels) * len(classes) <= MAX_LABEL_ENTRIES else 1):
        held = fold_of == fold
        present, fitted = np.unique(targets[~held], return_inverse=True)
        held &= np.isin(targets, present)
        if len(present) < 2 or not held.any():
            continue
        held_targets = np.searchsorted(present, targets[held])
        heads = _fit(features[fold_of != fold], fitted, len(present), tuple(losses), FOLD_TOLERANCE)
        for penalty, (weight, bias) in zip(losses, heads, strict=True):
            log_odds = torch.from_numpy(features[held].astype(np.float32) @ weight.T + bias)
            log_probabilities = log_odds.double().log_softmax(dim=1).numpy()
            losses[penalty] -= float(log_probabilities[np.arange(len(held_targets)), held_targets].sum())
    return min(losses, key=lambda penalty: losses[penalty])


def logistic_probe_classes(
    features: NDArray[Any], labels: NDArray[np.int64], queries: NDArray[Any], penalty: float
) -> NDArray[np.int64]:
    """Fit a logistic probe on labelled images and classify others.

    Args:
        features: of the labelled images, [N, D], finite.
        labels: their classes, [N].
        queries: features of the images to classify, [Q, D].
        penalty: above 0.

    Returns:
        The predicted classes, [Q]; only classes that have a labelled image are predicted.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return np.full(len(queries), classes[0], dtype=np.int64)
    [(weight, bias)] = _fit(features, targets, len(classes), (penalty,))
    predicted: NDArray[np.int64] = classes[(queries.astype(np.float32) @ weight.T + bias).argmax(axis=1)]
    return predicted


def _fit(
    features: NDArray[Any],
    targets: NDArray[np.int64],
    classes: int,
    penalties: Sequence[float],
    tolerance: float = TOLERANCE,
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    rows = torch.from_numpy(features.astype(np.float32))
    heads = logistic_path(rows, torch.from_numpy(targets.astype(np.int64)), classes, penalties, tolerance)
    return [(weight.numpy(), bias.numpy()) for weight, bias in heads]
