"""Likely label errors by confident learning, from predictions on images that a network was not trained on.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
https://arxiv.org/abs/1911.00068. An image is suspicious if another class is at least as probable for it as that class
is, on average, for the images with its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfer.measure.held_out import HeldOut


@dataclass(frozen=True, eq=False)
class MeanPredictions:
    """Probabilities for M images, each averaged over the runs that were not trained on it."""

    images: NDArray[np.int64]
    """[M], ascending indices in the pack."""
    labels: NDArray[np.int64]
    """[M]."""
    probabilities: NDArray[np.float32]
    """[M, C]; 0 for classes whose probability was not stored, which are not among the most likely ones."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[M], the most likely classes."""
        predicted: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predicted


@dataclass(frozen=True)
class LabelError:
    """An image that is likely to have the wrong label."""

    image: int
    """Index in the pack."""
    label: int
    suggested: int
    """The class that is more likely."""
    label_probability: float
    suggested_probability: float


def mean_predictions(parts: Sequence[HeldOut], classes: int) -> MeanPredictions:
    """Average the probabilities for each image.

    Args:
        parts: predictions of several runs, each on images that it was not trained on; at least one.
        classes: number of classes.
    """
    images, first, rows = np.unique(
        np.concatenate([part.images for part in parts]), return_index=True, return_inverse=True
    )
    labels = np.concatenate([part.labels for part in parts])[first]
    sums = np.zeros((len(images), classes), dtype=np.float32)
    start = 0
    for part in parts:
        own = rows[start : start + len(part.images)]
        start += len(part.images)
        dense = np.zeros((len(own), classes), dtype=np.float32)
        np.put_along_axis(dense, part.classes, part.probabilities.astype(np.float32), axis=1)
        dense[np.arange(len(own)), part.labels] = part.label_probability
        sums[own] += dense
    sums /= np.bincount(rows, minlength=len(images))[:, None]
    return MeanPredictions(images, labels, sums)


def find_label_errors(predictions: MeanPredictions) -> list[LabelError]:
    """Return the images that are likely to have the wrong label, the most likely ones first.

    They lie off the diagonal of the confident joint, and the network prefers another class than their label. They are
    ordered by the difference between the probabilities of their label and of the suggested class.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    with np.errstate(invalid="ignore"):  # of classes without images
        thresholds = np.bincount(labels, weights=own, minlength=len(counts)) / counts
    thresholds[counts == 0] = np.inf
    # In single precision, a class whose images all have one probability would miss its own mean.
    confident = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    is_error = (confident.max(axis=1) >= 0) & (suggested != labels) & (predictions.predicted != labels)
    margins = own - probabilities[np.arange(len(labels)), suggested]
    found = sorted(np.flatnonzero(is_error).tolist(), key=lambda row: (margins[row], row))
    return [
        LabelError(
            int(predictions.images[row]),
            int(labels[row]),
            int(suggested[row]),
            float(own[row]),
            float(probabilities[row, suggested[row]]),
        )
        for row in found
    ]
