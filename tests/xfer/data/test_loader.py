"""Batches: the right pixels and labels, in the requested order."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from xfer.data.loader import iter_batches, prefetch, shuffle_indices, to_device


@pytest.mark.parametrize("batch_size", [1, 5, 7, 36, 100])
def test_batches_hold_the_requested_images_in_order(pack, batch_size):
    indices = np.random.default_rng(0).permutation(len(pack.labels))
    batches = list(iter_batches(pack, indices, batch_size))
    assert [len(labels) for _, labels in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches) == -(-len(indices) // batch_size)
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.uint8
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pack.images[indices])
    assert np.array_equal(torch.cat([labels for _, labels in batches]).numpy(), pack.labels[indices])


def test_an_index_may_occur_twice(pack):
    ((images, labels),) = iter_batches(pack, np.array([7, 2, 7]), 8)
    assert torch.equal(images[0], images[2])
    assert labels.tolist() == [pack.labels[7], pack.labels[2], pack.labels[7]]


def test_writing_to_a_batch_does_not_change_the_pack(pack):
    before = pack.images[:4].copy()
    ((images, labels),) = iter_batches(pack, np.arange(4), 4)
    images.zero_()
    labels.fill_(9)
    assert np.array_equal(pack.images[:4], before)
    assert 9 not in pack.labels


def test_shuffling_depends_on_the_seed_and_keeps_all_indices():
    indices = np.arange(100, 140)
    assert np.array_equal(shuffle_indices(indices, 8, 1), shuffle_indices(indices, 8, 1))
    assert not np.array_equal(shuffle_indices(indices, 8, 1), shuffle_indices(indices, 8, 2))
    assert sorted(shuffle_indices(indices, 8, 1)) == list(indices)


def test_no_batch_holds_a_single_image_and_each_seed_leaves_out_another():
    indices = np.arange(33)
    orders = [shuffle_indices(indices, 8, seed) for seed in range(10)]
    assert all(len(order) == 32 == len(set(order)) for order in orders)
    assert len({(set(indices) - set(order)).pop() for order in orders}) > 3
    assert list(shuffle_indices(np.array([4]), 8, 0)) == [4], "the only image is kept"


# Prefetching for a GPU


def count_reads(batches, reads):
    for batch in batches:
        reads.append(1)
        yield batch


def test_one_batch_is_prefetched_and_never_more(pack):
    reads = []
    indices = np.arange(30)
    expected = list(iter_batches(pack, indices, 5))
    for number, (images, labels) in enumerate(prefetch(count_reads(iter_batches(pack, indices, 5), reads))):
        assert number < len(reads) + 1
        assert len(reads) <= min(number + 2, 6)
        assert torch.equal(images, expected[number][0])
        assert torch.equal(labels, expected[number][1])
    assert number == 5
    assert list(prefetch(iter(()))) == []


def test_the_next_batch_is_read_while_the_current_one_is_used(pack):
    second = threading.Event()

    def batches():
        yield 1
        second.set()
        yield 2

    for batch in prefetch(batches()):
        assert batch == 2 or second.wait(60), "the next batch is not read"


def test_an_error_while_prefetching_is_raised_in_place_of_its_batch():
    def failing():
        yield 1
        raise OSError("the disk is gone")

    batches = prefetch(failing())
    assert next(batches) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_closing_early_leaves_no_thread_running(pack):
    before = threading.active_count()
    reads = []
    batches = prefetch(count_reads(iter_batches(pack, np.arange(30), 5), reads))
    next(batches)
    batches.close()
    assert threading.active_count() == before
    assert len(reads) <= 2


def test_for_a_gpu_batches_are_pinned_and_copied_without_waiting_in_order(pack, monkeypatch):
    calls = []

    class RecordingTensor(torch.Tensor):
        def pin_memory(self):
            calls.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            calls.append((device.type, non_blocking))
            return self

    batches = [
        tuple(tensor.as_subclass(RecordingTensor) for tensor in batch) for batch in iter_batches(pack, np.arange(10), 5)
    ]
    cuda = torch.device("cuda")
    on_gpu = list(to_device(iter(batches), cuda, copy_to_gpu=True))
    assert calls.count("pinned") == calls.count(("cuda", True)) == 4
    assert all(torch.equal(one[0], other[0]) for one, other in zip(batches, on_gpu, strict=True))
    calls.clear()
    list(to_device(iter(batches), cuda, copy_to_gpu=False))
    assert calls == ["pinned"] * 4


def test_for_other_devices_batches_are_unchanged_and_no_thread_is_started(pack, monkeypatch):
    monkeypatch.setattr("xfer.data.loader.prefetch", None)
    plain = list(iter_batches(pack, np.arange(10), 5))
    for one, other in zip(
        plain, to_device(iter_batches(pack, np.arange(10), 5), torch.device("cpu"), copy_to_gpu=True), strict=True
    ):
        assert torch.equal(one[0], other[0])
