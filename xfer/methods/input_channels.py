"""Colours: what a network sees of an image, in training as in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class InputChannels:
    """How pixels reach the network."""

    channels: int
    """How many channels its stem takes."""
    convert: Callable[[Tensor], Tensor]
    """uint8 [N, 3, H, W] to uint8 [N, channels, H, W]."""


def rgb() -> InputChannels:
    """Red, green and blue, as the network was pretrained with.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return InputChannels(3, lambda images: images)


def grey() -> InputChannels:
    """Luminance, copied to three channels: one-channel images for a network that expects colours.

    Leaves the network as it was; the usual way, and how source 002 measured what colour is worth.

    Measured: 69.1% ± 9.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return InputChannels(3, lambda images: functional.rgb_to_grayscale(images, num_output_channels=3))


def grey_stem() -> InputChannels:
    """Luminance alone: the stem is made to take one channel by summing its weights over the three.

    The same features as `grey` up to how each colour was scaled, for a third of the first layer's work. Summing is what
    timm does for one channel (Wightman 2019).

    Measured: 72.6% ± 7.4% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return InputChannels(1, lambda images: functional.rgb_to_grayscale(images, num_output_channels=1))


INPUT_CHANNELS: dict[str, Callable[[], InputChannels]] = {f.__name__: f for f in (rgb, grey, grey_stem)}
