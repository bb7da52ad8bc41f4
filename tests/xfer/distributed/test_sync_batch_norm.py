"""Slices of a batch on several devices: what is asked of the whole batch is answered as one device would.

The devices are threads here, and add up in main memory: what they compute is what processes do (test_team.py).
"""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from torch import nn

from tests.xfer.thread_group import ThreadAllReduce, run_on_threads
from xfer.distributed.process_group import SINGLE_PROCESS, PeerLostError, Rank
from xfer.distributed.sync_batch_norm import gather_batch, sync_batch_norm

# Slices


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_slices_cover_a_batch_and_their_weights_add_up_to_one(size):
    for images in range(1, 30):
        own = [Rank(rank, size, SINGLE_PROCESS.sum_in_place).shard_of(images) for rank in range(size)]
        counted = [each for each in own if each.weight]
        assert [place for each in counted for place in range(images)[each.place]] == list(range(images))
        sizes = [each.place.stop - each.place.start for each in own]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert sum(each.weight for each in own) == pytest.approx(1.0)
        assert {each.shared for each in own} == {size > 1 and images >= size}


def test_a_batch_with_fewer_images_than_devices_is_everywhere_and_counts_once():
    own = [Rank(rank, 4, SINGLE_PROCESS.sum_in_place).shard_of(3) for rank in range(4)]
    assert {(each.place.start, each.place.stop, each.shared) for each in own} == {(0, 3, False)}
    assert [each.weight for each in own] == [1.0, 0.0, 0.0, 0.0]


# Sums


def test_tensors_of_any_shape_layout_and_kind_are_added_up_in_one_message():
    def work(this_rank):
        given = [
            torch.full((2, 3), 1.0 + this_rank.rank),
            torch.arange(16.0).view(1, 4, 2, 2).contiguous(memory_format=torch.channels_last) * (1 + this_rank.rank),
            torch.tensor(float(this_rank.rank)),
        ]
        this_rank.all_reduce_many(given)
        return given

    add = ThreadAllReduce(3)
    for block, image, scalar in run_on_threads(3, work, add):
        assert torch.equal(block, torch.full((2, 3), 6.0))
        assert torch.equal(image, torch.arange(16.0).view(1, 4, 2, 2) * 6)
        assert scalar == 3.0
    assert add.messages == 1


def test_alone_nothing_is_added():
    tensor = torch.ones(2)
    Rank(0, 1, lambda tensor: tensor.zero_()).all_reduce_many([tensor])
    assert torch.equal(tensor, torch.ones(2))


def test_a_device_that_cannot_reach_the_others_says_so():
    def broken(tensor):
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(PeerLostError):
        Rank(0, 2, broken).all_reduce_many([torch.ones(2)])


# Batch norms


def norm_of(kind, images):
    layer = kind(images.shape[1])
    chance = torch.Generator().manual_seed(7)  # of its own: threads share torch's
    with torch.no_grad():
        for tensor in (layer.running_mean, layer.running_var, *layer.parameters()):
            tensor.uniform_(0.5, 1.5, generator=chance)
    return layer


def passed(kind, images, wanted, this_rank=SINGLE_PROCESS):
    """A step's way forth and back, on a device's slice: outputs, gradients of images, of parameters, statistics."""
    own = this_rank.shard_of(len(images))
    layer = norm_of(kind, images)
    given = images[own.place].clone().requires_grad_()
    with sync_batch_norm(this_rank, len(images)):
        found = layer(given)
    (found * wanted[own.place]).sum().backward()
    parameters = [parameter.grad for parameter in layer.parameters()]
    statistics = [layer.running_mean, layer.running_var, layer.num_batches_tracked]
    return found.detach(), given.grad, parameters, statistics


KINDS = {
    "plain": nn.BatchNorm2d,
    "with an activation": BatchNormAct2d,
    "without parameters": lambda width: nn.BatchNorm2d(width, affine=False),
    "with a momentum of its own": lambda width: nn.BatchNorm2d(width, momentum=0.3, eps=1e-3),
    "with running averages": lambda width: nn.BatchNorm2d(width, momentum=None),
    "of embeddings": nn.BatchNorm1d,
}


@pytest.mark.parametrize(("size", "images"), [(2, 8), (2, 7), (3, 3), (3, 8)])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_batch_norm_in_slices_is_that_of_the_whole_batch(kind, size, images):
    chance = torch.Generator().manual_seed(images)
    shape = (images, 5) if kind is nn.BatchNorm1d else (images, 5, 4, 3)
    given = torch.randn(shape, generator=chance) * 3 + 10  # far from 0: what is left of a variance counts
    wanted = torch.randn(shape, generator=chance)
    outputs, gradient, parameters, statistics = passed(kind, given, wanted)
    found = run_on_threads(size, lambda this_rank: passed(kind, given, wanted, this_rank))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([each[0] for each in found]), outputs, **close)
    torch.testing.assert_close(torch.cat([each[1] for each in found]), gradient, **close)
    for place, whole in enumerate(parameters):
        torch.testing.assert_close(sum(each[2][place] for each in found), whole, rtol=1e-5, atol=1e-4)
    for each in found:
        torch.testing.assert_close(each[3], statistics, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(one, other) for one, other in zip(each[3], found[0][3], strict=True)), "bit for bit"


def test_batch_norm_of_half_precision_gives_half_precision_and_keeps_full_statistics():
    given = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = passed(nn.BatchNorm2d, given, torch.ones(6, 5, 4, 4))
    found = run_on_threads(2, lambda this_rank: passed(nn.BatchNorm2d, given, torch.ones(6, 5, 4, 4), this_rank))
    for each in found:
        assert (each[0].dtype, each[1].dtype, each[3][0].dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        torch.testing.assert_close(each[3], whole[3], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(torch.cat([each[0] for each in found]), whole[0], rtol=1e-2, atol=2e-2)


def never(tensor):
    raise AssertionError("nothing is to be exchanged")


def test_a_batch_norm_that_stands_still_asks_nobody():
    layer = nn.BatchNorm2d(5).eval()
    images = torch.randn(4, 5, 2, 2)
    with sync_batch_norm(Rank(0, 2, never), 8):
        assert torch.equal(layer(images), nn.BatchNorm2d(5).eval()(images))


def test_weights_that_are_standardised_ask_nobody():
    layer = ScaledStdConv2d(5, 4, 3).train()  # as in an NFNet, by torch's batch norm
    images = torch.randn(4, 5, 6, 6)
    expected = layer(images)
    with sync_batch_norm(Rank(0, 2, never), 8):
        assert torch.equal(layer(images), expected)


def test_a_batch_that_all_devices_have_needs_no_exchange():
    with sync_batch_norm(Rank(1, 4, never), 3):
        assert nn.BatchNorm2d(5)(torch.randn(3, 5, 2, 2)).shape == (3, 5, 2, 2)


# Embeddings


@pytest.mark.parametrize(("size", "images"), [(2, 6), (2, 5), (3, 5)])
def test_gathered_embeddings_are_those_of_the_whole_batch_and_so_are_their_gradients(size, images):
    rows = torch.randn(images, 4, generator=torch.Generator().manual_seed(0))

    def loss(found):
        return (found @ found.T).softmax(dim=1).diagonal().log().sum()

    whole = rows.clone().requires_grad_()
    loss(whole).backward()

    def work(this_rank):
        own = this_rank.shard_of(images)
        given = rows[own.place].clone().requires_grad_()
        found = gather_batch(given, this_rank, images)
        (loss(found) * own.weight).backward()
        return found.detach(), given.grad

    found = run_on_threads(size, work)
    assert all(torch.equal(each[0], rows) for each in found)
    torch.testing.assert_close(torch.cat([each[1] for each in found]), whole.grad)


def test_alone_embeddings_are_left_as_they_are():
    rows = torch.randn(3, 4)
    assert gather_batch(rows, SINGLE_PROCESS, 3) is rows
    assert gather_batch(rows, Rank(1, 4, never), 3) is rows
