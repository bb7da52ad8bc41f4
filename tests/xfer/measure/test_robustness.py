"""Noise: the same for every network, stronger with severity, and independent of the network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xfer.data.loader import iter_batches
from xfer.measure.accuracy import evaluate
from xfer.measure.robustness import (
    NOISES,
    OCCLUSION_GREY,
    SEVERITIES,
    SEVERITY_VALUES,
    accuracies_under,
    noise_sample,
    noisy_accuracies,
    noisy_batches,
)
from xfer.records import MAX_NOISE_IMAGES, NOISE_KINDS
from xfer.seeding import derive_seed

each_noise = pytest.mark.parametrize("kind", NOISES)
DETERMINISTIC = {"blur", "jpeg", "grey"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photo_like(images, size, seed=0):
    """Images similar to photos: coarse colour fields with weaker finer structure."""
    draws = seeded(seed)
    values = torch.zeros(images, 3, size, size)
    for cells in (2, 4, 8, 16):
        coarse = torch.randn(images, 3, cells, cells, generator=draws) / cells
        values += nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (128 + 140 * values).round().clamp(0, 255).to(torch.uint8)


def error(noisy, clean):
    return float((noisy.double() - clean.double()).square().mean())


class Brightest(nn.Module):
    """Predicts the brightest channel of the upper left quarter, which noise can change."""

    def forward(self, images):
        half = images.shape[-1] // 2
        return images[:, :, :half, :half].mean(dim=(2, 3))


def prepare(pixels):
    return pixels.float()


def test_every_kind_has_severity_values():
    assert NOISES.keys() == SEVERITY_VALUES.keys() == set(NOISE_KINDS)
    assert [noise.__name__ for noise in NOISES.values()] == list(NOISE_KINDS)


@each_noise
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 28, 28), (2, 3, 20, 36)])
def test_shape_and_dtype_stay_and_the_input_is_not_modified(kind, shape):
    images = torch.randint(256, shape, generator=seeded(7), dtype=torch.uint8)
    before = images.clone()
    for severity in SEVERITIES:
        noisy = NOISES[kind](images, severity, seeded())
        assert (noisy.shape, noisy.dtype) == (images.shape, torch.uint8)
        assert not torch.equal(noisy, before)
    assert torch.equal(images, before), "the input was modified"


@each_noise
@pytest.mark.parametrize("size", [28, 96])
def test_the_error_grows_with_the_severity(kind, size):
    images = photo_like(24, size)
    errors = [error(NOISES[kind](images, severity, seeded(severity)), images) for severity in SEVERITIES]
    assert errors[0] > 0
    assert all(milder < severer for milder, severer in itertools.pairwise(errors)), errors


@each_noise
def test_the_error_on_real_photos_grows_with_the_severity(kind, shared_data):
    files = sorted((shared_data / "hymenoptera").rglob("*.jpg"))[:16]
    photos = [np.array(Image.open(file).convert("RGB").resize((96, 96))) for file in files]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
    errors = [error(NOISES[kind](images, severity, seeded(severity)), images) for severity in SEVERITIES]
    assert all(milder < severer for milder, severer in itertools.pairwise([0, *errors])), errors


@each_noise
@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_an_invalid_severity_is_refused(kind, severity):
    with pytest.raises(
        ValueError, match=rf"severity of {kind} must be an integer from 1 .* to 5 \(severe\), got {severity}"
    ):
        NOISES[kind](photo_like(1, 16), severity, seeded())


@each_noise
def test_noise_depends_only_on_the_given_generator(kind):
    images = photo_like(2, 24)
    torch.manual_seed(1)
    global_state = torch.get_rng_state()
    first = NOISES[kind](images, 3, seeded(3))
    assert torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(2)
    assert torch.equal(NOISES[kind](images, 3, seeded(3)), first)
    assert torch.equal(NOISES[kind](images, 3, seeded(4)), first) is (kind in DETERMINISTIC)


@each_noise
def test_the_memory_layout_does_not_affect_the_noise(kind):
    images = photo_like(2, 24)
    noisy = NOISES[kind](images.contiguous(memory_format=torch.channels_last), 3, seeded(3))
    assert torch.equal(noisy, NOISES[kind](images, 3, seeded(3)))


@each_noise
def test_a_card_describes_the_noise_and_its_cause(kind):
    what, _, when = (NOISES[kind].__doc__ or "").partition("\n\n")
    assert len(what) > 30
    assert len(when.strip()) > 60


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_listed_deviation(severity):
    flat = torch.full((4, 3, 64, 64), 127, dtype=torch.uint8)
    draws = torch.randn(flat.shape, generator=seeded(1))
    expected = (127 + 255 * SEVERITY_VALUES["gaussian"][severity - 1] * draws).round().clamp(0, 255)
    assert torch.equal(NOISES["gaussian"](flat, severity, seeded(1)).float(), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_salt_and_pepper_turn_the_listed_fraction_of_pixels_black_or_white(severity):
    flat = torch.full((8, 3, 100, 100), 90, dtype=torch.uint8)
    noisy = NOISES["salt_and_pepper"](flat, severity, seeded())
    assert torch.equal(noisy.amin(dim=1), noisy.amax(dim=1))  # all three channels together
    fraction = SEVERITY_VALUES["salt_and_pepper"][severity - 1]
    for value in (0, 255):
        assert float((noisy == value).double().mean()) == pytest.approx(fraction / 2, rel=0.2)
    assert set(noisy.unique().tolist()) == {0, 90, 255}


def test_speckle_leaves_black_black_and_is_proportional_elsewhere():
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[..., 32:] = 100
    noisy = NOISES["speckle"](images, 2, seeded())
    assert not noisy[..., :32].any()
    assert float(noisy[..., 32:].double().std()) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [28, 50])
def test_occlusion_is_one_grey_square_inside_the_image(severity, size):
    images = torch.zeros(64, 3, size, size, dtype=torch.uint8)
    occluded = NOISES["occlusion"](images, severity, seeded()) == OCCLUSION_GREY
    side = round(SEVERITY_VALUES["occlusion"][severity - 1] * size)
    for axis in (2, 3):
        assert (occluded.any(dim=axis).sum(dim=-1) == side).all()
    assert (occluded.sum(dim=(2, 3)) == side**2).all()
    assert (
        len({tuple(mask.flatten().nonzero()[0].tolist()) for mask in occluded}) > 10
    )  # positions differ between images


def test_blur_equals_scipys_gaussian_and_scales_with_the_image():
    from scipy.ndimage import gaussian_filter

    for size in (40, 80):
        image = photo_like(1, size)
        deviation = SEVERITY_VALUES["blur"][4] * size
        expected = gaussian_filter(image[0].double().numpy(), (0, deviation, deviation), mode="mirror", truncate=3)
        assert np.abs(NOISES["blur"](image, 5, seeded())[0].numpy() - expected).max() < 2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_grey_interpolates_to_pillows_greyscale_at_severity_5(severity):
    images = photo_like(2, 32)
    luminance = np.stack([np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images])
    expected = images + SEVERITY_VALUES["grey"][severity - 1] * (
        torch.from_numpy(luminance.astype(float))[:, None] - images
    )
    noisy = NOISES["grey"](images, severity, seeded())
    assert (noisy - expected).abs().max() <= 1.01
    assert torch.equal(noisy[:, 0], noisy[:, 2]) is (severity == 5)


def test_grey_does_not_change_images_without_colour():
    images = photo_like(2, 32)[:, :1].repeat(1, 3, 1, 1)
    assert torch.equal(NOISES["grey"](images, 5, seeded()), images)


def correct_one_by_one(images, labels, indices, kind, severity):
    """Whether each image is correct under one kind and severity, computed one at a time."""
    correct = []
    for image, label, index in zip(images, labels, indices, strict=True):
        draws = seeded(derive_seed("noise", kind, severity, int(index)))
        correct.append(bool(Brightest()(NOISES[kind](image[None], severity, draws).float()).argmax() == label))
    return correct


@pytest.fixture
def examples():
    """23 images, labels that are correct for the clean images, and their indices in a pack."""
    images = photo_like(23, 24, seed=5)
    return images, Brightest()(images.float()).argmax(dim=1), np.arange(100, 123)[::-1].copy()


def test_every_image_gets_every_kind_and_severities_in_turn(examples):
    images, labels, indices = examples
    scores = noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, indices)
    assert [(noisy.kind, noisy.severity) for noisy in scores] == list(itertools.product(NOISES, SEVERITIES))
    for noisy in scores:
        selected = slice(noisy.severity - 1, None, 5)
        right = correct_one_by_one(images[selected], labels[selected], indices[selected], noisy.kind, noisy.severity)
        assert (noisy.images, noisy.correct) == (len(right), sum(right)), noisy
    assert 0 < sum(noisy.correct for noisy in scores) < sum(noisy.images for noisy in scores)


def test_several_networks_get_the_same_copies_which_are_made_once(examples, monkeypatch):
    images, labels, indices = examples
    made = []
    blur = NOISES["blur"]
    monkeypatch.setitem(NOISES, "blur", lambda *arguments: made.append(1) or blur(*arguments))
    networks = [Brightest(), nn.Sequential(Brightest(), nn.Softmin(dim=1)), Brightest()]

    def predict(noisy):
        return [network(noisy.float()) for network in networks]

    together = accuracies_under("blur", predict, split(images, labels, 5), indices)
    assert len(made) == len(images)
    alone = [noisy_accuracies(network, lambda: [(images, labels)], prepare, indices) for network in networks]
    assert together == [tuple(score for score in scores if score.kind == "blur") for scores in alone]
    assert together[0] == together[2] != together[1]


def test_noise_is_measured_on_all_images_of_a_small_part():
    labels, indices = np.arange(40) % 4, np.arange(5, 40)
    assert noise_sample(labels, indices, 0).tolist() == indices.tolist()


def test_noise_is_measured_on_a_fixed_stratified_sample_of_a_large_part():
    labels = np.repeat([0, 1, 2], (6_000, 3_000, 100))
    indices = np.arange(0, len(labels), 2)
    sample = noise_sample(labels, indices, 3)
    assert len(sample) == MAX_NOISE_IMAGES
    assert np.all(np.diff(sample) > 0)
    assert np.isin(sample, indices).all()
    assert np.abs(np.bincount(labels[sample]) - MAX_NOISE_IMAGES * np.array([6_000, 3_000, 100]) / 9_100).max() <= 1
    assert noise_sample(labels, indices, 3).tolist() == sample.tolist() != noise_sample(labels, indices, 4).tolist()


def test_a_noisy_copy_assigns_kinds_and_severities_in_turn(examples):
    images, labels, _ = examples
    images, labels = images.repeat(2, 1, 1, 1)[:40], labels.repeat(2)[:40]
    indices = range(200, 240)
    (copies, same_labels), *rest = noisy_batches([(images, labels)], indices)
    assert rest == []
    assert torch.equal(same_labels, labels)
    assignments = [(kind, severity) for severity in SEVERITIES for kind in NOISES]
    for position, (copy, image) in enumerate(zip(copies, images, strict=True)):
        kind, severity = assignments[position % 35]
        draws = seeded(derive_seed("noise", kind, severity, indices[position]))
        assert torch.equal(copy, NOISES[kind](image[None], severity, draws)[0]), position


def split(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 5, 8])
def test_the_batch_size_does_not_affect_the_scores(examples, size):
    images, labels, indices = examples
    expected = noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, indices)
    assert noisy_accuracies(Brightest(), lambda: iter(split(images, labels, size)), prepare, indices) == expected
    ((copy, _),) = noisy_batches([(images, labels)], indices)
    assert torch.equal(torch.cat([chunk for chunk, _ in noisy_batches(split(images, labels, size), indices)]), copy)


def test_noisy_images_keep_the_memory_layout_and_the_input_is_not_modified(pack):
    indices = np.arange(len(pack.labels))[4:20]
    clean = [(images.clone(), labels) for images, labels in iter_batches(pack, indices, 6)]
    batches = list(iter_batches(pack, indices, 6))
    copies = list(noisy_batches(batches, indices))
    for (copy, _), (image, _), (before, _) in zip(copies, batches, clean, strict=True):
        assert copy.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(image, before)
        assert not torch.equal(copy, before)
    evaluation = evaluate(Brightest(), noisy_batches(batches, indices), prepare, "val", indices)
    assert evaluation.images == tuple(indices)


def test_a_network_is_evaluated_in_evaluation_mode(examples):
    images, labels, indices = examples
    model = nn.Sequential(nn.Dropout(0.9), Brightest()).train()
    scores = noisy_accuracies(model, lambda: [(images, labels)], prepare, indices)
    assert scores == noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, indices)
    assert not model.training


def test_with_fewer_images_than_severities_some_are_missing(examples):
    images, labels, indices = (part[:3] for part in examples)
    scores = noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, indices)
    assert {(noisy.severity, noisy.images) for noisy in scores} == {(1, 1), (2, 1), (3, 1)}


@pytest.mark.parametrize(
    ("indices", "message"), [(22, "got 22 indices for at least 23 images"), (24, "got 24 indices for 23 images")]
)
def test_a_wrong_number_of_indices_is_refused(examples, indices, message):
    images, labels, _ = examples
    with pytest.raises(ValueError, match=f"{message}: give the index in the pack of every image"):
        noisy_accuracies(Brightest(), lambda: [(images, labels)], prepare, range(indices))
    with pytest.raises(ValueError, match=message):
        list(noisy_batches([(images, labels)], range(indices)))
