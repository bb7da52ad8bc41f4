"""Mixing: what happens to a batch. uint8 images [N, 3, H, W] and target probabilities [N, C] in, the same out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor
from torchvision.transforms import v2

from xfer.randomness import drawing_from

Mixing = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


def none() -> Mixing:
    """The batch as it is."""
    return lambda images, targets, generator: (images, targets)


def cutmix(alpha: float = 1.0) -> Mixing:
    """A box of each image replaced by its neighbour's, the targets mixed by area (Yun et al. 2019).

    The share of a batch that is kept is drawn from Beta(alpha, alpha), once per batch.
    """

    def mix(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        with drawing_from(generator):
            mixed: tuple[Tensor, Tensor] = v2.CutMix(alpha=alpha, num_classes=targets.shape[1])(
                images, targets.argmax(dim=1)
            )
        return mixed

    return mix


MIXINGS: dict[str, Callable[..., Mixing]] = {f.__name__: f for f in (none, cutmix)}
