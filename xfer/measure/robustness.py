"""Noise: what happens to images that a network is judged by, and never to those that it is trained on.

That there are several kinds, each at five severities, is the idea of Hendrycks & Dietterich 2019; kinds and values are
our own, so no figure is comparable with theirs. What has a width on the image is a share of the image's side, so that a
28-pixel doodle and a 300-pixel photo meet the same noise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torchvision.transforms.v2 import functional

from xfer.data.loader import Batch
from xfer.measure.accuracy import Preprocess
from xfer.records import CorruptionScore
from xfer.seeding import derive_seed

Noise = Callable[[Tensor, int, Generator], Tensor]
"""uint8 images [N, 3, H, W] on the CPU and a severity from 1 to 5 to images of the same shape and type."""

SEVERITY_VALUES: dict[str, tuple[float, float, float, float, float]] = {
    # severity         1     2     3     4     5
    "gaussian": (0.04, 0.08, 0.13, 0.20, 0.30),  # standard deviation, of the range from black to white
    "salt_and_pepper": (0.01, 0.03, 0.06, 0.12, 0.20),  # share of the pixels
    "speckle": (0.10, 0.20, 0.32, 0.45, 0.60),  # standard deviation, of the pixel's own value
    "occlusion": (0.20, 0.30, 0.40, 0.50, 0.60),  # side of the square, of the image's side
    "blur": (0.015, 0.020, 0.025, 0.035, 0.050),  # standard deviation of the Gaussian, of the image's side
    "jpeg": (50, 30, 20, 12, 6),  # quality, of 100
    "grey": (0.2, 0.4, 0.6, 0.8, 1.0),  # share of the colour that is taken away
}
"""How strong each kind of noise is at each severity."""
SEVERITIES = (1, 2, 3, 4, 5)
OCCLUSION_GREY = 128
"""What an occluding square shows: visible on photos as on black or white paper."""


def gaussian(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add to every value of every pixel a draw of its own from a normal distribution.

    What a sensor does in little light: it hides fine texture and leaves shapes. Values are cut off at black and white,
    so plain paper is disturbed only half as often as a photo.
    """
    deviation = 255 * _grade("gaussian", severity)
    return _pixels(images + deviation * torch.randn(images.shape, generator=generator))


def salt_and_pepper(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Turn pixels chosen by chance black or white, one as often as the other, and leave the rest as it is.

    What dead pixels and lost bits do. It keeps most of the picture, yet each speck is an edge in every direction.
    """
    share = _grade("salt_and_pepper", severity)
    draw = torch.rand((len(images), 1, *images.shape[2:]), generator=generator)
    return torch.where(draw < share / 2, 0, torch.where(draw >= 1 - share / 2, 255, images)).to(torch.uint8)


def speckle(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Multiply every value of every pixel by 1 plus a draw of its own from a normal distribution.

    What coherent light, radar and ultrasound do: bright places suffer, black ones stay black. Of a white drawing on
    black paper it disturbs the strokes alone.
    """
    deviation = _grade("speckle", severity)
    return _pixels(images * (1 + deviation * torch.randn(images.shape, generator=generator)))


def occlusion(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Lay a grey square on the image, wholly inside it, at a place drawn for each image.

    What something in front of the object does: a network that looks at one part alone is found out. A square that
    falls beside the object hides nothing. The shape of Cutout (DeVries & Taylor 2017), which is for training.
    """
    share = _grade("occlusion", severity)
    hidden = torch.ones(len(images), 1, 1, 1, dtype=torch.bool)
    for axis in (2, 3):
        length = images.shape[axis]
        side = max(1, round(share * length))
        start = (torch.rand(len(images), generator=generator) * (length - side + 1)).floor()
        place = torch.arange(length) - start[:, None]
        inside = (place >= 0) & (place < side)
        hidden = hidden & (inside[:, None, :, None] if axis == 2 else inside[:, None, None, :])
    return torch.where(hidden, OCCLUSION_GREY, images).to(torch.uint8)


def blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Smooth the image with a Gaussian; there is no chance in it.

    What a lens out of focus does: texture goes first, outlines last. It also does what enlarging a small image does,
    so it costs little on images that were small before they were packed.
    """
    deviation = _grade("blur", severity) * images.shape[-1]
    width = 2 * math.ceil(3 * deviation) + 1
    # One axis after the other: the same, and at 224 pixels many times faster than a square kernel.
    smooth: Tensor = images.float().contiguous()
    for kernel in ([width, 1], [1, width]):
        smooth = functional.gaussian_blur(smooth, kernel, [deviation, deviation])
    return _pixels(smooth)


def jpeg(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Send the image through JPEG at low quality and back; there is no chance in it.

    What the web does: blocks of 8 x 8 pixels, ringing at edges, coarse colour. Blocks are not scaled with the image: a
    small image suffers more than a large one.
    """
    quality = int(_grade("jpeg", severity))
    damaged = torch.empty_like(images)
    for image, into in zip(images, damaged, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
        into.copy_(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return damaged


def grey(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Take colour away, at severity 5 all of it; there is no chance in it.

    It tells how much a network leans on colour. The luminance of ITU-R BT.601 stays. Images that are grey already stay
    as they are, so on grey data this kind repeats the clean accuracy.
    """
    share = _grade("grey", severity)
    luminance = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * images).sum(dim=1, keepdim=True)
    return _pixels(images + share * (luminance - images))


NOISES: dict[str, Noise] = {f.__name__: f for f in (gaussian, salt_and_pepper, speckle, occlusion, blur, jpeg, grey)}


def noisy_accuracies(
    model: nn.Module, batches: Callable[[], Iterable[Batch]], prepare: Preprocess, places: Iterable[int]
) -> tuple[CorruptionScore, ...]:
    """How a network, which is left in evaluation mode, does under every kind of noise: one pass for each.

    Every image meets every kind once. The five severities are dealt to the images in turn, in the order of the batches,
    so each rests on a fifth of them. The noise follows from kind, severity and the image's place alone: every network
    meets the same copies, however large the batches are. Fewer than five images leave severities out.

    Args:
        model: logits [B, C] from prepared images.
        batches: called for each pass, uint8 images [B, 3, H, W] and labels [B].
        prepare: what stands between the two.
        places: the images' places in the pack, in the order of the batches.

    Raises:
        ValueError: there are more or fewer places than images.
    """
    model.eval()
    known = [int(place) for place in places]
    dealt = [SEVERITIES[position % len(SEVERITIES)] for position in range(len(known))]
    found = []
    for kind in NOISES:
        hits = []
        with torch.inference_mode():
            for pixels, labels, here in _placed(batches(), len(known)):
                copy = _copy(pixels, [(kind, dealt[position], known[position]) for position in here])
                predicted = model(prepare(copy)).float().argmax(dim=1)
                hits.append(predicted == labels.to(predicted.device))
        right, met = torch.cat(hits).cpu(), torch.tensor(dealt)
        for severity in sorted(set(dealt)):
            mine = right[met == severity]
            found.append(CorruptionScore(kind, severity, len(mine), int(mine.sum())))
    return tuple(found)


def noisy_batches(batches: Iterable[Batch], places: Iterable[int]) -> Iterator[Batch]:
    """One noisy copy of the batches, to be evaluated like the clean ones: the cheap measure for every epoch.

    All kinds at all severities are dealt to the images in turn, kinds first, so one pass over 35 images meets each of
    them. The noise of an image is the one that it meets in `noisy_accuracies` under that kind and severity.

    Args:
        batches: uint8 images [B, 3, H, W] and labels [B]; what they hold is not changed.
        places: the images' places in the pack, in the order of the batches.

    Raises:
        ValueError: there are more or fewer places than images.
    """
    kinds = tuple(NOISES)
    known = [int(place) for place in places]
    dealt = [
        (kinds[position % len(kinds)], SEVERITIES[position // len(kinds) % len(SEVERITIES)], place)
        for position, place in enumerate(known)
    ]
    for pixels, labels, here in _placed(batches, len(known)):
        yield _copy(pixels, dealt[here.start : here.stop]), labels


def _placed(batches: Iterable[Batch], places: int) -> Iterator[tuple[Tensor, Tensor, range]]:
    """Each batch with its images' positions in the order of all batches, of which there must be so many."""
    end = 0
    for pixels, labels in batches:
        here = range(end, end := end + len(pixels))
        if end > places:
            break
        yield pixels, labels, here
    if end != places:
        raise ValueError(
            f"{places} places came for {'at least ' * (end > places)}{end} images: give the place in the pack of every "
            "image, in the order of the batches"
        )


def _copy(pixels: Tensor, dealt: list[tuple[str, int, int]]) -> Tensor:
    """The images under what was dealt to each: kind, severity and the place that its chance follows from."""
    copy = torch.empty_like(pixels)  # in the same memory order: another one would be slower
    for row, (kind, severity, place) in enumerate(dealt):
        generator = Generator().manual_seed(derive_seed("noise", kind, severity, place))
        copy[row] = NOISES[kind](pixels[row : row + 1], severity, generator)[0]
    return copy


def _grade(kind: str, severity: int) -> float:
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} of {kind}: it goes from 1 (mild) to 5 (severe)")
    return SEVERITY_VALUES[kind][SEVERITIES.index(severity)]


def _pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
