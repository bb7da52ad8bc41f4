"""What happens to a batch: images and targets that belong together stay together."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from xfer.methods.mixing import MIXINGS

N, C, SIDE = 8, 8, 20

each_mixing = pytest.mark.parametrize("name", MIXINGS)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    """Image i is filled with the value i and belongs to class i, so that every pixel says whose it is."""
    images = torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 3, SIDE, SIDE).clone()
    return images, functional.one_hot(torch.arange(N), C).float()


@each_mixing
@pytest.mark.parametrize("seed", range(12))
def test_targets_are_the_shares_of_the_pixels_that_each_class_has(name, batch, seed):
    images, targets = MIXINGS[name]()(*batch, chance(seed))
    shares = torch.stack([(images == label).float().mean(dim=(1, 2, 3)) for label in range(C)], dim=1)
    torch.testing.assert_close(targets, shares)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(N))


@each_mixing
def test_shapes_and_types_stay(name, batch):
    images, targets = MIXINGS[name]()(*batch, chance())
    assert (images.dtype, images.shape) == (torch.uint8, batch[0].shape)
    assert (targets.dtype, targets.shape) == (torch.float32, batch[1].shape)


@each_mixing
def test_the_same_seed_mixes_the_same_way_and_the_global_generator_has_no_part(name, batch):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(MIXINGS[name]()(*batch, chance(9)))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_none_leaves_the_batch_alone(batch):
    images, targets = MIXINGS["none"]()(*batch, chance())
    assert torch.equal(images, batch[0])
    assert torch.equal(targets, batch[1])


def test_cutmix_takes_a_box_from_the_neighbour_and_differs_from_batch_to_batch(batch):
    generator = chance(2)
    kept = [float(MIXINGS["cutmix"]()(*batch, generator)[1].diagonal().mean()) for _ in range(30)]
    assert len(set(kept)) > 10
    assert min(kept) < 0.5
    assert max(kept) > 0.9


def test_cutmix_of_a_large_alpha_keeps_about_half_and_of_a_small_one_nearly_all_or_nothing(batch):
    def spread(alpha):
        generator = chance(4)
        mix = MIXINGS["cutmix"](alpha=alpha)
        return torch.tensor([float(mix(*batch, generator)[1].diagonal().mean()) for _ in range(60)]).std()

    assert spread(alpha=0.1) > 2 * spread(alpha=100.0)
