"""Batches: the right pixels under the right labels, in the order asked for."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from xfer.data.loader import iter_batches, prefetch, shuffle_indices, to_device


@pytest.mark.parametrize("batch_size", [1, 5, 7, 36, 100])
def test_batches_hold_what_was_asked_for_in_that_order(pack, batch_size):
    places = np.random.default_rng(0).permutation(len(pack.labels))
    found = list(iter_batches(pack, places, batch_size))
    assert [len(labels) for _, labels in found[:-1]] == [batch_size] * (len(found) - 1)
    assert len(found) == -(-len(places) // batch_size)
    images = torch.cat([images for images, _ in found])
    assert images.dtype == torch.uint8
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pack.images[places])
    assert np.array_equal(torch.cat([labels for _, labels in found]).numpy(), pack.labels[places])


def test_a_place_may_be_asked_for_twice(pack):
    ((images, labels),) = iter_batches(pack, np.array([7, 2, 7]), 8)
    assert torch.equal(images[0], images[2])
    assert labels.tolist() == [pack.labels[7], pack.labels[2], pack.labels[7]]


def test_a_batch_may_be_written_to_without_harm_to_the_pack(pack):
    before = pack.images[:4].copy()
    ((images, labels),) = iter_batches(pack, np.arange(4), 4)
    images.zero_()
    labels.fill_(9)
    assert np.array_equal(pack.images[:4], before)
    assert 9 not in pack.labels


def test_shuffling_follows_from_the_seed_and_loses_nothing():
    places = np.arange(100, 140)
    assert np.array_equal(shuffle_indices(places, 8, 1), shuffle_indices(places, 8, 1))
    assert not np.array_equal(shuffle_indices(places, 8, 1), shuffle_indices(places, 8, 2))
    assert sorted(shuffle_indices(places, 8, 1)) == list(places)


def test_no_batch_holds_a_single_image_and_each_time_another_is_left_out():
    places = np.arange(33)
    orders = [shuffle_indices(places, 8, seed) for seed in range(10)]
    assert all(len(order) == 32 == len(set(order)) for order in orders)
    assert len({(set(places) - set(order)).pop() for order in orders}) > 3
    assert list(shuffle_indices(np.array([4]), 8, 0)) == [4], "a lone image is all there is"


# Read ahead, for a GPU


def counted(batches, read):
    for batch in batches:
        read.append(1)
        yield batch


def test_one_batch_is_read_ahead_and_never_more(pack):
    read = []
    places = np.arange(30)
    expected = list(iter_batches(pack, places, 5))
    for number, (images, labels) in enumerate(prefetch(counted(iter_batches(pack, places, 5), read))):
        assert number < len(read) + 1
        assert len(read) <= min(number + 2, 6)
        assert torch.equal(images, expected[number][0])
        assert torch.equal(labels, expected[number][1])
    assert number == 5
    assert list(prefetch(iter(()))) == []


def test_the_next_batch_is_read_while_one_is_in_use(pack):
    second = threading.Event()

    def slowly():
        yield 1
        second.set()
        yield 2

    for batch in prefetch(slowly()):
        assert batch == 2 or second.wait(60), "nobody reads on"


def test_an_error_while_reading_ahead_comes_where_its_batch_would_have():
    def torn():
        yield 1
        raise OSError("the disk is gone")

    found = prefetch(torn())
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_leaving_early_leaves_no_thread_behind(pack):
    before = threading.active_count()
    read = []
    found = prefetch(counted(iter_batches(pack, np.arange(30), 5), read))
    next(found)
    found.close()
    assert threading.active_count() == before
    assert len(read) <= 2


def test_for_a_gpu_batches_are_pinned_and_copied_without_waiting_in_their_order(pack, monkeypatch):
    done = []

    class Watched(torch.Tensor):
        def pin_memory(self):
            done.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            done.append((device.type, non_blocking))
            return self

    found = [tuple(each.as_subclass(Watched) for each in batch) for batch in iter_batches(pack, np.arange(10), 5)]
    cuda = torch.device("cuda")
    there = list(to_device(iter(found), cuda, copy_to_gpu=True))
    assert done.count("pinned") == done.count(("cuda", True)) == 4
    assert all(torch.equal(one[0], other[0]) for one, other in zip(found, there, strict=True))
    done.clear()
    list(to_device(iter(found), cuda, copy_to_gpu=False))
    assert done == ["pinned"] * 4


def test_elsewhere_batches_come_as_they_are_and_no_thread_is_started(pack, monkeypatch):
    monkeypatch.setattr("xfer.data.loader.prefetch", None)
    plain = list(iter_batches(pack, np.arange(10), 5))
    for one, other in zip(
        plain, to_device(iter_batches(pack, np.arange(10), 5), torch.device("cpu"), copy_to_gpu=True), strict=True
    ):
        assert torch.equal(one[0], other[0])
