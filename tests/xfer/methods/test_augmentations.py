"""What happens to an image: every augmentation of the table, on uint8 pixels."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from xfer.methods.augmentations import AUGMENTATIONS, CROP_ASPECT_RATIOS
from xfer.methods.boxes import draw_boxes
from xfer.seeding import use_generator

KINDS = {"none": 1, "flip": 2, "grey": 4}
"""How many different images these can make of one; all others more than ten."""

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


@each_augmentation
def test_every_image_is_drawn_for_on_its_own(name, twins):
    found = AUGMENTATIONS[name]()(twins, chance())
    different = len({bytes(image.numpy().tobytes()) for image in found})
    assert different == KINDS[name] if name in KINDS else different > 10


@each_augmentation
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (8, 8)], ids=str)
def test_small_images_and_a_single_one_go_through(name, count, size):
    images = torch.randint(256, (count, 3, *size), generator=chance(2), dtype=torch.uint8)
    augment, generator = AUGMENTATIONS[name](), chance()
    for _ in range(8):
        found = augment(images, generator)
        assert (found.shape, found.dtype) == (images.shape, torch.uint8)


@each_augmentation
def test_images_in_the_order_in_which_a_pack_holds_them_come_to_the_same(name, images):
    packed = images.to(memory_format=torch.channels_last)
    before = packed.clone()
    found = AUGMENTATIONS[name]()(packed, chance(5))
    difference = found.int() - AUGMENTATIONS[name]()(images, chance(5))
    assert difference.abs().max() <= 1  # kernels for the two orders may round differently
    assert torch.equal(packed, before)


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


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("randaugment", v2.RandAugment(num_ops=2, magnitude=9)),
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)),
        ("trivialaugment", v2.TrivialAugmentWide()),
        ("colour_jitter", v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)),
    ],
)
def test_what_torchvision_has_is_torchvisions_on_one_mirrored_image_after_another(name, reference, images):
    generator = chance(21)
    mirrored = AUGMENTATIONS["flip"]()(images, generator)
    with use_generator(generator):
        expected = torch.stack([reference(image) for image in mirrored])
    assert torch.equal(AUGMENTATIONS[name]()(images, chance(21)), expected)


def test_a_random_resized_crop_is_torchvisions_crop_of_the_boxes_that_are_drawn(images):
    generator = chance(22)
    mirrored = AUGMENTATIONS["flip"]()(images, generator)
    boxes = draw_boxes(16, 24, 20, (0.3, 1.0), CROP_ASPECT_RATIOS, generator)
    expected = torch.stack(
        [functional.resized_crop(image, *box, size=[24, 20]) for image, box in zip(mirrored, boxes, strict=True)]
    )
    found = AUGMENTATIONS["random_resized_crop"](min_area=0.3)(images, chance(22))
    assert (found.int() - expected).abs().max() <= 1  # with or without antialiasing: only roundings differ


@pytest.mark.parametrize("min_area", [0.2, 0.5, 0.9])
def test_a_crop_shows_a_part_of_the_image_between_min_area_and_all_of_it(min_area):
    across = torch.arange(128, dtype=torch.uint8).expand(128, 128)
    chart = torch.stack([across, across.T, across]).expand(200, 3, 128, 128)  # each pixel tells column and row
    found = AUGMENTATIONS["random_resized_crop"](min_area=min_area)(chart, chance()).int()
    wide = found[:, 0].amax(dim=(1, 2)) - found[:, 0].amin(dim=(1, 2)) + 1
    tall = found[:, 1].amax(dim=(1, 2)) - found[:, 1].amin(dim=(1, 2)) + 1
    shares = wide * tall / 128**2
    assert shares.min() > min_area - 0.02
    assert shares.min() < min_area + 0.05
    assert shares.max() > 0.95
    assert (wide / tall).max() < 4 / 3 + 0.04
    assert (wide / tall).min() > 3 / 4 - 0.04
    assert found[:, 0].amin(dim=(1, 2)).unique().numel() > 5, "always the same place"


def test_a_crop_that_must_keep_everything_only_mirrors(images):
    found = AUGMENTATIONS["random_resized_crop"](min_area=1.0)(images, chance(8))
    assert torch.equal(found, AUGMENTATIONS["flip"]()(images, chance(8)))


@pytest.mark.parametrize(("cutout_size", "side"), [(0.5, 10), (0.25, 5), (0.01, 1), (1.0, 20)])
def test_cutout_puts_a_square_of_the_mean_colour_over_what_flip_leaves(cutout_size, side, images):
    plain = AUGMENTATIONS["flip"]()(images.repeat(8, 1, 1, 1), chance(6))
    found = AUGMENTATIONS["cutout"](cutout_size=cutout_size)(images.repeat(8, 1, 1, 1), chance(6))
    means = plain.double().mean(dim=(2, 3)).round().to(torch.uint8)
    whole = 0
    for image, before, mean in zip(found, plain, means, strict=True):
        hole = (image == mean[:, None, None]).all(dim=0)
        assert torch.equal(torch.where(hole, before, image), before), "changed outside the hole"
        rows, columns = hole.any(dim=1).nonzero().flatten(), hole.any(dim=0).nonzero().flatten()
        assert int(hole.sum()) == len(rows) * len(columns), "not a rectangle"
        assert max(len(rows), len(columns)) <= side
        assert len(rows) == side or rows[0] == 0 or rows[-1] == 23, "smaller, and not at the border"
        assert len(columns) == side or columns[0] == 0 or columns[-1] == 19, "smaller, and not at the border"
        whole += len(rows) == len(columns) == side
    assert whole > 0


def test_erasing_puts_noise_into_a_box_of_its_share_of_the_images():
    black = torch.zeros(2000, 3, 24, 24, dtype=torch.uint8)
    found = AUGMENTATIONS["random_erasing"](erasing_probability=0.3)(black, chance())
    touched = (found > 0).any(dim=1)
    erased = touched.flatten(1).any(dim=1)
    assert float(erased.float().mean()) == pytest.approx(0.3, abs=0.03)
    shares = []
    for hole in touched[erased]:
        rows, columns = hole.any(dim=1).nonzero().flatten(), hole.any(dim=0).nonzero().flatten()
        area = int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
        assert int(hole.sum()) >= area - 2, "noise is black in all three channels once in 16 million pixels"
        shares.append(area / 24**2)
    assert 0.005 < min(shares) < 0.04
    assert 0.36 < max(shares) < 0.44
    assert sum(shares) / len(shares) == pytest.approx(0.21, abs=0.015)
    noise = found.permute(0, 2, 3, 1)[touched]
    assert float(noise.float().mean()) == pytest.approx(127.5, abs=1)
    assert noise.min() == 0
    assert noise.max() == 255


@pytest.mark.parametrize(
    ("name", "parameter"), [("random_erasing", "erasing_probability"), ("grey", "grey_probability")]
)
def test_a_probability_of_zero_leaves_flip_and_one_touches_every_image(name, parameter, images):
    flipped = AUGMENTATIONS["flip"]()(images, chance(8))
    assert torch.equal(AUGMENTATIONS[name](**{parameter: 0.0})(images, chance(8)), flipped)
    found = AUGMENTATIONS[name](**{parameter: 1.0})(images, chance(8))
    assert (found != flipped).flatten(1).any(dim=1).all()


def test_grey_takes_the_colours_of_its_share_of_the_images_and_leaves_their_lightness(images):
    many = images.repeat(100, 1, 1, 1)
    plain = AUGMENTATIONS["flip"]()(many, chance())
    found = AUGMENTATIONS["grey"](grey_probability=0.2)(many, chance())
    drained = (found == found[:, :1]).flatten(1).all(dim=1)
    assert 0.17 < drained.float().mean() < 0.23
    assert torch.equal(found[~drained], plain[~drained])
    assert torch.equal(found[drained][:, :1], functional.rgb_to_grayscale(plain[drained]))


def test_jitter_changes_the_brightness_by_factors_up_to_its_bounds():
    plain = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)  # contrast and saturation do nothing to one grey
    found = AUGMENTATIONS["colour_jitter"](jitter=0.4)(plain, chance()).float()
    factors = found[:, 0, 0, 0] / 100
    assert 0.57 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4
    assert abs(factors.mean() - 1) < 0.04


def test_jitter_changes_the_contrast_by_factors_up_to_its_bounds():
    plain = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    plain[:, :, :2] = 120  # mean 110: 116 by 104 with a factor of 0.6, 124 by 96 with 1.4
    found = AUGMENTATIONS["colour_jitter"](jitter=0.4)(plain, chance()).float()
    ratios = found[:, 0, 0, 0] / found[:, 0, 3, 3]
    assert 1.10 < ratios.min() < 1.14
    assert 1.26 < ratios.max() < 1.31


def test_jitter_changes_the_saturation_on_top_of_the_contrast():
    plain = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    plain[:, 0] = 120  # grey 106: contrast alone gives 126 by 98 at most, both 133 by 94
    found = AUGMENTATIONS["colour_jitter"](jitter=0.4)(plain, chance()).float()
    ratios = found[:, 0, 0, 0] / found[:, 1, 0, 0]
    assert 1.05 < ratios.min() < 1.10
    assert 1.34 < ratios.max() < 1.43


def test_no_jitter_is_flip(images):
    found = AUGMENTATIONS["colour_jitter"](jitter=0.0)(images, chance(8))
    assert torch.equal(found, AUGMENTATIONS["flip"]()(images, chance(8)))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("randaugment", {"num_ops": 0}, r"num_ops .* 1 or more, not 0; 0 is flip"),
        ("randaugment", {"num_ops": 1.5}, r"num_ops .* not 1\.5"),
        ("randaugment", {"magnitude": 31}, r"from 0 to 30, not 31"),
        ("randaugment", {"magnitude": -1}, r"from 0 to 30, not -1"),
        ("randaugment", {"magnitude": 8.5}, r"a whole strength .* not 8\.5"),
        ("random_resized_crop", {"min_area": 0.0}, r"above 0 and at most 1, not 0\.0; 0\.5 is a mild crop"),
        ("random_resized_crop", {"min_area": 1.5}, r"min_area .* not 1\.5"),
        ("random_resized_crop", {"min_area": float("nan")}, r"min_area .* not nan"),
        ("cutout", {"cutout_size": 0.0}, r"cutout_size .* not 0\.0; .* for no hole there is flip"),
        ("cutout", {"cutout_size": 16}, r"a share of the image's, .* not 16"),
        ("random_erasing", {"erasing_probability": -0.1}, r"erasing_probability .* in \[0, 1\], not -0\.1"),
        ("random_erasing", {"erasing_probability": float("nan")}, r"erasing_probability .* not nan"),
        ("grey", {"grey_probability": 20}, r"grey_probability .* in \[0, 1\], not 20"),
        ("colour_jitter", {"jitter": 1.2}, r"in \[0, 1\], not 1\.2; 0\.4 is the usual one"),
        ("colour_jitter", {"jitter": -0.4}, r"jitter .* not -0\.4"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_any_training(name, values, message):
    with pytest.raises(ValueError, match=message):
        AUGMENTATIONS[name](**values)


def test_drawing_from_puts_the_global_generator_back_even_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), use_generator(chance()):
        {}[float(torch.rand(1))]
    assert torch.equal(torch.get_rng_state(), before)


def test_drawing_from_draws_what_the_generator_would_and_moves_it_on():
    ours, theirs = chance(5), chance(5)
    with use_generator(ours):
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3, generator=theirs))
    assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))
