"""Versions: augmented images that are the same for whoever asks.

While the lower part of a network is frozen, what it makes of an image is computed once. An augmentation that drew anew
in every epoch would leave nothing to compute once, and none at all would be another recipe: so each image has a fixed
number of versions, drawn from its place in the pack and the version's number alone.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from xfer.choices import Choice
from xfer.data.split import Indices
from xfer.methods.augmentations import AUGMENTATIONS, Augmentation
from xfer.seeding import derive_seed


def augmented_view(images: Tensor, places: Indices, augmentation: Choice, view: int) -> Tensor:
    """One version of each image, uint8 [B, 3, H, W]: whichever other images are in the batch, and whatever the recipe.

    Args:
        images: uint8 [B, 3, H, W], as the pack holds them.
        places: where in the pack they stand.
        augmentation: what draws.
        view: counted from 0.
    """
    augment: Augmentation = augmentation.build(AUGMENTATIONS)
    drawn = [
        augment(image[None], Generator().manual_seed(derive_seed("version", str(augmentation), view, int(place))))
        for image, place in zip(images, places, strict=True)
    ]
    return torch.cat(drawn).contiguous(memory_format=torch.channels_last)
