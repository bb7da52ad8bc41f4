"""Gradient of a batch, computed in micro-batches and on several devices, and its clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from xfer.devices.microbatching import MicroBatcher
from xfer.distributed.process_group import BatchShard, Rank
from xfer.seeding import get_rng_state, set_rng_state

MicroBatchLoss = Callable[[slice], tuple[Tensor, Tensor]]
"""Logits [B, C] of a slice of this device's shard, and the mean loss of these images."""


def compute_gradient(
    micro_batch_loss: MicroBatchLoss,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    running_statistics: Sequence[Tensor],
    microbatcher: MicroBatcher,
    shard: BatchShard,
    rank: Rank,
    indivisible_reason: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Set the parameters' gradients to those of the batch's mean loss.

    An attempt that fails leaves no trace: running statistics are restored, and dropout draws the same numbers again. So
    a run that runs out of memory continues like one that started with the smaller micro-batch.

    Args:
        micro_batch_loss: logits and loss of a slice of the shard.
        targets: probabilities [B, C] of this device's shard.
        optimizer: of the parameters.
        running_statistics: buffers that the forward pass updates.
        microbatcher: splits the shard where memory runs out.
        shard: this device's part of the batch.
        rank: this device.
        indivisible_reason: why the shard cannot be split; None if it can.

    Returns:
        The loss and the number of correctly classified images of the whole batch, scalars on the device.

    Raises:
        MemoryError: not even the smallest micro-batches fit.
        PeerLostError: another device's process has ended.
    """
    images, device = len(targets), targets.device
    statistics_before = [buffer.clone() for buffer in running_statistics]
    rng_state = get_rng_state(device)

    def attempt(slices: list[slice]) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        losses, hits = [], []
        for part in slices:
            logits, loss = micro_batch_loss(part)
            loss = loss * ((part.stop - part.start) / images * shard.weight)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
            hits.append((logits.argmax(dim=1) == targets[part].argmax(dim=1)).sum())
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    def reset() -> None:
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(running_statistics, statistics_before, strict=True):
            buffer.copy_(before)
        set_rng_state(rng_state, device)

    minimum = 2 if running_statistics else 1  # a single image has no variance
    try:
        loss, correct = microbatcher.run_split(images, attempt, reset, minimum, indivisible_reason)
    except Exception:
        reset()
        raise
    if rank.size > 1:
        correct = correct * float(shard.weight > 0)
        gradients = [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]
        rank.all_reduce_many([*gradients, loss, correct])
    return loss, correct


def clip_gradient(parameters: Sequence[Tensor], max_norm: float | None, max_value: float | None) -> Tensor:
    """Clip gradients in place by their global L2 norm and by value.

    Args:
        parameters: all with a gradient.
        max_norm: None does not clip by norm.
        max_value: largest absolute value; None does not clip by value.

    Returns:
        The global L2 norm before clipping, a scalar on the device.
    """
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    if max_value is not None:
        nn.utils.clip_grad_value_(parameters, max_value)
    return norm.detach()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
