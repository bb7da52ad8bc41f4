"""Whole batch: what a network asks of all images of a batch together, where each device of a team has a slice of it.

That is the statistics of batch norms that follow their images, and the embeddings that a loss compares. Both are
exchanged on the way forth and their gradients on the way back, so that what comes of it is what one device computes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xfer.distributed.process_group import Rank


def sync_batch_norm(this_rank: Rank, images: int) -> contextlib.AbstractContextManager[Any]:
    """In it, batch norms in training take the statistics of a batch of so many images, whichever slice goes through.

    Whatever class they are of: it is torch's function under them that is answered differently. torch's SyncBatchNorm,
    of which modules would have to become, computes the same, but only on GPUs; this has run on CPUs.
    """
    return _Synchronised(this_rank) if this_rank.shard_of(images).shared else contextlib.nullcontext()


def gather_batch(rows: Tensor, this_rank: Rank, images: int) -> Tensor:
    """What all devices made of a batch of so many images, [images, D], from this one's rows [slice, D], float32.

    Gradients go back to the device that made a row, added up over all devices: each should count its loss by its
    `Slice.weight`.
    """
    found: Tensor = _Gathered.apply(rows, this_rank, images) if this_rank.shard_of(images).shared else rows
    return found


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, this_rank: Rank, images: int) -> Tensor:
        context.this_rank, context.place = this_rank, this_rank.shard_of(images).place
        whole = rows.new_zeros(images, *rows.shape[1:])
        whole[context.place] = rows
        return this_rank.all_reduce(whole)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [gradient] = gradients
        return context.this_rank.all_reduce(gradient.clone())[context.place], None, None


class _Synchronised(TorchFunctionMode):
    def __init__(self, this_rank: Rank) -> None:
        super().__init__()
        self._member = this_rank

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
        # Without running statistics it is weights that are standardised, as in an NFNet: they are everywhere the same.
        if not training or running_mean is None or running_var is None:
            return functional.batch_norm(
                inputs, running_mean, running_var, weight, bias, training, momentum=momentum, eps=eps
            )
        found: Tensor = _BatchNorm.apply(inputs, weight, bias, running_mean, running_var, momentum, eps, self._member)
        return found


class _BatchNorm(torch.autograd.Function):
    """Batch norm by the statistics of all devices' images (Ioffe & Szegedy 2015, whose formulas for the way back)."""

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
        this_rank: Rank,
    ) -> Tensor:
        channels = inputs.shape[1]
        var, mean = torch.var_mean(inputs.float(), _all_but_channels(inputs), correction=0)
        count = mean.new_full((1,), inputs.numel() // channels)
        rows = this_rank.all_gather(torch.cat([mean, var, count]))
        means, variances, counts = torch.split(rows, [channels, channels, 1], dim=1)
        total = counts.sum()
        shares = counts / total
        mean = (shares * means).sum(dim=0)
        var = (shares * (variances + (means - mean).square())).sum(dim=0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (total / (total - 1)), momentum)
        context.this_rank = this_rank
        context.save_for_backward(inputs, weight, mean, (var + eps).rsqrt(), total)
        return functional.batch_norm(inputs, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, rstd, total = context.saved_tensors
        [gradient] = gradients
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        by_channel = _all_but_channels(inputs)
        normal = (inputs.float() - mean.view(shape)) * rstd.view(shape)
        above = gradient.float()
        own = torch.stack([above.sum(by_channel), (above * normal).sum(by_channel)])
        of_bias, of_weight = own
        mean_above, mean_along = context.this_rank.all_reduce(own.clone()) / total
        scale = rstd if weight is None else rstd * weight
        below = (above - mean_above.view(shape) - normal * mean_along.view(shape)) * scale.view(shape)
        # Weight and bias get this device's part: it is added to the others' with all other gradients.
        wanted = context.needs_input_grad
        return (
            below.to(inputs.dtype),
            of_weight if wanted[1] else None,
            of_bias if wanted[2] else None,
            *[None] * 5,
        )


def _all_but_channels(inputs: Tensor) -> list[int]:
    return [axis for axis in range(inputs.ndim) if axis != 1]
