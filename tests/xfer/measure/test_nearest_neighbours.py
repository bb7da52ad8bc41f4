"""Nearest neighbours against a brute-force reference, and cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from xfer.measure.nearest_neighbours import TEMPERATURE, nearest_neighbour_classes


def brute_force(features: NDArray[np.float64], labels: NDArray[np.int64], query: NDArray[np.float64], k: int) -> int:
    """The same vote for one query, image by image."""
    similarity = [
        float(row @ query) / (math.sqrt(float(row @ row)) * math.sqrt(float(query @ query))) for row in features
    ]
    votes: dict[int, float] = {}
    for index in sorted(range(len(features)), key=lambda index: (-similarity[index], index))[:k]:
        votes[int(labels[index])] = votes.get(int(labels[index]), 0.0) + math.exp(similarity[index] / TEMPERATURE)
    return max(sorted(votes), key=lambda label: votes[label])


@pytest.mark.parametrize("k", [1, 5, 20, 60, 1_000])
def test_the_vote_is_that_of_a_brute_force_reference(k: int) -> None:
    rng = np.random.default_rng(0)
    features, labels, queries = rng.normal(size=(60, 8)), rng.integers(0, 4, 60), rng.normal(size=(1_100, 8))
    expected = [brute_force(features, labels, query, k) for query in queries]
    assert nearest_neighbour_classes(features, labels, queries, k).tolist() == expected


def test_length_does_not_matter_only_direction() -> None:
    features, labels = np.array([[100.0, 0.0], [0.0, 0.1]]), np.array([0, 1])
    assert nearest_neighbour_classes(features, labels, np.array([[0.2, 0.3], [3.0, 2.0]]), 1).tolist() == [1, 0]


def test_one_close_neighbour_outvotes_two_distant_ones_of_another_class() -> None:
    """exp(1 / 0.07) is 1.6 million, twice exp(0 / 0.07) is 2."""
    features, labels = np.array([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), np.array([0, 0, 1])
    assert nearest_neighbour_classes(features, labels, np.array([[1.0, 0.0]]), 3).tolist() == [1]


def test_of_equally_similar_images_the_first_is_nearest_and_of_equal_votes_the_lowest_class_wins() -> None:
    features, query = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 1.0]])
    assert nearest_neighbour_classes(features, np.array([2, 1]), query, 1).tolist() == [2]
    assert nearest_neighbour_classes(features, np.array([2, 1]), query, 2).tolist() == [1]


def test_features_of_zeros_are_classified_too() -> None:
    features, labels = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0, 1])
    assert nearest_neighbour_classes(features, labels, np.zeros((1, 2)), 1).tolist() == [0]


@pytest.mark.parametrize(("images", "k"), [(3, 0), (0, 5)])
def test_no_neighbour_is_refused(images: int, k: int) -> None:
    with pytest.raises(ValueError, match="at least one neighbour is needed"):
        nearest_neighbour_classes(np.ones((images, 2)), np.zeros(images, dtype=np.int64), np.ones((1, 2)), k)
