"""Batch mixing: images and targets are mixed in the same proportions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchvision.transforms import v2

from xfer.methods.mixing import MIXINGS
from xfer.seeding import use_generator

N, C, SIDE = 8, 8, 20

each_mixing = pytest.mark.parametrize("name", MIXINGS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    """Image i has the value i everywhere and belongs to class i, so every pixel identifies its image."""
    images = torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 3, SIDE, SIDE).clone()
    return images, functional.one_hot(torch.arange(N), C).float()


@pytest.mark.parametrize("name", sorted(MIXINGS.keys() - {"mixup"}))
@pytest.mark.parametrize("seed", range(12))
def test_targets_are_the_fractions_of_pixels_of_each_class(name, batch, seed):
    images, targets = MIXINGS[name]()(*batch, seeded(seed))
    fractions = torch.stack([(images == label).float().mean(dim=(1, 2, 3)) for label in range(C)], dim=1)
    torch.testing.assert_close(targets, fractions)


@each_mixing
def test_targets_remain_probabilities(name, batch):
    generator, mix = seeded(1), MIXINGS[name]()
    for _ in range(20):
        _, targets = mix(*batch, generator)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(N))
        assert targets.min() >= 0


@each_mixing
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_shapes_and_dtypes_stay_and_the_input_is_not_modified(name, layout, batch):
    inputs = batch[0].to(memory_format=layout), batch[1]
    images, targets = MIXINGS[name]()(*inputs, seeded())
    assert (images.dtype, images.shape) == (torch.uint8, batch[0].shape)
    assert (targets.dtype, targets.shape) == (torch.float32, batch[1].shape)
    assert torch.equal(inputs[0], torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 3, SIDE, SIDE))
    assert torch.equal(inputs[1], functional.one_hot(torch.arange(N), C).float())


@each_mixing
def test_a_single_image_is_not_mixed(name, batch):
    images, targets = MIXINGS[name]()(batch[0][3:4], batch[1][3:4], seeded())
    assert torch.equal(images, batch[0][3:4])
    torch.testing.assert_close(targets, batch[1][3:4])


@each_mixing
def test_another_seed_mixes_differently(name, batch):
    targets = [MIXINGS[name]()(*batch, seeded(seed))[1] for seed in (1, 2)]
    assert torch.equal(*targets) is (name == "none")


@each_mixing
def test_mixing_depends_only_on_the_given_generator(name, batch):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(MIXINGS[name]()(*batch, seeded(9)))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_none_does_not_change_the_batch(batch):
    images, targets = MIXINGS["none"]()(*batch, seeded())
    assert torch.equal(images, batch[0])
    assert torch.equal(targets, batch[1])


def test_cutmix_takes_a_new_box_from_the_neighbour_in_every_batch(batch):
    generator = seeded(2)
    fractions = [float(MIXINGS["cutmix"]()(*batch, generator)[1].diagonal().mean()) for _ in range(30)]
    assert len(set(fractions)) > 10
    assert min(fractions) < 0.5
    assert max(fractions) > 0.9


def test_cutmix_fractions_are_near_half_for_large_alpha_and_extreme_for_small_alpha(batch):
    def spread(alpha):
        generator = seeded(4)
        mix = MIXINGS["cutmix"](alpha=alpha)
        return torch.tensor([float(mix(*batch, generator)[1].diagonal().mean()) for _ in range(60)]).std()

    assert spread(alpha=0.1) > 2 * spread(alpha=100.0)


@pytest.mark.parametrize("seed", range(12))
def test_mixup_blends_pixels_and_targets_in_the_same_proportion(seed):
    images = torch.randint(256, (N, 3, SIDE, SIDE), generator=seeded(1), dtype=torch.uint8)
    mixed, targets = MIXINGS["mixup"](alpha=1.0)(images, torch.eye(N), seeded(seed))
    fractions = targets.diagonal()[0]
    torch.testing.assert_close(targets, fractions * torch.eye(N) + (1 - fractions) * torch.eye(N).roll(1, 0))
    blend = fractions * images.float() + (1 - fractions) * images.float().roll(1, 0)
    assert (mixed.float() - blend).abs().max() <= 0.5 + 1e-3, "not rounded to the nearest"


def test_mixup_equals_torchvisions_on_floats(batch):
    images, targets = MIXINGS["mixup"](alpha=0.4)(*batch, seeded(3))
    with use_generator(seeded(3)):
        expected, expected_targets = v2.MixUp(alpha=0.4, num_classes=C)(batch[0].float(), torch.arange(N))
    assert torch.equal(images.float(), expected.round())
    torch.testing.assert_close(targets, expected_targets)


def test_mixup_accepts_targets_that_are_already_mixtures(batch):
    soft = torch.full((N, C), 1 / C)
    torch.testing.assert_close(MIXINGS["mixup"](alpha=1.0)(batch[0], soft, seeded())[1], soft)


def test_mixup_of_equal_images_changes_nothing():
    for value in (0, 255):
        plain = torch.full((4, 3, 8, 8), value, dtype=torch.uint8)
        for seed in range(10):
            assert torch.equal(MIXINGS["mixup"](alpha=1.0)(plain, torch.eye(4), seeded(seed))[0], plain)


def test_mixup_keeps_most_of_an_image_for_small_alpha_and_half_for_large_alpha(batch):
    def purity(alpha):
        generator, mix = seeded(4), MIXINGS["mixup"](alpha=alpha)
        fractions = torch.tensor([float(mix(*batch, generator)[1].max()) for _ in range(60)])
        return float(fractions.mean())

    assert purity(alpha=0.05) > 0.9
    assert purity(alpha=1.0) == pytest.approx(0.75, abs=0.05)
    assert purity(alpha=500.0) < 0.55


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_out_of_range_is_refused_before_any_training(name, alpha):
    with pytest.raises(ValueError, match=rf"alpha must be above 0 and finite, got {alpha}.*1 draws it uniformly"):
        MIXINGS[name](alpha=alpha)
