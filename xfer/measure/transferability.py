"""How well frozen features suit a task, before any training of the network: LogME and a linear probe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfer.seeding import derive_seed

RIDGE_PENALTIES = 10.0 ** np.arange(-3, 3.01, 0.5)
"""Ridge penalties to try, in units of the features' mean variance."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Results of a linear classifier on frozen features, on held-out images."""

    correct: NDArray[np.bool_]
    """Whether each image was classified correctly while held out, [N], in the order of the features."""
    folds: int

    @property
    def accuracy(self) -> float:
        """Fraction of images classified correctly, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy, over images.

        Counts one more image as correct and one more as wrong, in the manner of Agresti & Coull (1998): a perfect probe
        of few images is not certain.
        """
        n = len(self.correct) + 2
        share = (int(self.correct.sum()) + 1) / n
        return math.sqrt(share * (1 - share) / n)


def probe_accuracy(features: NDArray[Any], labels: NDArray[np.int64], folds: int = 10, seed: int = 0) -> LinearProbe:
    """Cross-validates a linear classifier on frozen features: ridge regression on one-hot targets.

    As good as logistic regression on frozen features, and many times faster: one eigendecomposition yields the exact
    predictions on every held-out fold for all RIDGE_PENALTIES. Each fold uses the penalty that is best on the other
    folds. The features are first scaled to unit variance.

    Args:
        features: [N, D], finite.
        labels: [N], integers of any values.
        folds: number of stratified folds, at least 2; reduced to the size of the largest class.
        seed: determines the folds.

    Raises:
        ValueError: If the shapes of features and labels do not match, all features or all labels are equal, or no class
            has two images.
    """
    x = _check_features(features, labels)
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}: one to fit and one to evaluate")
    classes, targets = np.unique(labels, return_inverse=True)
    largest = int(np.bincount(targets).max())
    if largest < 2:
        raise ValueError(
            "cross-validation needs a class with at least 2 images, but every class has one: give more images"
        )
    folds = min(folds, largest)
    held_out = [stratified_folds(targets, folds, seed) == fold for fold in range(folds)]
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation > 1e-12, deviation, 1.0)
    vectors, squares = _left_vectors(x)
    one_hot = np.eye(len(classes))[targets]
    class_means = one_hot.mean(axis=0)
    centred = one_hot - class_means
    hits = np.zeros((len(RIDGE_PENALTIES), len(x)), dtype=bool)
    errors = np.zeros((len(RIDGE_PENALTIES), len(x)))
    for row, penalty in enumerate(RIDGE_PENALTIES * len(x)):
        shrunk = vectors * (squares / (squares + penalty))
        residuals = centred - shrunk @ (vectors.T @ centred)
        for held in held_out:
            # Held-out residuals of a linear smoother S with an intercept: (I - S_ff)^-1 (y - S y)_f.
            smoother = shrunk[held] @ vectors[held].T + 1 / len(x)
            held_residuals = np.linalg.solve(np.eye(len(smoother)) - smoother, residuals[held])
            hits[row, held] = (one_hot[held] - held_residuals).argmax(axis=1) == targets[held]
            errors[row, held] = np.square(held_residuals).sum(axis=1)
    correct = np.zeros(len(x), dtype=bool)
    for held in held_out:
        # By squared error: on small data the number of correct predictions is too coarse to choose a penalty.
        correct[held] = hits[errors[:, ~held].sum(axis=1).argmin(), held]
    return LinearProbe(correct, folds)


def paired_difference(one: LinearProbe, other: LinearProbe, share: float = 0.0) -> tuple[float, float]:
    """Mean paired difference of two probes on the same images, and its standard error.

    Pairing removes the images that both classify correctly or both wrongly. For the error each probe is credited with
    one more image that only it classifies correctly; otherwise a handful of images that agree would look certain.

    Args:
        one: a probe.
        other: another probe of the same images.
        share: fraction of the other's errors that is subtracted from the difference, which is then positive only where
            `one` removes more of them.

    Returns:
        The mean accuracy difference `one` - `other`, and its standard error.

    Raises:
        ValueError: If the probes have different numbers of images.
    """
    if len(one.correct) != len(other.correct):
        raise ValueError(
            f"paired probes must be of the same images, got {len(one.correct)} and {len(other.correct)} images"
        )
    values = one.correct.astype(float) - other.correct - share * ~other.correct
    more = np.append(values, [1 - share, -1])
    return float(values.mean()), float(more.std() / math.sqrt(len(more)))


def logme(features: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """LogME: largest log evidence per image of a Bayesian linear regression from features to one-hot labels.

    Higher is better; only scores of the same images are comparable. Weights ~ N(0, 1/alpha), noise ~ N(0, 1/beta); the
    evidence is maximised over both for each class and averaged over classes. You et al. 2021, "LogME: Practical
    Assessment of Pre-trained Models for Transfer Learning", arXiv:2102.11005.

    Args:
        features: [N, D], finite.
        labels: [N], integers of any values.

    Raises:
        ValueError: If the shapes of features and labels do not match, or all features or all labels are equal.
    """
    x = _check_features(features, labels)
    n = len(x)
    vectors, squares = _left_vectors(x)
    one_hot = np.eye(len(np.unique(labels)))[np.unique(labels, return_inverse=True)[1]]
    power = np.square(vectors.T @ one_hot)  # [K, C]: squared projection of each class on each direction of the features
    residual_power = np.maximum(np.square(one_hot).sum(axis=0) - power.sum(axis=0), 0.0)
    squares = squares[:, None]
    low, high = 1e-10 * float(squares.max()), 1e10 * float(squares.max())
    ratio = np.full(one_hot.shape[1], float(squares.mean()))  # alpha / beta, on which alone the fixed point depends
    for _ in range(1000):
        effective = (squares / (squares + ratio)).sum(axis=0)  # MacKay's number of well-determined weights
        weights = (squares * power / np.square(squares + ratio)).sum(axis=0)
        residuals = residual_power + (np.square(ratio) * power / np.square(squares + ratio)).sum(axis=0)
        updated = np.clip(effective * residuals / np.maximum(weights * (n - effective), 1e-300), low, high)
        converged = np.allclose(updated, ratio, rtol=1e-6, atol=0)
        ratio = updated
        if converged:
            break
    # Given alpha / beta, the best beta is n over the unexplained sum of squares.
    unexplained = np.maximum(residual_power + (power * ratio / (squares + ratio)).sum(axis=0), 1e-300)
    volume = np.log1p(squares / ratio).sum(axis=0)
    evidence = -0.5 * (np.log(2 * math.pi * unexplained / n) + 1 + volume / n)
    return float(evidence.mean())


def _check_features(features: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
    if features.ndim != 2 or labels.shape != (len(features),):
        raise ValueError(f"features must be [N, D] and labels [N], got shapes {features.shape} and {labels.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, but some are not: check that the weights fit the network")
    if not len(labels) or (labels == labels[0]).all():
        raise ValueError("labels must contain at least 2 classes")
    if (features == features[0]).all():
        raise ValueError(
            "features must differ between images, but all are the same: use another backbone or other weights"
        )
    return features.astype(np.float64)


def _left_vectors(x: Floats) -> tuple[Floats, Floats]:
    """Left singular vectors [N, K] and squared singular values [K], from the smaller of the two Gram matrices."""
    n, d = x.shape
    squares, vectors = np.linalg.eigh(x @ x.T if n <= d else x.T @ x)
    nonzero = squares > max(n, d) * np.finfo(np.float64).eps * max(float(squares[-1]), 1e-300)
    squares, vectors = squares[nonzero], vectors[:, nonzero]
    return (vectors if n <= d else x @ vectors / np.sqrt(squares)), squares


def stratified_folds(targets: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold index of each image. Images are dealt out class by class, so each fold gets its share of each class."""
    generator = np.random.default_rng(derive_seed(seed, "folds"))
    order = generator.permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    fold[order] = np.arange(len(targets)) % folds
    return fold
