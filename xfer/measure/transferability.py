"""How well frozen features serve a task, before anything of the network is trained: LogME and a linear probe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfer.seeding import derive_seed

RIDGE_PENALTIES = 10.0 ** np.arange(-3, 3.01, 0.5)
"""Ridge penalties that are tried, in units of the features' mean variance."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """How a linear classifier on frozen features did on images that it had not seen."""

    correct: NDArray[np.bool_]
    """[N], in the order of the features: whether each image was named rightly while it was held out."""
    folds: int

    @property
    def accuracy(self) -> float:
        """The share of images named rightly, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over images.

        Counted as if one more image had been right and one wrong, in the manner of Agresti & Coull (1998): a perfect
        probe of few images is not certain.
        """
        n = len(self.correct) + 2
        share = (int(self.correct.sum()) + 1) / n
        return math.sqrt(share * (1 - share) / n)


def probe_accuracy(features: NDArray[Any], labels: NDArray[np.int64], folds: int = 10, seed: int = 0) -> LinearProbe:
    """Cross-validate a linear classifier on frozen features: ridge regression on one-hot targets.

    On frozen features as good as logistic regression, and many times faster: one eigendecomposition gives the answers
    on every fold that was held out, exactly, for all PENALTIES. Each fold takes the penalty that did best on the
    others. The features are scaled to unit variance first.

    Args:
        features: [N, D], finite.
        labels: [N], integers of any values.
        folds: how many parts the images are divided into, stratified; fewer where no class has that many images.
        seed: decides the division.

    Raises:
        ValueError: features and labels do not belong together, there is nothing in either to tell apart, or no class
            has two images.
    """
    x = _checked(features, labels)
    if folds < 2:
        raise ValueError(f"folds is {folds}; at least 2 are needed, one to learn from and one to be asked about")
    classes, targets = np.unique(labels, return_inverse=True)
    largest = int(np.bincount(targets).max())
    if largest < 2:
        raise ValueError("no class has 2 images: there is nothing to learn from while one of them is held out")
    folds = min(folds, largest)
    held_out = [_stratified(targets, folds, seed) == fold for fold in range(folds)]
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    left, squares = _left_vectors(x)
    wanted = np.eye(len(classes))[targets]
    shares = wanted.mean(axis=0)
    centred = wanted - shares
    hits = np.zeros((len(RIDGE_PENALTIES), len(x)), dtype=bool)
    errors = np.zeros((len(RIDGE_PENALTIES), len(x)))
    for row, penalty in enumerate(RIDGE_PENALTIES * len(x)):
        shrunk = left * (squares / (squares + penalty))
        residuals = centred - shrunk @ (left.T @ centred)
        for held in held_out:
            # What a linear smoother S with an intercept misses of what it did not see: (I - S_ff)^-1 (y - S y)_f.
            smoother = shrunk[held] @ left[held].T + 1 / len(x)
            missed = np.linalg.solve(np.eye(len(smoother)) - smoother, residuals[held])
            hits[row, held] = (wanted[held] - missed).argmax(axis=1) == targets[held]
            errors[row, held] = np.square(missed).sum(axis=1)
    correct = np.zeros(len(x), dtype=bool)
    for held in held_out:
        # By the squared error: right answers are too few, on small data, to choose a penalty by.
        correct[held] = hits[errors[:, ~held].sum(axis=1).argmin(), held]
    return LinearProbe(correct, folds)


def paired_difference(one: LinearProbe, other: LinearProbe, share: float = 0.0) -> tuple[float, float]:
    """By how much `one` is better than `other` on the same images, and the standard error of that.

    Paired: what both name rightly or both wrongly does not blur which is better. The error is counted as if each had
    been alone in the right once more, or a handful of images that agree would look certain.

    Args:
        one: a probe.
        other: another, of the same images.
        share: what is asked of `one`: that share of the other's errors is taken off the difference, which is then
            positive only where `one` removes more of them.

    Raises:
        ValueError: the probes are of different numbers of images.
    """
    if len(one.correct) != len(other.correct):
        raise ValueError(f"probes of {len(one.correct)} and {len(other.correct)} images cannot be compared in pairs")
    values = one.correct.astype(float) - other.correct - share * ~other.correct
    more = np.append(values, [1 - share, -1])
    return float(values.mean()), float(more.std() / math.sqrt(len(more)))


def logme(features: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """LogME: the largest log evidence, per image, of a Bayesian linear regression from features to one-hot labels.

    Higher is better; only scores of the same images can be compared. Weights ~ N(0, 1/alpha), noise ~ N(0, 1/beta); the
    evidence is maximised over both for each class and averaged over classes (You et al. 2021, "LogME: Practical
    Assessment of Pre-trained Models for Transfer Learning").

    Args:
        features: [N, D], finite.
        labels: [N], integers of any values.

    Raises:
        ValueError: features and labels do not belong together, or there is nothing in either to tell apart.
    """
    x = _checked(features, labels)
    n = len(x)
    left, squares = _left_vectors(x)
    wanted = np.eye(len(np.unique(labels)))[np.unique(labels, return_inverse=True)[1]]
    power = np.square(left.T @ wanted)  # [K, C]: how much of each class lies along each direction of the features
    rest = np.maximum(np.square(wanted).sum(axis=0) - power.sum(axis=0), 0.0)
    squares = squares[:, None]
    low, high = 1e-10 * float(squares.max()), 1e10 * float(squares.max())
    ratio = np.full(wanted.shape[1], float(squares.mean()))  # alpha / beta: the fixed point depends on nothing else
    for _ in range(1000):
        effective = (squares / (squares + ratio)).sum(axis=0)  # MacKay's number of well-determined weights
        weights = (squares * power / np.square(squares + ratio)).sum(axis=0)
        residuals = rest + (np.square(ratio) * power / np.square(squares + ratio)).sum(axis=0)
        found = np.clip(effective * residuals / np.maximum(weights * (n - effective), 1e-300), low, high)
        settled = np.allclose(found, ratio, rtol=1e-6, atol=0)
        ratio = found
        if settled:
            break
    # With alpha / beta given, the best beta is known: n over what the prior leaves unexplained.
    unexplained = np.maximum(rest + (power * ratio / (squares + ratio)).sum(axis=0), 1e-300)
    volume = np.log1p(squares / ratio).sum(axis=0)
    evidence = -0.5 * (np.log(2 * math.pi * unexplained / n) + 1 + volume / n)
    return float(evidence.mean())


def _checked(features: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
    if features.ndim != 2 or labels.shape != (len(features),):
        raise ValueError(f"features [N, D] and labels [N] are wanted; these are {features.shape} and {labels.shape}")
    if not np.isfinite(features).all():
        raise ValueError("some features are not finite: do the weights fit the network?")
    if not len(labels) or (labels == labels[0]).all():
        raise ValueError("fewer than 2 classes: there is nothing to tell apart")
    if (features == features[0]).all():
        raise ValueError("the features of all images are the same: this network tells nothing apart")
    return features.astype(np.float64)


def _left_vectors(x: Floats) -> tuple[Floats, Floats]:
    """Left singular vectors [N, K] and squared singular values [K], by way of the smaller of the two Gram matrices."""
    n, d = x.shape
    squares, vectors = np.linalg.eigh(x @ x.T if n <= d else x.T @ x)
    kept = squares > max(n, d) * np.finfo(np.float64).eps * max(float(squares[-1]), 1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if n <= d else x @ vectors / np.sqrt(squares)), squares


def _stratified(targets: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each image: classes are dealt out one after the other, so every fold gets its share of each."""
    chance = np.random.default_rng(derive_seed(seed, "folds"))
    order = chance.permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    part = np.empty(len(targets), dtype=np.int64)
    part[order] = np.arange(len(targets)) % folds
    return part
