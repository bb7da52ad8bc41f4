"""Accuracy in each class, from the confusion matrices of evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from xfer.records import Evaluation


@dataclass(frozen=True)
class ClassAccuracy:
    """How well the images of one class are recognised."""

    label: int
    """Index of the class."""
    accuracy: float
    """Fraction of its images that are classified correctly, in [0, 1], over all evaluations."""
    images: int
    """Number of its images in one evaluation; with different numbers, the largest."""


def class_accuracies(evaluations: Sequence[Evaluation]) -> list[ClassAccuracy]:
    """Return the accuracy in each class that has images, the worst class first.

    Of classes with equal accuracies, the one with more images comes first.

    Args:
        evaluations: of one recipe on several seeds. Those without a confusion matrix are ignored.

    >>> evaluation = Evaluation("val", 0.5, (0, 1, 2), (True, True, False), confusion=((0, 0, 2), (1, 0, 1)))
    >>> class_accuracies([evaluation])[0]
    ClassAccuracy(label=1, accuracy=0.0, images=1)
    """
    correct: Counter[int] = Counter()
    total: Counter[int] = Counter()
    largest: dict[int, int] = {}
    for evaluation in evaluations:
        images: Counter[int] = Counter()
        for true, predicted, count in evaluation.confusion:
            images[true] += count
            correct[true] += count * (true == predicted)
        total += images
        largest |= {label: max(count, largest.get(label, 0)) for label, count in images.items()}
    accuracies = [ClassAccuracy(label, correct[label] / total[label], largest[label]) for label in total]
    return sorted(accuracies, key=lambda found: (found.accuracy, -found.images, found.label))
