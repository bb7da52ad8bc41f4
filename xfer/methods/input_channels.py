"""Input channels: which colours of an image the network receives, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class InputChannels:
    """Number of input channels, and the conversion of RGB images to them."""

    channels: int
    """Number of channels of the network's stem."""
    convert: Callable[[Tensor], Tensor]
    """Maps uint8 [N, 3, H, W] to uint8 [N, channels, H, W]."""


def rgb() -> InputChannels:
    """Red, green and blue, as in pretraining.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return InputChannels(3, lambda images: images)


def grey() -> InputChannels:
    """Luminance, copied to three channels: greyscale images for a network that expects colours.

    Leaves the network unchanged; the usual way, and how source 002 measured the value of colour.

    Measured: 69.1% ± 9.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return InputChannels(3, lambda images: functional.rgb_to_grayscale(images, num_output_channels=3))


def grey_stem() -> InputChannels:
    """Luminance only: the stem takes one channel, its weights summed over the three colours.

    Computes the same features as `grey`, up to the scaling of each colour, with a third of the first layer's work.
    Summing the weights is timm's conversion to one channel (Wightman 2019,
    https://github.com/huggingface/pytorch-image-models).

    Measured: 72.6% ± 7.4% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return InputChannels(1, lambda images: functional.rgb_to_grayscale(images, num_output_channels=1))


INPUT_CHANNELS: dict[str, Callable[[], InputChannels]] = {f.__name__: f for f in (rgb, grey, grey_stem)}
