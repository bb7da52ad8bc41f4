"""Confident learning finds planted label errors, and agrees with a case computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sweeps.reporting.label_errors import find_label_errors, mean_predictions
from xfer.measure.held_out import HeldOut, predict_held_out


def part(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], images: NDArray[np.int64] | None = None
) -> HeldOut:
    images = np.arange(len(labels)) if images is None else images
    return predict_held_out(np.log(probabilities), labels, images, None)


def test_a_case_computed_by_hand() -> None:
    # Mean probability of the own class: 0.6 for class 0 (0.9, 0.7, 0.2) and 0.75 for class 1 (0.7, 0.8).
    own = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7], [0.2, 0.8]])
    (error,) = find_label_errors(mean_predictions([part(own, np.array([0, 0, 0, 1, 1]))], classes=2))
    assert (error.image, error.label, error.suggested) == (2, 0, 1)
    assert (error.label_probability, error.suggested_probability) == pytest.approx((0.2, 0.8))


def test_another_class_below_its_mean_is_not_suggested() -> None:
    own = np.array([[0.9, 0.1], [0.45, 0.55], [0.05, 0.95], [0.1, 0.9]])
    assert find_label_errors(mean_predictions([part(own, np.array([0, 0, 1, 1]))], classes=2)) == []


def test_planted_label_errors_are_found_and_come_first() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 8, 800)
    logits = random.normal(size=(800, 8))
    logits[np.arange(800), truth] += 6
    planted = random.permutation(800)[:20]
    labels = truth.copy()
    labels[planted] = (truth[planted] + random.integers(1, 8, 20)) % 8
    errors = find_label_errors(mean_predictions([predict_held_out(logits, labels, np.arange(800), None)], classes=8))
    assert len(errors) < 60
    found = {error.image: error.suggested for error in errors}
    assert sum(found.get(image) == truth[image] for image in planted.tolist()) >= 15
    first = {error.image for error in errors[:10]}
    assert len(first & set(planted.tolist())) >= 9


def test_probabilities_are_averaged_over_the_runs_that_held_an_image_out() -> None:
    first = part(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]), np.array([4, 9]))
    second = part(np.array([[0.2, 0.8]]), np.array([1]), np.array([9]))
    mean = mean_predictions([first, second], classes=2)
    assert mean.images.tolist() == [4, 9]
    assert mean.labels.tolist() == [0, 1]
    np.testing.assert_allclose(mean.probabilities, [[0.9, 0.1], [0.4, 0.6]], rtol=1e-6)
    assert mean.predicted.tolist() == [0, 1]


def test_a_class_without_images_is_never_suggested() -> None:
    own = np.array([[0.3, 0.1, 0.6], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    assert find_label_errors(mean_predictions([part(own, np.array([0, 0, 1]))], classes=3)) == []
