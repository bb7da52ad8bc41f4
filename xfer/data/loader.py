"""Batches from a pack."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from xfer.data.pack import Pack
from xfer.data.split import Indices
from xfer.devices import heartbeat

Batch = tuple[Tensor, Tensor]
"""uint8 images [B, 3, H, W] in channels_last order, as the pack holds them, and int64 labels [B]."""


def iter_batches(pack: Pack, indices: Indices, batch_size: int) -> Iterator[Batch]:
    """Yield the images at `indices`, in that order, in batches; the last batch may be smaller."""
    for start in range(0, len(indices), batch_size):
        heartbeat.beat()
        batch = indices[start : start + batch_size]
        # Memory maps and disks are fastest when read in ascending order.
        order = np.argsort(batch)
        images = np.empty((len(batch), *pack.images.shape[1:]), dtype=np.uint8)
        images[order] = pack.images[batch[order]]
        yield torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(pack.labels[batch])


def to_device(batches: Iterator[Batch], device: torch.device, copy_to_gpu: bool) -> Iterator[Batch]:
    """Move batches to a GPU without making it wait; for other devices, yield them unchanged.

    The next batch is read into pinned memory while the GPU works on the current one, and copied in order with the GPU's
    other tasks. A batch has a few megabytes, so the copy takes well under a millisecond and needs no stream of its own.
    Pinning and copying have not run on a GPU yet; the code around them is tested without one.

    Args:
        batches: batches in main memory.
        device: the target device.
        copy_to_gpu: whether to copy to the GPU; otherwise batches stay in pinned memory, from which they can be copied
            without waiting.
    """
    if device.type != "cuda":
        yield from batches
        return
    for images, labels in prefetch((images.pin_memory(), labels.pin_memory()) for images, labels in batches):
        # The GPU copies before it runs any later task that uses the batch, and torch does not reuse the pinned memory
        # before the copy is done.
        yield (
            (images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
            if copy_to_gpu
            else (images, labels)
        )


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches while a thread reads the next one, never more than one ahead.

    An error while reading is raised in place of its batch. Closing the iterator early waits for the batch that is being
    read.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as reader:
        next_batch = reader.submit(next, batches, None)
        while (batch := next_batch.result()) is not None:
            next_batch = reader.submit(next, batches, None)
            yield batch


def shuffle_indices(indices: Indices, batch_size: int, seed: int) -> Indices:
    """Shuffle `indices`, leaving out one index if the last batch would hold a single image.

    BatchNorm cannot normalize a single image, which has no variance. Each seed leaves out another one.
    """
    order = np.random.default_rng(seed).permutation(indices)
    return order[:-1] if len(order) % batch_size == 1 and len(order) > 1 else order
