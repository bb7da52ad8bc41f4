"""Every augmentation of the table, on uint8 images."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from xfer.methods.augmentations import AUGMENTATIONS, CROP_ASPECT_RATIOS
from xfer.methods.boxes import draw_boxes
from xfer.seeding import use_generator

NUM_VARIANTS = {"none": 1, "flip": 2, "grey": 4}
"""Number of different images these can make of one; all others can make more than ten."""

each_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.randint(256, (16, 3, 24, 20), generator=seeded(7), dtype=torch.uint8)


@pytest.fixture
def twins(images):
    """64 copies of one image."""
    return images[:1].repeat(64, 1, 1, 1)


@each_augmentation
def test_shape_and_dtype_stay_and_the_input_is_not_modified(name, images):
    before = images.clone()
    augmented = AUGMENTATIONS[name]()(images, seeded())
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    assert torch.equal(images, before), "the input batch was modified"


@each_augmentation
def test_the_same_seed_gives_the_same_images(name, images):
    augment = AUGMENTATIONS[name]()
    first, second = augment(images, seeded(3)), augment(images, seeded(3))
    assert torch.equal(first, second)
    assert name == "none" or not torch.equal(first, augment(images, seeded(4)))


@each_augmentation
def test_every_batch_gets_new_draws(name, images):
    generator, augment = seeded(), AUGMENTATIONS[name]()
    first, second = augment(images, generator), augment(images, generator)
    assert torch.equal(first, second) is (name == "none")


@each_augmentation
def test_every_image_gets_its_own_draws(name, twins):
    augmented = AUGMENTATIONS[name]()(twins, seeded())
    different = len({bytes(image.numpy().tobytes()) for image in augmented})
    assert different == NUM_VARIANTS[name] if name in NUM_VARIANTS else different > 10


@each_augmentation
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (8, 8)], ids=str)
def test_small_images_and_single_images_are_accepted(name, count, size):
    images = torch.randint(256, (count, 3, *size), generator=seeded(2), dtype=torch.uint8)
    augment, generator = AUGMENTATIONS[name](), seeded()
    for _ in range(8):
        augmented = augment(images, generator)
        assert (augmented.shape, augmented.dtype) == (images.shape, torch.uint8)


@each_augmentation
def test_the_memory_layout_of_a_pack_gives_the_same_images(name, images):
    packed = images.to(memory_format=torch.channels_last)
    before = packed.clone()
    augmented = AUGMENTATIONS[name]()(packed, seeded(5))
    difference = augmented.int() - AUGMENTATIONS[name]()(images, seeded(5))
    assert difference.abs().max() <= 1  # kernels for the two layouts may round differently
    assert torch.equal(packed, before)


@each_augmentation
def test_the_global_generator_is_not_advanced(name, images):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    AUGMENTATIONS[name]()(images, seeded())
    assert torch.equal(torch.get_rng_state(), before)


@each_augmentation
def test_the_global_generator_has_no_influence(name, images):
    augmented = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        augmented.append(AUGMENTATIONS[name]()(images, seeded()))
    assert torch.equal(*augmented)


def test_none_is_the_identity(images):
    assert torch.equal(AUGMENTATIONS["none"]()(images, seeded()), images)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest(images):
    many = images.repeat(64, 1, 1, 1)
    augmented = AUGMENTATIONS["flip"]()(many, seeded())
    mirrored = (augmented == many.flip(-1)).flatten(1).all(dim=1)
    untouched = (augmented == many).flatten(1).all(dim=1)
    assert (mirrored ^ untouched).all()
    assert 0.45 < mirrored.float().mean() < 0.55


def test_randaugment_is_stronger_with_magnitude(images):
    def distance(magnitude):
        augmented = AUGMENTATIONS["randaugment"](num_ops=2, magnitude=magnitude)(smooth, seeded())
        return (augmented.float() - smooth).abs().mean()

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
def test_augmentations_of_torchvision_equal_its_transforms_on_each_mirrored_image(name, reference, images):
    generator = seeded(21)
    mirrored = AUGMENTATIONS["flip"]()(images, generator)
    with use_generator(generator):
        expected = torch.stack([reference(image) for image in mirrored])
    assert torch.equal(AUGMENTATIONS[name]()(images, seeded(21)), expected)


def test_a_random_resized_crop_equals_torchvisions_crop_of_the_drawn_boxes(images):
    generator = seeded(22)
    mirrored = AUGMENTATIONS["flip"]()(images, generator)
    boxes = draw_boxes(16, 24, 20, (0.3, 1.0), CROP_ASPECT_RATIOS, generator)
    expected = torch.stack(
        [functional.resized_crop(image, *box, size=[24, 20]) for image, box in zip(mirrored, boxes, strict=True)]
    )
    augmented = AUGMENTATIONS["random_resized_crop"](min_area=0.3)(images, seeded(22))
    assert (augmented.int() - expected).abs().max() <= 1  # with or without antialiasing only the rounding differs


@pytest.mark.parametrize("min_area", [0.2, 0.5, 0.9])
def test_a_crop_covers_between_min_area_and_the_whole_image(min_area):
    across = torch.arange(128, dtype=torch.uint8).expand(128, 128)
    chart = torch.stack([across, across.T, across]).expand(200, 3, 128, 128)  # each pixel encodes its column and row
    augmented = AUGMENTATIONS["random_resized_crop"](min_area=min_area)(chart, seeded()).int()
    wide = augmented[:, 0].amax(dim=(1, 2)) - augmented[:, 0].amin(dim=(1, 2)) + 1
    tall = augmented[:, 1].amax(dim=(1, 2)) - augmented[:, 1].amin(dim=(1, 2)) + 1
    shares = wide * tall / 128**2
    assert shares.min() > min_area - 0.02
    assert shares.min() < min_area + 0.05
    assert shares.max() > 0.95
    assert (wide / tall).max() < 4 / 3 + 0.04
    assert (wide / tall).min() > 3 / 4 - 0.04
    assert augmented[:, 0].amin(dim=(1, 2)).unique().numel() > 5, "always the same position"


def test_a_crop_of_the_whole_image_only_mirrors(images):
    augmented = AUGMENTATIONS["random_resized_crop"](min_area=1.0)(images, seeded(8))
    assert torch.equal(augmented, AUGMENTATIONS["flip"]()(images, seeded(8)))


@pytest.mark.parametrize(("cutout_size", "side"), [(0.5, 10), (0.25, 5), (0.01, 1), (1.0, 20)])
def test_cutout_covers_the_flipped_image_with_a_square_of_its_mean_colour(cutout_size, side, images):
    plain = AUGMENTATIONS["flip"]()(images.repeat(8, 1, 1, 1), seeded(6))
    augmented = AUGMENTATIONS["cutout"](cutout_size=cutout_size)(images.repeat(8, 1, 1, 1), seeded(6))
    means = plain.double().mean(dim=(2, 3)).round().to(torch.uint8)
    complete = 0
    for image, before, mean in zip(augmented, plain, means, strict=True):
        hole = (image == mean[:, None, None]).all(dim=0)
        assert torch.equal(torch.where(hole, before, image), before), "changed outside the hole"
        rows, columns = hole.any(dim=1).nonzero().flatten(), hole.any(dim=0).nonzero().flatten()
        assert int(hole.sum()) == len(rows) * len(columns), "not a rectangle"
        assert max(len(rows), len(columns)) <= side
        assert len(rows) == side or rows[0] == 0 or rows[-1] == 23, "smaller, and not at the border"
        assert len(columns) == side or columns[0] == 0 or columns[-1] == 19, "smaller, and not at the border"
        complete += len(rows) == len(columns) == side
    assert complete > 0


def test_erasing_puts_noise_into_a_box_of_the_given_fraction_of_images():
    black = torch.zeros(2000, 3, 24, 24, dtype=torch.uint8)
    augmented = AUGMENTATIONS["random_erasing"](erasing_probability=0.3)(black, seeded())
    touched = (augmented > 0).any(dim=1)
    erased = touched.flatten(1).any(dim=1)
    assert float(erased.float().mean()) == pytest.approx(0.3, abs=0.03)
    shares = []
    for hole in touched[erased]:
        rows, columns = hole.any(dim=1).nonzero().flatten(), hole.any(dim=0).nonzero().flatten()
        area = int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
        assert int(hole.sum()) >= area - 2, "noise is black in all three channels for one in 16 million pixels"
        shares.append(area / 24**2)
    assert 0.005 < min(shares) < 0.04
    assert 0.36 < max(shares) < 0.44
    assert sum(shares) / len(shares) == pytest.approx(0.21, abs=0.015)
    noise = augmented.permute(0, 2, 3, 1)[touched]
    assert float(noise.float().mean()) == pytest.approx(127.5, abs=1)
    assert noise.min() == 0
    assert noise.max() == 255


@pytest.mark.parametrize(
    ("name", "parameter"), [("random_erasing", "erasing_probability"), ("grey", "grey_probability")]
)
def test_probability_0_equals_flip_and_1_changes_every_image(name, parameter, images):
    flipped = AUGMENTATIONS["flip"]()(images, seeded(8))
    assert torch.equal(AUGMENTATIONS[name](**{parameter: 0.0})(images, seeded(8)), flipped)
    augmented = AUGMENTATIONS[name](**{parameter: 1.0})(images, seeded(8))
    assert (augmented != flipped).flatten(1).any(dim=1).all()


def test_grey_removes_the_colours_of_the_given_fraction_of_images_and_keeps_their_luminance(images):
    many = images.repeat(100, 1, 1, 1)
    plain = AUGMENTATIONS["flip"]()(many, seeded())
    augmented = AUGMENTATIONS["grey"](grey_probability=0.2)(many, seeded())
    converted = (augmented == augmented[:, :1]).flatten(1).all(dim=1)
    assert 0.17 < converted.float().mean() < 0.23
    assert torch.equal(augmented[~converted], plain[~converted])
    assert torch.equal(augmented[converted][:, :1], functional.rgb_to_grayscale(plain[converted]))


def test_jitter_scales_the_brightness_by_factors_up_to_its_bounds():
    plain = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)  # contrast and saturation do nothing to one grey
    augmented = AUGMENTATIONS["colour_jitter"](jitter=0.4)(plain, seeded()).float()
    factors = augmented[:, 0, 0, 0] / 100
    assert 0.57 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4
    assert abs(factors.mean() - 1) < 0.04


def test_jitter_scales_the_contrast_by_factors_up_to_its_bounds():
    plain = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    plain[:, :, :2] = 120  # mean 110: 116 by 104 with a factor of 0.6, 124 by 96 with 1.4
    augmented = AUGMENTATIONS["colour_jitter"](jitter=0.4)(plain, seeded()).float()
    ratios = augmented[:, 0, 0, 0] / augmented[:, 0, 3, 3]
    assert 1.10 < ratios.min() < 1.14
    assert 1.26 < ratios.max() < 1.31


def test_jitter_scales_the_saturation_in_addition_to_the_contrast():
    plain = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    plain[:, 0] = 120  # grey 106: contrast alone gives 126 by 98 at most, both 133 by 94
    augmented = AUGMENTATIONS["colour_jitter"](jitter=0.4)(plain, seeded()).float()
    ratios = augmented[:, 0, 0, 0] / augmented[:, 1, 0, 0]
    assert 1.05 < ratios.min() < 1.10
    assert 1.34 < ratios.max() < 1.43


def test_jitter_0_equals_flip(images):
    augmented = AUGMENTATIONS["colour_jitter"](jitter=0.0)(images, seeded(8))
    assert torch.equal(augmented, AUGMENTATIONS["flip"]()(images, seeded(8)))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("randaugment", {"num_ops": 0}, r"num_ops must be an integer of at least 1, got 0; .* augmentation flip"),
        ("randaugment", {"num_ops": 1.5}, r"num_ops .* got 1\.5"),
        ("randaugment", {"magnitude": 31}, r"from 0 to 30, got 31"),
        ("randaugment", {"magnitude": -1}, r"from 0 to 30, got -1"),
        ("randaugment", {"magnitude": 8.5}, r"magnitude must be an integer .* got 8\.5"),
        ("random_resized_crop", {"min_area": 0.0}, r"above 0 and at most 1, got 0\.0; 0\.5 is a mild crop"),
        ("random_resized_crop", {"min_area": 1.5}, r"min_area .* got 1\.5"),
        ("random_resized_crop", {"min_area": float("nan")}, r"min_area .* got nan"),
        ("cutout", {"cutout_size": 0.0}, r"cutout_size .* got 0\.0; .* for no square use augmentation flip"),
        ("cutout", {"cutout_size": 16}, r"a fraction of the image's side .* got 16"),
        ("random_erasing", {"erasing_probability": -0.1}, r"erasing_probability .* in \[0, 1\], got -0\.1"),
        ("random_erasing", {"erasing_probability": float("nan")}, r"erasing_probability .* got nan"),
        ("grey", {"grey_probability": 20}, r"grey_probability .* in \[0, 1\], got 20"),
        ("colour_jitter", {"jitter": 1.2}, r"in \[0, 1\], got 1\.2; 0\.4 is the usual value"),
        ("colour_jitter", {"jitter": -0.4}, r"jitter .* got -0\.4"),
    ],
)
def test_a_parameter_out_of_range_is_refused_before_any_training(name, values, message):
    with pytest.raises(ValueError, match=message):
        AUGMENTATIONS[name](**values)


def test_use_generator_restores_the_global_generator_even_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), use_generator(seeded()):
        {}[float(torch.rand(1))]
    assert torch.equal(torch.get_rng_state(), before)


def test_use_generator_draws_from_the_generator_and_advances_it():
    ours, theirs = seeded(5), seeded(5)
    with use_generator(ours):
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3, generator=theirs))
    assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))
