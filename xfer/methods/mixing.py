"""Mixing: what happens to a batch. uint8 images [N, 3, H, W] and target probabilities [N, C] in, the same out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torchvision.transforms import v2

from xfer.seeding import use_generator

Mixing = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


def none() -> Mixing:
    """The batch as it is.

    The measure for the others, and right for short trainings: mixing pays off late.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda images, targets, generator: (images, targets)


def cutmix(alpha: float = 1.0) -> Mixing:
    """A box of each image replaced by its neighbour's, the targets mixed by area.

    Against overfitting in long trainings, with pixels that stay natural. A box may take away all that a class is known
    by, and the target still claims it. Yun et al. 2019.

    The share of a batch that is kept is drawn from Beta(alpha, alpha), once per batch.

    Measured: 70.5% ± 2.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    _check(alpha)

    def mix(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        with use_generator(generator):
            mixed: tuple[Tensor, Tensor] = v2.CutMix(alpha=alpha, num_classes=targets.shape[1])(
                images, targets.argmax(dim=1)
            )
        return mixed

    return mix


def mixup(alpha: float = 0.2) -> Mixing:
    """Each image blended with its neighbour, the targets in the same proportion.

    Against overfitting and against being too sure, in long trainings. No photo looks like a blend: a large `alpha`
    makes a network underfit, most of all where fine details count. Zhang et al. 2018, who use 0.1 to 0.4 on ImageNet.

    The share of a batch that is kept is drawn from Beta(alpha, alpha), once per batch. Images are blended as floats and
    rounded to whole values, which moves a pixel by half a value of 255 at most; targets are not rounded.

    Measured: 78.8% ± 3.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    _check(alpha)

    def mix(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        with use_generator(generator):
            blend, targets = v2.MixUp(alpha=alpha)(images.float(), targets)
        return blend.round().to(torch.uint8), targets

    return mix


def _check(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(
            f"alpha is the parameter of Beta(alpha, alpha), from which the shares of a mixture are drawn: above 0, not "
            f"{alpha}. Small ones keep an image nearly whole, 1 draws any share alike, large ones mix half and half"
        )


MIXINGS: dict[str, Callable[..., Mixing]] = {f.__name__: f for f in (none, cutmix, mixup)}
