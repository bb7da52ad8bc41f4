"""Whole-batch operations inside a network of which each device sees one shard of the batch.

These are the statistics of batch norms in training mode, and losses that compare the embeddings of a batch. Both are
exchanged in the forward pass and their gradients in the backward pass, so the result is that of a single device.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from xfer.distributed.process_group import Rank


def sync_batch_norm(rank: Rank, images: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which batch norms in training mode use the statistics of the whole batch.

    Works for any BatchNorm subclass: intercepts `F.batch_norm` instead of replacing modules, as torch's
    `convert_sync_batchnorm` does. GPUs use torch's fused SyncBatchNorm kernels (not run on a GPU), CPUs the formula
    below.

    Args:
        rank: this device.
        images: size of the whole batch.
    """
    return _SyncMode(rank) if rank.shard_of(images).shared else contextlib.nullcontext()


def gather_batch(rows: Tensor, rank: Rank, images: int) -> Tensor:
    """Return the whole batch's rows, gathered from the shards of all devices.

    The gradient of a row goes back to the device that computed it, summed over all devices; each should therefore
    weight its loss by `BatchShard.weight`.

    Args:
        rows: this device's shard, float32 [shard, D].
        rank: this device.
        images: size of the whole batch.

    Returns:
        float32 [images, D].
    """
    gathered: Tensor = _GatherBatch.apply(rows, rank, images) if rank.shard_of(images).shared else rows
    return gathered


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, rank: Rank, images: int) -> Tensor:
        context.rank, context.indices = rank, rank.shard_of(images).indices
        batch = rows.new_zeros(images, *rows.shape[1:])
        batch[context.indices] = rows
        return rank.all_reduce(batch)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [gradient] = gradients
        return context.rank.all_reduce(gradient.clone())[context.indices], None, None


class _SyncMode(TorchFunctionMode):
    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        inputs: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        # Without running statistics the inputs are weights to be standardised, as in NFNet: equal on all devices.
        if not training or running_mean is None or running_var is None:
            return functional.batch_norm(
                inputs, running_mean, running_var, weight, bias, training, momentum=momentum, eps=eps
            )
        outputs: Tensor
        if inputs.is_cuda:
            group = distributed.group.WORLD
            outputs = SyncBatchNorm.apply(
                inputs, weight, bias, running_mean, running_var, eps, momentum, group, self._rank.size
            )
        else:
            outputs = _BatchNorm.apply(inputs, weight, bias, running_mean, running_var, momentum, eps, self._rank)
        return outputs


class _BatchNorm(torch.autograd.Function):
    """Batch norm over the images of all devices, with the backward formulas of Ioffe & Szegedy 2015.

    https://arxiv.org/abs/1502.03167
    """

    @staticmethod
    def forward(
        context: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        rank: Rank,
    ) -> Tensor:
        channels = inputs.shape[1]
        var, mean = torch.var_mean(inputs.float(), _all_but_channels(inputs), correction=0)
        count = mean.new_full((1,), inputs.numel() // channels)
        rows = rank.all_gather(torch.cat([mean, var, count]))
        means, variances, counts = torch.split(rows, [channels, channels, 1], dim=1)
        total = counts.sum()
        fractions = counts / total
        mean = (fractions * means).sum(dim=0)
        var = (fractions * (variances + (means - mean).square())).sum(dim=0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (total / (total - 1)), momentum)
        context.rank = rank
        context.save_for_backward(inputs, weight, mean, (var + eps).rsqrt(), total)
        return functional.batch_norm(inputs, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, rstd, total = context.saved_tensors
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        by_channel = _all_but_channels(inputs)
        normalized = (inputs.float() - mean.view(shape)) * rstd.view(shape)
        grad_outputs = gradients[0].float()
        own_sums = torch.stack([grad_outputs.sum(by_channel), (grad_outputs * normalized).sum(by_channel)])
        grad_bias, grad_weight = own_sums
        mean_grad, mean_grad_normalized = context.rank.all_reduce(own_sums.clone()) / total
        scale = rstd if weight is None else rstd * weight
        centred = grad_outputs - mean_grad.view(shape) - normalized * mean_grad_normalized.view(shape)
        grad_inputs = centred * scale.view(shape)
        # Weight and bias get this device's part: it is summed over devices together with all other gradients.
        _, needs_weight, needs_bias, *_ = context.needs_input_grad
        return (
            grad_inputs.to(inputs.dtype),
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            *[None] * 5,
        )


def _all_but_channels(inputs: Tensor) -> list[int]:
    return [axis for axis in range(inputs.ndim) if axis != 1]
