"""Data curve: the accuracy of a logistic probe on frozen features at growing numbers of training images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfer.measure.logistic_probe import choose_penalty, logistic_probe_classes

DRAWS = 5
"""Number of random draws of training images at each number per class; all images are drawn once."""
SMALLEST, FACTOR = 2, 2
"""Smallest number of training images per class, and the factor between two numbers."""
MAX_FITTED = 60_000
"""Maximum number of training images times classes of one fit. Larger numbers of images are left out, which bounds the
time to seconds."""


def accuracy_by_images(
    known: NDArray[Any], labels: NDArray[np.int64], queries: NDArray[Any], truth: NDArray[Any], seed: int
) -> list[dict[str, Any]]:
    """Fit probes on nested numbers of training images per class, and evaluate each on the same images.

    The penalty of each number of images is chosen by cross-validation on the first draw. A class with fewer images than
    the number gives all that it has.

    Args:
        known: features of the training images, [N, D], finite.
        labels: their classes, [N].
        queries: features of the evaluated images, [M, D].
        truth: their classes, [M].
        seed: determines the draws.

    Returns:
        One point for each number per class, smallest first: `images_per_class`, the mean number of training images
        (`train_images`), the number of evaluated images (`images`), and that of correct ones in each draw (`correct`).
        The last point has all training images. Empty if there are fewer than three points.
    """
    sizes = np.bincount(labels)
    largest, classes = int(sizes.max()), int((sizes > 0).sum())
    numbers = [SMALLEST * FACTOR**i for i in range(30) if SMALLEST * FACTOR**i < largest]
    numbers = [number for number in (*numbers, largest) if int(np.minimum(sizes, number).sum()) * classes <= MAX_FITTED]
    if len(numbers) < 3:
        return []
    rng = np.random.default_rng(seed)
    points = []
    for number in numbers:
        draws = 1 if number == largest else DRAWS
        chosen = [_draw(labels, number, rng) for _ in range(draws)]
        penalty = choose_penalty(known[chosen[0]], labels[chosen[0]], seed=seed)
        predicted = [logistic_probe_classes(known[rows], labels[rows], queries, penalty) for rows in chosen]
        points.append(
            {
                "images_per_class": number,
                "train_images": len(chosen[0]),
                "images": len(truth),
                "correct": [int((answers == truth).sum()) for answers in predicted],
            }
        )
    return points


def _draw(labels: NDArray[np.int64], number: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw at most `number` images of each class, and return their sorted positions."""
    order = rng.permutation(len(labels))
    of_class = [order[labels[order] == label][:number] for label in np.unique(labels)]
    return np.sort(np.concatenate(of_class))
