"""What happens to a batch: images and targets that belong together stay together."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchvision.transforms import v2

from xfer.methods.mixing import MIXINGS
from xfer.seeding import use_generator

N, C, SIDE = 8, 8, 20

each_mixing = pytest.mark.parametrize("name", MIXINGS)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    """Image i is filled with the value i and belongs to class i, so that every pixel says whose it is."""
    images = torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 3, SIDE, SIDE).clone()
    return images, functional.one_hot(torch.arange(N), C).float()


@pytest.mark.parametrize("name", sorted(MIXINGS.keys() - {"mixup"}))
@pytest.mark.parametrize("seed", range(12))
def test_targets_are_the_shares_of_the_pixels_that_each_class_has(name, batch, seed):
    images, targets = MIXINGS[name]()(*batch, chance(seed))
    shares = torch.stack([(images == label).float().mean(dim=(1, 2, 3)) for label in range(C)], dim=1)
    torch.testing.assert_close(targets, shares)


@each_mixing
def test_targets_stay_probabilities(name, batch):
    generator, mix = chance(1), MIXINGS[name]()
    for _ in range(20):
        _, targets = mix(*batch, generator)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(N))
        assert targets.min() >= 0


@each_mixing
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_shapes_and_types_stay_and_what_came_in_is_not_changed(name, layout, batch):
    came = batch[0].to(memory_format=layout), batch[1]
    images, targets = MIXINGS[name]()(*came, chance())
    assert (images.dtype, images.shape) == (torch.uint8, batch[0].shape)
    assert (targets.dtype, targets.shape) == (torch.float32, batch[1].shape)
    assert torch.equal(came[0], torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 3, SIDE, SIDE))
    assert torch.equal(came[1], functional.one_hot(torch.arange(N), C).float())


@each_mixing
def test_a_single_image_has_nothing_to_be_mixed_with(name, batch):
    images, targets = MIXINGS[name]()(batch[0][3:4], batch[1][3:4], chance())
    assert torch.equal(images, batch[0][3:4])
    torch.testing.assert_close(targets, batch[1][3:4])


@each_mixing
def test_another_seed_mixes_in_another_way(name, batch):
    found = [MIXINGS[name]()(*batch, chance(seed))[1] for seed in (1, 2)]
    assert torch.equal(*found) is (name == "none")


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


@pytest.mark.parametrize("seed", range(12))
def test_mixup_blends_pixels_and_targets_in_the_same_proportion(seed):
    images = torch.randint(256, (N, 3, SIDE, SIDE), generator=chance(1), dtype=torch.uint8)
    found, targets = MIXINGS["mixup"](alpha=1.0)(images, torch.eye(N), chance(seed))
    kept = targets.diagonal()[0]
    torch.testing.assert_close(targets, kept * torch.eye(N) + (1 - kept) * torch.eye(N).roll(1, 0))
    blend = kept * images.float() + (1 - kept) * images.float().roll(1, 0)
    assert (found.float() - blend).abs().max() <= 0.5 + 1e-3, "not rounded to the nearest"


def test_mixup_is_torchvisions_on_floats(batch):
    images, targets = MIXINGS["mixup"](alpha=0.4)(*batch, chance(3))
    with use_generator(chance(3)):
        expected, expected_targets = v2.MixUp(alpha=0.4, num_classes=C)(batch[0].float(), torch.arange(N))
    assert torch.equal(images.float(), expected.round())
    torch.testing.assert_close(targets, expected_targets)


def test_mixup_takes_targets_that_are_mixtures_already(batch):
    soft = torch.full((N, C), 1 / C)
    torch.testing.assert_close(MIXINGS["mixup"](alpha=1.0)(batch[0], soft, chance())[1], soft)


def test_mixup_keeps_white_and_black_what_they_are():
    for value in (0, 255):
        plain = torch.full((4, 3, 8, 8), value, dtype=torch.uint8)
        for seed in range(10):
            assert torch.equal(MIXINGS["mixup"](alpha=1.0)(plain, torch.eye(4), chance(seed))[0], plain)


def test_mixup_of_a_small_alpha_keeps_an_image_nearly_whole_and_of_a_large_one_half(batch):
    def purity(alpha):
        generator, mix = chance(4), MIXINGS["mixup"](alpha=alpha)
        kept = torch.tensor([float(mix(*batch, generator)[1].max()) for _ in range(60)])
        return float(kept.mean())

    assert purity(alpha=0.05) > 0.9
    assert purity(alpha=1.0) == pytest.approx(0.75, abs=0.05)
    assert purity(alpha=500.0) < 0.55


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_no_share_can_be_drawn_with_is_refused_before_any_training(name, alpha):
    with pytest.raises(ValueError, match=rf"alpha .* above 0, not {alpha}.*1 draws any share alike"):
        MIXINGS[name](alpha=alpha)
