"""Noise: the same for every network, stronger with severity, and none of the network's business."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xfer.data.loader import iter_batches
from xfer.measure.accuracy import evaluate
from xfer.measure.robustness import NOISES, OCCLUSION_GREY, SEVERITIES, SEVERITY_VALUES, noisy_accuracies, noisy_batches
from xfer.seeding import derive_seed

each_noise = pytest.mark.parametrize("kind", NOISES)
WITHOUT_CHANCE = {"blur", "jpeg", "grey"}


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def natural(images, size, seed=0):
    """Something like photos: colour fields on which structure is the weaker the finer it is."""
    draws = chance(seed)
    values = torch.zeros(images, 3, size, size)
    for cells in (2, 4, 8, 16):
        coarse = torch.randn(images, 3, cells, cells, generator=draws) / cells
        values += nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (128 + 140 * values).round().clamp(0, 255).to(torch.uint8)


def error(noisy, clean):
    return float((noisy.double() - clean.double()).square().mean())


class Brightest(nn.Module):
    """Says which channel is the brightest in the upper left quarter: noise confuses it."""

    def forward(self, images):
        half = images.shape[-1] // 2
        return images[:, :, :half, :half].mean(dim=(2, 3))


def prepare(pixels):
    return pixels.float()


def test_every_kind_has_its_grades():
    assert NOISES.keys() == SEVERITY_VALUES.keys()
    assert {"gaussian", "salt_and_pepper", "speckle", "occlusion", "blur", "jpeg", "grey"} == NOISES.keys()


@each_noise
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 28, 28), (2, 3, 20, 36)])
def test_pixels_go_in_and_come_out_in_the_same_shape_and_type(kind, shape):
    images = torch.randint(256, shape, generator=chance(7), dtype=torch.uint8)
    before = images.clone()
    for severity in SEVERITIES:
        found = NOISES[kind](images, severity, chance())
        assert (found.shape, found.dtype) == (images.shape, torch.uint8)
        assert not torch.equal(found, before)
    assert torch.equal(images, before), "the batch that came in was changed"


@each_noise
@pytest.mark.parametrize("size", [28, 96])
def test_an_image_suffers_the_more_the_severer_the_noise_is(kind, size):
    images = natural(24, size)
    errors = [error(NOISES[kind](images, severity, chance(severity)), images) for severity in SEVERITIES]
    assert errors[0] > 0
    assert all(milder < severer for milder, severer in itertools.pairwise(errors)), errors


@each_noise
def test_real_photos_suffer_the_more_the_severer_the_noise_is(kind, shared_data):
    files = sorted((shared_data / "hymenoptera").rglob("*.jpg"))[:16]
    photos = [np.array(Image.open(file).convert("RGB").resize((96, 96))) for file in files]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
    errors = [error(NOISES[kind](images, severity, chance(severity)), images) for severity in SEVERITIES]
    assert all(milder < severer for milder, severer in itertools.pairwise([0, *errors])), errors


@each_noise
@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_a_severity_that_there_is_not_is_said(kind, severity):
    with pytest.raises(ValueError, match=rf"severity {severity} of {kind}: it goes from 1 \(mild\) to 5 \(severe\)"):
        NOISES[kind](natural(1, 16), severity, chance())


@each_noise
def test_chance_comes_from_the_generator_alone(kind):
    images = natural(2, 24)
    torch.manual_seed(1)
    outside = torch.get_rng_state()
    first = NOISES[kind](images, 3, chance(3))
    assert torch.equal(torch.get_rng_state(), outside)
    torch.manual_seed(2)
    assert torch.equal(NOISES[kind](images, 3, chance(3)), first)
    assert torch.equal(NOISES[kind](images, 3, chance(4)), first) is (kind in WITHOUT_CHANCE)


@each_noise
def test_the_order_in_memory_has_no_say(kind):
    images = natural(2, 24)
    found = NOISES[kind](images.contiguous(memory_format=torch.channels_last), 3, chance(3))
    assert torch.equal(found, NOISES[kind](images, 3, chance(3)))


@each_noise
def test_a_card_says_what_it_does_and_when_that_matters(kind):
    what, _, when = (NOISES[kind].__doc__ or "").partition("\n\n")
    assert len(what) > 30
    assert len(when.strip()) > 60


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_deviation_that_it_says(severity):
    flat = torch.full((4, 3, 64, 64), 127, dtype=torch.uint8)
    draws = torch.randn(flat.shape, generator=chance(1))
    expected = (127 + 255 * SEVERITY_VALUES["gaussian"][severity - 1] * draws).round().clamp(0, 255)
    assert torch.equal(NOISES["gaussian"](flat, severity, chance(1)).float(), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_salt_and_pepper_turn_their_share_of_the_pixels_black_or_white(severity):
    flat = torch.full((8, 3, 100, 100), 90, dtype=torch.uint8)
    found = NOISES["salt_and_pepper"](flat, severity, chance())
    assert torch.equal(found.amin(dim=1), found.amax(dim=1))  # all three channels together
    share = SEVERITY_VALUES["salt_and_pepper"][severity - 1]
    for value in (0, 255):
        assert float((found == value).double().mean()) == pytest.approx(share / 2, rel=0.2)
    assert set(found.unique().tolist()) == {0, 90, 255}


def test_speckle_leaves_black_black_and_is_proportional_elsewhere():
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[..., 32:] = 100
    found = NOISES["speckle"](images, 2, chance())
    assert not found[..., :32].any()
    assert float(found[..., 32:].double().std()) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [28, 50])
def test_occlusion_is_one_grey_square_wholly_inside(severity, size):
    images = torch.zeros(64, 3, size, size, dtype=torch.uint8)
    hidden = NOISES["occlusion"](images, severity, chance()) == OCCLUSION_GREY
    side = round(SEVERITY_VALUES["occlusion"][severity - 1] * size)
    for axis in (2, 3):
        assert (hidden.any(dim=axis).sum(dim=-1) == side).all()
    assert (hidden.sum(dim=(2, 3)) == side**2).all()
    assert (
        len({tuple(mask.flatten().nonzero()[0].tolist()) for mask in hidden}) > 10
    )  # each image has a place of its own


def test_blur_is_scipys_gaussian_and_scales_with_the_image():
    from scipy.ndimage import gaussian_filter

    for size in (40, 80):
        image = natural(1, size)
        deviation = SEVERITY_VALUES["blur"][4] * size
        expected = gaussian_filter(image[0].double().numpy(), (0, deviation, deviation), mode="mirror", truncate=3)
        assert np.abs(NOISES["blur"](image, 5, chance())[0].numpy() - expected).max() < 2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_grey_at_severity_5_is_pillows_and_before_it_the_way_there(severity):
    images = natural(2, 32)
    luminance = np.stack([np.asarray(Image.fromarray(each.permute(1, 2, 0).numpy()).convert("L")) for each in images])
    expected = images + SEVERITY_VALUES["grey"][severity - 1] * (
        torch.from_numpy(luminance.astype(float))[:, None] - images
    )
    found = NOISES["grey"](images, severity, chance())
    assert (found - expected).abs().max() <= 1.01
    assert torch.equal(found[:, 0], found[:, 2]) is (severity == 5)


def test_images_without_colour_stay_as_they_are_under_grey():
    images = natural(2, 32)[:, :1].repeat(1, 3, 1, 1)
    assert torch.equal(NOISES["grey"](images, 5, chance()), images)


def by_hand(images, labels, places, kind, severity):
    """Which of the images are right under one kind and severity, one at a time."""
    right = []
    for image, label, place in zip(images, labels, places, strict=True):
        draws = chance(derive_seed("noise", kind, severity, int(place)))
        right.append(bool(Brightest()(NOISES[kind](image[None], severity, draws).float()).argmax() == label))
    return right


@pytest.fixture
def part():
    """23 images, the right answer for each clean one, and their places in a pack."""
    images = natural(23, 24, seed=5)
    return images, Brightest()(images.float()).argmax(dim=1), np.arange(100, 123)[::-1].copy()


def test_every_kind_meets_every_image_and_every_severity_its_turn(part):
    images, labels, places = part
    found = noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, places)
    assert [(noisy.kind, noisy.severity) for noisy in found] == list(itertools.product(NOISES, SEVERITIES))
    for noisy in found:
        mine = slice(noisy.severity - 1, None, 5)
        right = by_hand(images[mine], labels[mine], places[mine], noisy.kind, noisy.severity)
        assert (noisy.images, noisy.correct) == (len(right), sum(right)), noisy
    assert 0 < sum(noisy.correct for noisy in found) < sum(noisy.images for noisy in found)


def test_the_noisy_copy_deals_all_kinds_and_severities_in_turn(part):
    images, labels, _ = part
    images, labels = images.repeat(2, 1, 1, 1)[:40], labels.repeat(2)[:40]
    places = range(200, 240)
    (found, same), *rest = noisy_batches([(images, labels)], places)
    assert rest == []
    assert torch.equal(same, labels)
    dealt = [(kind, severity) for severity in SEVERITIES for kind in NOISES]
    for position, (copy, image) in enumerate(zip(found, images, strict=True)):
        kind, severity = dealt[position % 35]
        draws = chance(derive_seed("noise", kind, severity, places[position]))
        assert torch.equal(copy, NOISES[kind](image[None], severity, draws)[0]), position


def split(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 5, 8])
def test_the_size_of_the_batches_has_no_say(part, size):
    images, labels, places = part
    whole = noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, places)
    assert noisy_accuracies(Brightest(), lambda: iter(split(images, labels, size)), prepare, places) == whole
    ((copy, _),) = noisy_batches([(images, labels)], places)
    assert torch.equal(torch.cat([some for some, _ in noisy_batches(split(images, labels, size), places)]), copy)


def test_images_from_a_pack_come_in_their_order_in_memory_and_are_left_alone(pack):
    places = np.arange(len(pack.labels))[4:20]
    clean = [(images.clone(), labels) for images, labels in iter_batches(pack, places, 6)]
    held = list(iter_batches(pack, places, 6))
    copies = list(noisy_batches(held, places))
    for (copy, _), (image, _), (before, _) in zip(copies, held, clean, strict=True):
        assert copy.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(image, before)
        assert not torch.equal(copy, before)
    found = evaluate(Brightest(), noisy_batches(held, places), prepare, "val", places)
    assert found.images == tuple(places)


def test_a_network_is_judged_in_evaluation_mode(part):
    images, labels, places = part
    model = nn.Sequential(nn.Dropout(0.9), Brightest()).train()
    found = noisy_accuracies(model, lambda: [(images, labels)], prepare, places)
    assert found == noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, places)
    assert not model.training


def test_fewer_images_than_severities_leave_some_out(part):
    images, labels, places = (each[:3] for each in part)
    found = noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, places)
    assert {(noisy.severity, noisy.images) for noisy in found} == {(1, 1), (2, 1), (3, 1)}


@pytest.mark.parametrize(
    ("places", "said"), [(22, "22 places came for at least 23 images"), (24, "24 places came for 23 images")]
)
def test_places_that_do_not_belong_to_the_images_are_refused(part, places, said):
    images, labels, _ = part
    with pytest.raises(ValueError, match=f"{said}: give the place in the pack of every image"):
        noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, range(places))
    with pytest.raises(ValueError, match=said):
        list(noisy_batches([(images, labels)], range(places)))
