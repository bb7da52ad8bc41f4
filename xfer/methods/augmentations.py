"""Augmentations: what happens to an image. uint8 [N, 3, H, W] in, the same out, drawn anew for every image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torchvision.transforms import v2

from xfer.randomness import drawing_from

Augmentation = Callable[[Tensor, Generator], Tensor]


def none() -> Augmentation:
    """Images as they are."""
    return lambda images, generator: images


def flip() -> Augmentation:
    """Each image mirrored left to right with probability 1/2."""

    def augment(images: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)

    return augment


def randaugment(num_ops: int = 2, magnitude: int = 9) -> Augmentation:
    """`flip`, then `num_ops` random operations of strength `magnitude` of 30 on each image (Cubuk et al. 2020)."""
    mirror = flip()
    distort = v2.RandAugment(num_ops=num_ops, magnitude=magnitude)

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)
        # torchvision draws once for a whole batch, so every image goes through on its own.
        with drawing_from(generator):
            return torch.stack([distort(image) for image in images])

    return augment


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {f.__name__: f for f in (none, flip, randaugment)}
