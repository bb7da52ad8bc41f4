"""Shards of a batch on several devices: whole-batch operations have the result of a single device.

The devices are threads here and all-reduce in main memory; test_launcher.py does the same with processes.
"""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from torch import nn

from tests.xfer.thread_group import ThreadAllReduce, run_on_threads
from xfer.distributed.process_group import SINGLE_PROCESS, PeerLostError, Rank
from xfer.distributed.sync_batch_norm import gather_batch, sync_batch_norm

# Shards


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shards_cover_a_batch_and_their_weights_sum_to_one(size):
    for images in range(1, 30):
        shards = [Rank(index, size, SINGLE_PROCESS.sum_in_place).shard_of(images) for index in range(size)]
        counted = [shard for shard in shards if shard.weight]
        assert [index for shard in counted for index in range(images)[shard.indices]] == list(range(images))
        sizes = [shard.indices.stop - shard.indices.start for shard in shards]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert sum(shard.weight for shard in shards) == pytest.approx(1.0)
        assert {shard.shared for shard in shards} == {size > 1 and images >= size}


def test_a_batch_with_fewer_images_than_devices_is_on_all_and_counts_once():
    shards = [Rank(index, 4, SINGLE_PROCESS.sum_in_place).shard_of(3) for index in range(4)]
    assert {(shard.indices.start, shard.indices.stop, shard.shared) for shard in shards} == {(0, 3, False)}
    assert [shard.weight for shard in shards] == [1.0, 0.0, 0.0, 0.0]


# All-reduce


def test_tensors_of_any_shape_and_layout_are_summed_in_one_message():
    def work(rank):
        tensors = [
            torch.full((2, 3), 1.0 + rank.index),
            torch.arange(16.0).view(1, 4, 2, 2).contiguous(memory_format=torch.channels_last) * (1 + rank.index),
            torch.tensor(float(rank.index)),
        ]
        rank.all_reduce_many(tensors)
        return tensors

    all_reduce = ThreadAllReduce(3)
    for matrix, image, scalar in run_on_threads(3, work, all_reduce):
        assert torch.equal(matrix, torch.full((2, 3), 6.0))
        assert torch.equal(image, torch.arange(16.0).view(1, 4, 2, 2) * 6)
        assert scalar == 3.0
    assert all_reduce.messages == 1


def test_a_single_device_sums_nothing():
    tensor = torch.ones(2)
    Rank(0, 1, lambda tensor: tensor.zero_()).all_reduce_many([tensor])
    assert torch.equal(tensor, torch.ones(2))


def test_a_lost_connection_is_a_peer_lost_error():
    def fail(tensor):
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(PeerLostError):
        Rank(0, 2, fail).all_reduce_many([torch.ones(2)])


# Batch norm


def random_batch_norm(kind, channels):
    layer = kind(channels)
    generator = torch.Generator().manual_seed(7)  # threads share torch's own
    with torch.no_grad():
        for tensor in (layer.running_mean, layer.running_var, *layer.parameters()):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return layer


def forward_backward(kind, images, output_weights, rank=SINGLE_PROCESS):
    """Outputs, gradients of images and of parameters, and running statistics, for a device's shard."""
    shard = rank.shard_of(len(images))
    layer = random_batch_norm(kind, images.shape[1])
    inputs = images[shard.indices].clone().requires_grad_()
    with sync_batch_norm(rank, len(images)):
        outputs = layer(inputs)
    (outputs * output_weights[shard.indices]).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    statistics = [layer.running_mean, layer.running_var, layer.num_batches_tracked]
    return outputs.detach(), inputs.grad, gradients, statistics


KINDS = {
    "plain": nn.BatchNorm2d,
    "with an activation": BatchNormAct2d,
    "without parameters": lambda width: nn.BatchNorm2d(width, affine=False),
    "with its own momentum and eps": lambda width: nn.BatchNorm2d(width, momentum=0.3, eps=1e-3),
    "with cumulative averages": lambda width: nn.BatchNorm2d(width, momentum=None),
    "of embeddings": nn.BatchNorm1d,
}


@pytest.mark.parametrize(("size", "images"), [(2, 8), (2, 7), (3, 3), (3, 8)])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_batch_norm_of_shards_equals_that_of_the_whole_batch(kind, size, images):
    generator = torch.Generator().manual_seed(images)
    shape = (images, 5) if kind is nn.BatchNorm1d else (images, 5, 4, 3)
    batch = torch.randn(shape, generator=generator) * 3 + 10  # far from 0, where a variance loses digits
    output_weights = torch.randn(shape, generator=generator)
    outputs, gradient, parameter_gradients, statistics = forward_backward(kind, batch, output_weights)
    shards = run_on_threads(size, lambda rank: forward_backward(kind, batch, output_weights, rank))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([shard[0] for shard in shards]), outputs, **close)
    torch.testing.assert_close(torch.cat([shard[1] for shard in shards]), gradient, **close)
    for index, expected in enumerate(parameter_gradients):
        torch.testing.assert_close(sum(shard[2][index] for shard in shards), expected, rtol=1e-5, atol=1e-4)
    for shard in shards:
        torch.testing.assert_close(shard[3], statistics, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(one, other) for one, other in zip(shard[3], shards[0][3], strict=True)), "bit for bit"


def test_batch_norm_of_bfloat16_returns_bfloat16_and_keeps_float32_statistics():
    batch = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = forward_backward(nn.BatchNorm2d, batch, torch.ones(6, 5, 4, 4))
    shards = run_on_threads(2, lambda rank: forward_backward(nn.BatchNorm2d, batch, torch.ones(6, 5, 4, 4), rank))
    for outputs, gradient, _, statistics in shards:
        assert (outputs.dtype, gradient.dtype, statistics[0].dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        torch.testing.assert_close(statistics, expected[3], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(torch.cat([shard[0] for shard in shards]), expected[0], rtol=1e-2, atol=2e-2)


def fail_on_communication(tensor):
    raise AssertionError("nothing should be exchanged")


def test_a_batch_norm_in_eval_mode_needs_no_communication():
    layer = nn.BatchNorm2d(5).eval()
    images = torch.randn(4, 5, 2, 2)
    with sync_batch_norm(Rank(0, 2, fail_on_communication), 8):
        assert torch.equal(layer(images), nn.BatchNorm2d(5).eval()(images))


def test_weight_standardization_needs_no_communication():
    layer = ScaledStdConv2d(5, 4, 3).train()  # of NFNets; uses torch's batch norm
    images = torch.randn(4, 5, 6, 6)
    expected = layer(images)
    with sync_batch_norm(Rank(0, 2, fail_on_communication), 8):
        assert torch.equal(layer(images), expected)


def test_a_batch_that_is_on_all_devices_needs_no_communication():
    with sync_batch_norm(Rank(1, 4, fail_on_communication), 3):
        assert nn.BatchNorm2d(5)(torch.randn(3, 5, 2, 2)).shape == (3, 5, 2, 2)


# Embeddings


@pytest.mark.parametrize(("size", "images"), [(2, 6), (2, 5), (3, 5)])
def test_gathered_embeddings_and_their_gradients_equal_those_of_the_whole_batch(size, images):
    rows = torch.randn(images, 4, generator=torch.Generator().manual_seed(0))

    def loss(embeddings):
        return (embeddings @ embeddings.T).softmax(dim=1).diagonal().log().sum()

    batch = rows.clone().requires_grad_()
    loss(batch).backward()

    def work(rank):
        shard = rank.shard_of(images)
        own_rows = rows[shard.indices].clone().requires_grad_()
        gathered = gather_batch(own_rows, rank, images)
        (loss(gathered) * shard.weight).backward()
        return gathered.detach(), own_rows.grad

    results = run_on_threads(size, work)
    assert all(torch.equal(gathered, rows) for gathered, _ in results)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), batch.grad)


def test_embeddings_of_a_single_device_are_returned_unchanged():
    rows = torch.randn(3, 4)
    assert gather_batch(rows, SINGLE_PROCESS, 3) is rows
    assert gather_batch(rows, Rank(1, 4, fail_on_communication), 3) is rows
