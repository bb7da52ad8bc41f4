"""Batches from a pack."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from xfer.data.pack import Pack
from xfer.data.split import Indices

Batch = tuple[Tensor, Tensor]
"""uint8 images [B, 3, H, W] in channels_last order, as the pack holds them, and int64 labels [B]."""


def batches(pack: Pack, places: Indices, batch_size: int) -> Iterator[Batch]:
    """The images at `places`, in that order, `batch_size` at a time; the last batch may be smaller."""
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        # Reading in ascending order is what memory maps and disks like; the batch is then put back in order.
        order = np.argsort(chosen)
        images = np.empty((len(chosen), *pack.images.shape[1:]), dtype=np.uint8)
        images[order] = pack.images[chosen[order]]
        yield torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(pack.labels[chosen])


def shuffled(places: Indices, batch_size: int, seed: int) -> Indices:
    """`places` in an order that follows from `seed`, cut so that no batch holds a single image.

    One image has no variance, and batch normalisation needs one; the one left out is another in every epoch.
    """
    order = np.random.default_rng(seed).permutation(places)
    return order[:-1] if len(order) % batch_size == 1 and len(order) > 1 else order
