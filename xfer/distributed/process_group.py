"""Process group: the devices of one machine that train one recipe together, one process per device.

Every process has the same Run: it draws the same order, augmentations and mixtures, and takes its shard of every batch.
Gradients are summed over all devices, so all take the same step, which is the step of the whole batch. Shards may
differ in size, which torch's DistributedDataParallel does not allow for.

Communication stays inside the machine: processes meet through a file and talk over the loopback interface (gloo), or
as NCCL chooses between GPUs. Tested with gloo on CPUs; not run with NCCL.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from xfer.devices.device import nth_device

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""Time limit of one collective operation. Long, because a device may compute features while the others wait; a process
that has died is noticed at once."""

LOOPBACK = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
"""Name of the loopback network interface."""


class PeerLostError(RuntimeError):
    """A collective operation failed because another device's process has ended."""


@dataclass(frozen=True)
class BatchShard:
    """One device's images of a batch."""

    indices: slice
    """Position of the shard in the batch."""
    weight: float
    """Weight of the shard's mean loss in the batch's mean loss. The weights of all devices sum to 1."""
    shared: bool
    """Whether the other devices hold the rest of the batch. False if this device holds all of it."""


@dataclass(frozen=True)
class Rank:
    """One device's position in a process group, and its collective operations."""

    index: int
    """From 0, the leader, to `size` - 1."""
    size: int
    """Number of devices in the group."""
    sum_in_place: Callable[[Tensor], None]
    """Replaces a float32 tensor by its sum over all devices, which must pass tensors of the same shape."""

    def shard_of(self, images: int) -> BatchShard:
        """Return this device's shard of a batch. Shard sizes differ by at most one image.

        A batch with fewer images than devices goes to every device in full and counts only on the leader. So no device
        is ever without images, and each takes part in every collective operation.

        Args:
            images: size of the batch.
        """
        if images < self.size or self.size == 1:
            return BatchShard(slice(0, images), float(self.index == 0), shared=False)
        start, stop = images * self.index // self.size, images * (self.index + 1) // self.size
        return BatchShard(slice(start, stop), (stop - start) / images, shared=True)

    def all_reduce_many(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all devices, in one message.

        Needs as much extra memory as the tensors take; it is available after the backward pass. Communication does not
        overlap with the backward pass as in torch's DistributedDataParallel.

        Args:
            tensors: as many, and of the same shapes, on every device.

        Raises:
            PeerLostError: another device's process has ended.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        self.all_reduce(flat)
        sums = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(sums, tensors, strict=True)])

    def all_gather(self, row: Tensor) -> Tensor:
        """Return the float32 rows [...] of all devices in rank order, [size, ...].

        Raises:
            PeerLostError: another device's process has ended.
        """
        rows = row.new_zeros(self.size, *row.shape)
        rows[self.index] = row
        return self.all_reduce(rows)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace a float32 tensor by its sum over all devices, and return it.

        Raises:
            PeerLostError: another device's process has ended.
        """
        try:
            self.sum_in_place(tensor)
        except RuntimeError as error:
            raise PeerLostError("the connection to another device was lost") from error
        return tensor


SINGLE_PROCESS = Rank(0, 1, lambda tensor: None)
"""Rank of a device that trains alone."""


@contextlib.contextmanager
def join_process_group(folder: Path, index: int, size: int, device: torch.device) -> Iterator[Rank]:
    """Join a process group once all its processes are there, and leave it at the end.

    Args:
        folder: an empty folder that all processes know.
        index: of this process, 0 for the leader.
        size: number of processes.
        device: where the tensors of collective operations are.

    Raises:
        ValueError: this process is already in a process group of torch.distributed.
    """
    if distributed.is_initialized():
        raise ValueError(
            "this process is already in a process group of torch.distributed and cannot start another: train on one "
            "device, or in a separate process"
        )
    gpu = device.type == "cuda"
    # Processes find each other by the number of a group. One that failed to start has taken a number in this process.
    distributed.distributed_c10d._world.group_count = 0
    with _loopback_only():
        distributed.init_process_group(
            "nccl" if gpu else "gloo",
            store=distributed.FileStore(str(folder / "rendezvous"), size),  # type: ignore[attr-defined]
            rank=index,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=nth_device(device, 0) if gpu else None,  # lets NCCL connect here instead of in the first step
        )
    try:
        yield Rank(index, size, _all_reduce)
    finally:
        distributed.destroy_process_group()


def _all_reduce(tensor: Tensor) -> None:
    distributed.all_reduce(tensor)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Make gloo and NCCL listen on the loopback interface: by default they take the first interface they find."""
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    os.environ.update(dict.fromkeys(names, LOOPBACK))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
