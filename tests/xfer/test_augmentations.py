"""What happens to an image: every augmentation of the table, on uint8 pixels."""

from __future__ import annotations

import pytest
import torch

from xfer.methods.augmentations import AUGMENTATIONS
from xfer.randomness import drawing_from

each_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.randint(256, (16, 3, 24, 20), generator=chance(7), dtype=torch.uint8)


@pytest.fixture
def twins(images):
    """64 times the same image."""
    return images[:1].repeat(64, 1, 1, 1)


@each_augmentation
def test_pixels_go_in_and_come_out_in_the_same_shape_and_type(name, images):
    before = images.clone()
    found = AUGMENTATIONS[name]()(images, chance())
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert torch.equal(images, before), "the batch that came in was changed"


@each_augmentation
def test_the_same_seed_gives_the_same_images(name, images):
    augment = AUGMENTATIONS[name]()
    first, second = augment(images, chance(3)), augment(images, chance(3))
    assert torch.equal(first, second)
    assert name == "none" or not torch.equal(first, augment(images, chance(4)))


@each_augmentation
def test_every_batch_is_drawn_anew(name, images):
    generator, augment = chance(), AUGMENTATIONS[name]()
    first, second = augment(images, generator), augment(images, generator)
    assert torch.equal(first, second) is (name == "none")


@pytest.mark.parametrize(("name", "kinds"), [("none", 1), ("flip", 2), ("randaugment", 20)])
def test_every_image_is_drawn_for_on_its_own(name, kinds, twins):
    found = AUGMENTATIONS[name]()(twins, chance())
    different = len({bytes(image.numpy().tobytes()) for image in found})
    assert different == kinds if name != "randaugment" else different >= kinds


@each_augmentation
def test_the_global_generator_is_left_alone(name, images):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    AUGMENTATIONS[name]()(images, chance())
    assert torch.equal(torch.get_rng_state(), before)


@each_augmentation
def test_the_global_generator_has_no_say(name, images):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(AUGMENTATIONS[name]()(images, chance()))
    assert torch.equal(*found)


def test_none_is_the_identity(images):
    assert torch.equal(AUGMENTATIONS["none"]()(images, chance()), images)


def test_flip_mirrors_about_half_left_to_right_and_leaves_the_rest(images):
    many = images.repeat(64, 1, 1, 1)
    found = AUGMENTATIONS["flip"]()(many, chance())
    mirrored = (found == many.flip(-1)).flatten(1).all(dim=1)
    untouched = (found == many).flatten(1).all(dim=1)
    assert (mirrored ^ untouched).all()
    assert 0.45 < mirrored.float().mean() < 0.55


def test_randaugment_is_stronger_with_magnitude(images):
    def distance(magnitude):
        found = AUGMENTATIONS["randaugment"](num_ops=2, magnitude=magnitude)(smooth, chance())
        return (found.float() - smooth).abs().mean()

    ramp = torch.linspace(0, 255, 20).expand(16, 3, 24, 20)
    smooth = ((ramp + ramp.flip(-1)) / 2).to(torch.uint8)  # a mirrored image looks the same
    assert distance(25) > distance(1)


def test_drawing_from_puts_the_global_generator_back_even_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), drawing_from(chance()):
        {}[float(torch.rand(1))]
    assert torch.equal(torch.get_rng_state(), before)


def test_drawing_from_draws_what_the_generator_would_and_moves_it_on():
    ours, theirs = chance(5), chance(5)
    with drawing_from(ours):
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3, generator=theirs))
    assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))
