"""Batches: the right pixels under the right labels, in the order asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xfer.data.loader import batches, shuffled


@pytest.mark.parametrize("batch_size", [1, 5, 7, 36, 100])
def test_batches_hold_what_was_asked_for_in_that_order(pack, batch_size):
    places = np.random.default_rng(0).permutation(len(pack.labels))
    found = list(batches(pack, places, batch_size))
    assert [len(labels) for _, labels in found[:-1]] == [batch_size] * (len(found) - 1)
    assert len(found) == -(-len(places) // batch_size)
    images = torch.cat([images for images, _ in found])
    assert images.dtype == torch.uint8
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pack.images[places])
    assert np.array_equal(torch.cat([labels for _, labels in found]).numpy(), pack.labels[places])


def test_a_place_may_be_asked_for_twice(pack):
    ((images, labels),) = batches(pack, np.array([7, 2, 7]), 8)
    assert torch.equal(images[0], images[2])
    assert labels.tolist() == [pack.labels[7], pack.labels[2], pack.labels[7]]


def test_a_batch_may_be_written_to_without_harm_to_the_pack(pack):
    before = pack.images[:4].copy()
    ((images, labels),) = batches(pack, np.arange(4), 4)
    images.zero_()
    labels.fill_(9)
    assert np.array_equal(pack.images[:4], before)
    assert 9 not in pack.labels


def test_shuffling_follows_from_the_seed_and_loses_nothing():
    places = np.arange(100, 140)
    assert np.array_equal(shuffled(places, 8, 1), shuffled(places, 8, 1))
    assert not np.array_equal(shuffled(places, 8, 1), shuffled(places, 8, 2))
    assert sorted(shuffled(places, 8, 1)) == list(places)


def test_no_batch_holds_a_single_image_and_each_time_another_is_left_out():
    places = np.arange(33)
    orders = [shuffled(places, 8, seed) for seed in range(10)]
    assert all(len(order) == 32 == len(set(order)) for order in orders)
    assert len({(set(places) - set(order)).pop() for order in orders}) > 3
    assert list(shuffled(np.array([4]), 8, 0)) == [4], "a lone image is all there is"
