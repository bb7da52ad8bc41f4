"""Batches from a pack."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from xfer.data.pack import Pack
from xfer.data.split import Indices

Batch = tuple[Tensor, Tensor]
"""uint8 images [B, 3, H, W] in channels_last order, as the pack holds them, and int64 labels [B]."""


def iter_batches(pack: Pack, places: Indices, batch_size: int) -> Iterator[Batch]:
    """The images at `places`, in that order, `batch_size` at a time; the last batch may be smaller."""
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        # Reading in ascending order is what memory maps and disks like; the batch is then put back in order.
        order = np.argsort(chosen)
        images = np.empty((len(chosen), *pack.images.shape[1:]), dtype=np.uint8)
        images[order] = pack.images[chosen[order]]
        yield torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(pack.labels[chosen])


def to_device(source_batches: Iterator[Batch], device: torch.device, copy_to_gpu: bool) -> Iterator[Batch]:
    """The same batches, brought to a GPU without making it wait; on other devices just as they come.

    For a GPU the next batch is read into pinned memory while this one is worked on, and copied from there in turn with
    the GPU's other tasks: a few megabytes, well under a millisecond, so it needs no stream of its own. Pinning and
    copying have not run on a GPU yet; what surrounds them is tested without.

    Args:
        source_batches: batches in main memory.
        device: where they are wanted.
        copy_to_gpu: whether they are to be on the GPU when they are handed out; else they are left in pinned memory, from
            which they can be copied without waiting.
    """
    if device.type != "cuda":
        yield from source_batches
        return
    for images, labels in prefetch(_pinned(each) for each in source_batches):
        # In the order in which the GPU is told: it is copied before whatever uses it, and torch keeps the pinned memory
        # from being used again before that.
        yield (
            (images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
            if copy_to_gpu
            else (images, labels)
        )


def prefetch(source_batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each read by a thread while the one before is in use: one ahead, never more.

    An error while reading is raised where its batch would have come. Leaving early waits for the batch that is being
    read, and reads no other.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as reader:
        coming = reader.submit(next, source_batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, source_batches, None)
            yield batch


def _pinned(batch: Batch) -> Batch:
    images, labels = batch
    return images.pin_memory(), labels.pin_memory()


def shuffle_indices(places: Indices, batch_size: int, seed: int) -> Indices:
    """`places` in an order that follows from `seed`, cut so that no batch holds a single image.

    One image has no variance, and batch normalisation needs one; the one left out is another in every epoch.
    """
    order = np.random.default_rng(seed).permutation(places)
    return order[:-1] if len(order) % batch_size == 1 and len(order) > 1 else order
