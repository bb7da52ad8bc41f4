"""Noise: corruptions of the images that a network is evaluated on, never of those that it is trained on.

Several kinds, each at five severities, follow Hendrycks & Dietterich 2019, arXiv:1903.12261; the kinds and values are
our own, so results are not comparable with theirs. Widths are relative to the image's side, so that a 28-pixel doodle
and a 300-pixel photo get the same noise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torchvision.transforms.v2 import functional

from xfer.data.loader import Batch
from xfer.data.split import Indices, stratified_sample
from xfer.measure.accuracy import Preprocess
from xfer.records import MAX_NOISE_IMAGES, NOISE_KINDS, CorruptionScore
from xfer.seeding import derive_seed

Noise = Callable[[Tensor, int, Generator], Tensor]
"""Maps uint8 images [N, 3, H, W] on the CPU and a severity from 1 to 5 to images of the same shape and dtype."""

SEVERITY_VALUES: dict[str, tuple[float, float, float, float, float]] = {
    # severity         1     2     3     4     5
    "gaussian": (0.04, 0.08, 0.13, 0.20, 0.30),  # standard deviation, relative to the range from black to white
    "salt_and_pepper": (0.01, 0.03, 0.06, 0.12, 0.20),  # fraction of the pixels
    "speckle": (0.10, 0.20, 0.32, 0.45, 0.60),  # standard deviation, relative to the pixel's value
    "occlusion": (0.20, 0.30, 0.40, 0.50, 0.60),  # side of the square, relative to the image's side
    "blur": (0.015, 0.020, 0.025, 0.035, 0.050),  # standard deviation of the Gaussian, relative to the image's side
    "jpeg": (50, 30, 20, 12, 6),  # quality, of 100
    "grey": (0.2, 0.4, 0.6, 0.8, 1.0),  # fraction of the colour that is removed
}
"""Strength of each kind of noise at each severity."""
SEVERITIES = (1, 2, 3, 4, 5)
OCCLUSION_GREY = 128
"""Grey value of an occluding square: visible on photos and on black or white paper."""


def gaussian(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Adds independent normally distributed noise to every value of every pixel.

    Sensor noise in low light: it hides fine texture and preserves shapes. Values are clipped at black and white, so
    plain paper is disturbed only half as often as a photo.
    """
    deviation = 255 * _severity_value("gaussian", severity)
    return _to_uint8(images + deviation * torch.randn(images.shape, generator=generator))


def salt_and_pepper(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Turns random pixels black or white with equal probability, and leaves the others unchanged.

    Dead pixels and transmission errors. It preserves most of the picture, but each speck is an edge in every direction.
    """
    fraction = _severity_value("salt_and_pepper", severity)
    draw = torch.rand((len(images), 1, *images.shape[2:]), generator=generator)
    return torch.where(draw < fraction / 2, 0, torch.where(draw >= 1 - fraction / 2, 255, images)).to(torch.uint8)


def speckle(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Multiplies every value of every pixel by 1 plus independent normally distributed noise.

    Coherent light, radar and ultrasound: bright areas suffer, black ones stay black. A white drawing on black paper is
    disturbed only in its strokes.
    """
    deviation = _severity_value("speckle", severity)
    return _to_uint8(images * (1 + deviation * torch.randn(images.shape, generator=generator)))


def occlusion(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Covers part of each image with a grey square, entirely inside it, at a random position.

    An obstacle in front of the object: exposes networks that rely on a single part. A square that misses the object
    hides nothing. The shape is that of Cutout (DeVries & Taylor 2017, arXiv:1708.04552), which is for training.
    """
    fraction = _severity_value("occlusion", severity)
    mask = torch.ones(len(images), 1, 1, 1, dtype=torch.bool)
    for axis in (2, 3):
        length = images.shape[axis]
        side = max(1, round(fraction * length))
        start = (torch.rand(len(images), generator=generator) * (length - side + 1)).floor()
        offset = torch.arange(length) - start[:, None]
        inside = (offset >= 0) & (offset < side)
        mask = mask & (inside[:, None, :, None] if axis == 2 else inside[:, None, None, :])
    return torch.where(mask, OCCLUSION_GREY, images).to(torch.uint8)


def blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Smooths the image with a Gaussian; deterministic.

    A lens out of focus: texture disappears first, outlines last. Enlarging a small image has the same effect, so images
    that were small before they were packed lose little.
    """
    deviation = _severity_value("blur", severity) * images.shape[-1]
    width = 2 * math.ceil(3 * deviation) + 1
    # Separable: the same result, and at 224 pixels many times faster than a square kernel.
    smoothed: Tensor = images.float().contiguous()
    for kernel in ([width, 1], [1, width]):
        smoothed = functional.gaussian_blur(smoothed, kernel, [deviation, deviation])
    return _to_uint8(smoothed)


def jpeg(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Compresses the image as a JPEG of low quality; deterministic.

    Images from the web: blocks of 8 x 8 pixels, ringing at edges, coarse colour. The blocks do not scale with the
    image, so a small image suffers more than a large one.
    """
    quality = int(_severity_value("jpeg", severity))
    compressed = torch.empty_like(images)
    for image, output in zip(images, compressed, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
        output.copy_(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return compressed


def grey(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Removes colour, all of it at severity 5; deterministic.

    Shows how much a network relies on colour. The luminance of ITU-R BT.601 is preserved. Greyscale images are
    unchanged, so on grey data this kind repeats the clean accuracy.
    """
    fraction = _severity_value("grey", severity)
    luminance = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * images).sum(dim=1, keepdim=True)
    return _to_uint8(images + fraction * (luminance - images))


NOISES: dict[str, Noise] = dict(
    zip(NOISE_KINDS, (gaussian, salt_and_pepper, speckle, occlusion, blur, jpeg, grey), strict=True)
)


Predict = Callable[[Tensor], Sequence[Tensor]]
"""Maps uint8 images [B, 3, H, W] on the CPU to the logits [B, C] of each of some networks in evaluation mode."""


def noise_sample(labels: Indices, indices: Indices, seed: int) -> Indices:
    """Return the images of a part on which networks are evaluated under noise: at most MAX_NOISE_IMAGES, by class.

    Args:
        labels: classes of all images of the pack.
        indices: the images of the part.
        seed: the recipe's `split_seed`, so that all runs of a sweep have the same sample.
    """
    return stratified_sample(labels, indices, MAX_NOISE_IMAGES, derive_seed(seed, "noise sample"))


def accuracies_under(
    kind: str, predict: Predict, batches: Iterable[Batch], indices: Iterable[int]
) -> list[tuple[CorruptionScore, ...]]:
    """Evaluate networks under one kind of noise. Each image is corrupted once for all of them.

    The five severities are assigned to the images in turn, in the order of the batches, so each is measured on a fifth
    of them. The noise depends only on kind, severity and the image's index: every network gets the same copies,
    independent of the batch size. With fewer than five images some severities are missing.

    Args:
        kind: a name in `NOISES`.
        predict: the networks.
        batches: uint8 images [B, 3, H, W] and labels [B].
        indices: the images' indices in the pack, in the order of the batches.

    Returns:
        For each network one score per severity.

    Raises:
        ValueError: If the number of indices is not the number of images.
    """
    image_indices = [int(index) for index in indices]
    severities = [SEVERITIES[position % len(SEVERITIES)] for position in range(len(image_indices))]
    hits = []
    with torch.inference_mode():
        for pixels, labels, positions in _with_positions(batches, len(image_indices)):
            noisy = _add_noise(
                pixels, [(kind, severities[position], image_indices[position]) for position in positions]
            )
            predicted = torch.stack([logits.float().argmax(dim=1) for logits in predict(noisy)])
            hits.append(predicted == labels.to(predicted.device))
    correct, image_severities = torch.cat(hits, dim=1).cpu(), torch.tensor(severities)
    selections = {severity: image_severities == severity for severity in sorted(set(severities))}
    return [
        tuple(
            CorruptionScore(kind, severity, int(selected.sum()), int(network[selected].sum()))
            for severity, selected in selections.items()
        )
        for network in correct
    ]


def noisy_accuracies(
    model: nn.Module, batches: Callable[[], Iterable[Batch]], prepare: Preprocess, indices: Iterable[int]
) -> tuple[CorruptionScore, ...]:
    """Evaluate a network, which is left in evaluation mode, under every kind of noise, in one pass per kind.

    Args:
        model: maps preprocessed images to logits [B, C].
        batches: called once per pass; returns uint8 images [B, 3, H, W] and labels [B].
        prepare: preprocesses the images.
        indices: the images' indices in the pack, in the order of the batches.

    Returns:
        One score for each kind and severity, see `accuracies_under`.

    Raises:
        ValueError: If the number of indices is not the number of images.
    """
    model.eval()
    image_indices = list(indices)
    return tuple(
        score
        for kind in NOISES
        for score in accuracies_under(kind, lambda noisy: [model(prepare(noisy))], batches(), image_indices)[0]
    )


def noisy_batches(batches: Iterable[Batch], indices: Iterable[int]) -> Iterator[Batch]:
    """Yields one noisy copy of the batches, to be evaluated like the clean ones: the cheap measure for every epoch.

    All kinds at all severities are assigned to the images in turn, kinds first, so 35 images cover every combination.
    An image gets the same noise as in `noisy_accuracies` under that kind and severity.

    Args:
        batches: uint8 images [B, 3, H, W] and labels [B]; not modified.
        indices: the images' indices in the pack, in the order of the batches.

    Raises:
        ValueError: If the number of indices is not the number of images.
    """
    kinds = tuple(NOISES)
    image_indices = [int(index) for index in indices]
    assignments = [
        (kinds[position % len(kinds)], SEVERITIES[position // len(kinds) % len(SEVERITIES)], index)
        for position, index in enumerate(image_indices)
    ]
    for pixels, labels, positions in _with_positions(batches, len(image_indices)):
        yield _add_noise(pixels, assignments[positions.start : positions.stop]), labels


def _with_positions(batches: Iterable[Batch], count: int) -> Iterator[tuple[Tensor, Tensor, range]]:
    """Yields each batch with its images' positions; raises unless the batches hold `count` images in total."""
    end = 0
    for pixels, labels in batches:
        positions = range(end, end := end + len(pixels))
        if end > count:
            break
        yield pixels, labels, positions
    if end != count:
        raise ValueError(
            f"got {count} indices for {'at least ' * (end > count)}{end} images: give the index in the pack of every "
            "image, in the order of the batches"
        )


def _add_noise(pixels: Tensor, assignments: list[tuple[str, int, int]]) -> Tensor:
    """Returns a copy of the images with the (kind, severity, index) assigned to each; the index seeds the noise."""
    noisy = torch.empty_like(pixels)  # same memory format: another one would be slower
    for row, (kind, severity, index) in enumerate(assignments):
        generator = Generator().manual_seed(derive_seed("noise", kind, severity, index))
        noisy[row] = NOISES[kind](pixels[row : row + 1], severity, generator)[0]
    return noisy


def _severity_value(kind: str, severity: int) -> float:
    if severity not in SEVERITIES:
        raise ValueError(f"severity of {kind} must be an integer from 1 (mild) to 5 (severe), got {severity}")
    return SEVERITY_VALUES[kind][SEVERITIES.index(severity)]


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
