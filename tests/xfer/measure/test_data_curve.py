"""Accuracies of a logistic probe at growing numbers of training images."""

from __future__ import annotations

import numpy as np
import pytest

from xfer.measure import data_curve
from xfer.measure.data_curve import DRAWS, accuracy_by_images
from xfer.measure.logistic_probe import choose_penalty, logistic_probe_classes


def blobs(per_class, seed, classes=3):
    """Features of overlapping classes in 6 dimensions, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centres = 1.5 * np.eye(6)[:classes]
    return (centres[labels] + rng.normal(size=(len(labels), 6))).astype(np.float32), labels.astype(np.int64)


def test_accuracy_grows_with_the_number_of_images_up_to_that_of_all():
    known, labels = blobs(40, 0)
    queries, truth = blobs(100, 1)
    points = accuracy_by_images(known, labels, queries, truth, seed=0)
    assert [point["images_per_class"] for point in points] == [2, 4, 8, 16, 32, 40]
    assert [point["train_images"] for point in points] == [6, 12, 24, 48, 96, 120]
    assert [len(point["correct"]) for point in points] == [*[DRAWS] * 5, 1]
    assert {point["images"] for point in points} == {300}
    assert np.mean(points[0]["correct"]) < np.mean(points[2]["correct"]) < points[-1]["correct"][0]
    predicted = logistic_probe_classes(known, labels, queries, choose_penalty(known, labels, seed=0))
    assert points[-1]["correct"] == [int((predicted == truth).sum())]


def test_a_rare_class_gives_all_of_its_images():
    known, labels = blobs(12, 0)
    rare = np.concatenate([np.arange(24), [24, 25, 26]])
    points = accuracy_by_images(known[rare], labels[rare], known, labels, seed=0)
    assert [point["train_images"] for point in points] == [6, 11, 19, 27]


def test_draws_follow_from_the_seed():
    known, labels = blobs(10, 0)
    queries, truth = blobs(50, 1)
    first, again, other = (accuracy_by_images(known, labels, queries, truth, seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("per_class", [1, 2, 4])
def test_too_few_images_per_class_give_no_points(per_class):
    known, labels = blobs(per_class, 0)
    assert accuracy_by_images(known, labels, known, labels, seed=0) == []


def test_numbers_that_would_take_long_are_left_out(monkeypatch):
    monkeypatch.setattr(data_curve, "MAX_FITTED", 3 * 3 * 16)
    known, labels = blobs(40, 0)
    points = accuracy_by_images(known, labels, known, labels, seed=0)
    assert [point["images_per_class"] for point in points] == [2, 4, 8, 16]
