"""Augmented views: a fixed number of augmented versions of each image.

Features of a frozen network part are computed once per image. With a new augmentation in every epoch there would be
nothing to reuse, and without augmentation it would be a different recipe. So each image has a fixed number of views,
which depend only on its index in the pack, the augmentation and the number of the view.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from xfer.choices import Choice
from xfer.data.split import Indices
from xfer.methods.augmentations import AUGMENTATIONS, Augmentation
from xfer.seeding import derive_seed


def augmented_view(images: Tensor, indices: Indices, augmentation: Choice, view: int) -> Tensor:
    """Return one view of each image. It does not depend on the other images in the batch.

    Args:
        images: uint8 [B, 3, H, W], as the pack holds them.
        indices: of the images in the pack, [B].
        augmentation: how to augment.
        view: number of the view, counted from 0.

    Returns:
        uint8 [B, 3, H, W] in channels_last order.
    """
    augment: Augmentation = augmentation.build(AUGMENTATIONS)
    views = [
        augment(image[None], Generator().manual_seed(derive_seed("version", str(augmentation), view, int(index))))
        for image, index in zip(images, indices, strict=True)
    ]
    return torch.cat(views).contiguous(memory_format=torch.channels_last)
