"""Batched heads: many linear heads that take their steps together, each as if it were alone.

The optimizers are those of `OPTIMIZERS` themselves. With a learning rate of 1 they update a `direction` that is 0
before each step; the result is scaled by each head's own rate and added to its weights. This is exact if a step is
proportional to the rate and independent of the weights. Weight decay depends on the weights, so it is added here, head
by head.

Nothing is summed over heads, so one that diverges leaves the others unchanged bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer, RAdam

from xfer.methods.losses import LOSSES, Loss
from xfer.methods.optimizers import OPTIMIZERS, Ranger
from xfer.recipe import Recipe

Rates = tuple[Tensor, Tensor]
"""Learning rate [M] of each head in a step, and the factor [M] by which decoupled weight decay scales its weights."""


@dataclass(frozen=True)
class BatchedStep:
    """How an optimizer takes steps for many heads at once."""

    decay: Literal["gradient", "weights"]
    """Whether weight decay is added to the gradient or is decoupled and shrinks the weights (as in AdamW)."""
    step: Callable[[Optimizer], Any] = lambda optimizer: optimizer.step()
    """Writes a step into the direction."""
    lookahead_period: int | None = None
    """Number of steps after which the weights move back towards their slow copy (Lookahead); None for never."""


BATCHED_STEPS: dict[str, BatchedStep] = {
    "sgd": BatchedStep("gradient"),
    "nesterov": BatchedStep("gradient"),
    "adam": BatchedStep("gradient"),
    "adamw": BatchedStep("weights"),
    "radam": BatchedStep("gradient"),
    "ranger": BatchedStep("gradient", lambda ranger: RAdam.step(ranger), Ranger.PERIOD),  # type: ignore[arg-type]
    "lion": BatchedStep("weights"),
}
"""Optimizers that can be batched, by name. LAMB cannot: its step depends on the norm of the weights."""


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head. Its logits are embeddings [N, D] @ weight.T + bias."""

    weight: Tensor
    """[C, D]."""
    bias: Tensor
    """[C]."""


class BatchedHeads:
    """M linear heads and their optimizer.

    Heads that see the same images in the same order share a stream, and one matrix product computes their logits.

    Args:
        heads: initial heads, all of one shape.
        recipes: of each head; the optimizer is the same for all.
        streams: number of each head's stream, in ascending order from 0.
        device: where to train.
    """

    def __init__(
        self, heads: Sequence[Head], recipes: Sequence[Recipe], streams: Sequence[int], device: torch.device
    ) -> None:
        self.count, (self.classes, self.width) = len(heads), heads[0].weight.shape
        self._batched_step = BATCHED_STEPS[recipes[0].optimizer.name]
        self._stream_of = torch.tensor(streams, device=device)
        ends = torch.tensor(streams).bincount().cumsum(0).tolist()
        self._heads_of_stream = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        weights = torch.stack([head.weight for head in heads]).flatten()
        biases = torch.stack([head.bias for head in heads]).flatten()
        self._parameters = torch.cat([weights, biases]).to(device, torch.float32, copy=True)
        self._slow_parameters = self._parameters.clone() if self._batched_step.lookahead_period else None
        self._steps = 0
        self._direction = torch.zeros_like(self._parameters)
        self._direction.grad = torch.zeros_like(self._parameters)
        group = {"params": [self._direction], "depth": 0, "kind": "weight", "weight_decay": 0.0}
        self._optimizer: Optimizer = recipes[0].optimizer.build(OPTIMIZERS, [group], 1.0)
        self._decay = torch.tensor([recipe.weight_decay for recipe in recipes], dtype=torch.float64)
        self._gradient_decay = self._decay.float().to(device)[:, None]
        self._clip_norm = _limits([recipe.clip_norm for recipe in recipes], device)
        self._clip_value = _limits([recipe.clip_value for recipe in recipes], device)
        self._losses = _heads_by_loss(recipes, device)

    def head(self, index: int) -> Head:
        """Return a copy of one head as it is now."""
        weight, bias = self._views(self._parameters)
        return Head(weight[index].clone().view(self.classes, self.width), bias[index].clone())

    def load_heads(self, heads: Sequence[Head]) -> None:
        """Replace all heads."""
        weight, bias = self._views(self._parameters)
        weight.copy_(torch.stack([head.weight.flatten() for head in heads]))
        bias.copy_(torch.stack([head.bias for head in heads]))

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [N, M, C] of all heads for the same embeddings [N, D]."""
        weight, bias = self._views(self._parameters)
        all_classes = torch.addmm(bias.flatten(), features, weight.view(-1, self.width).T)
        return all_classes.view(len(features), self.count, self.classes)

    def step_rates(self, learning_rates: Tensor) -> list[Rates]:
        """Return the rates that `train` takes in each step.

        Double precision until here and rounded once, as for a head that trains alone.

        Args:
            learning_rates: of each head in each step, float64 [steps, M].
        """
        device = self._parameters.device
        factors = 1 - learning_rates * self._decay
        return list(zip(learning_rates.float().to(device), factors.float().to(device), strict=True))

    def train(self, features: Sequence[Tensor], labels: Tensor, rates: Rates) -> tuple[Tensor, Tensor, Tensor]:
        """Train all heads for one step.

        Args:
            features: a batch of embeddings [B, D] for each stream.
            labels: int64 [B, streams].
            rates: of this step, from `step_rates`.

        Returns:
            Loss, number of correctly classified images, and gradient norm before clipping of each head, each [M].
        """
        with torch.no_grad():
            targets = functional.one_hot(labels, self.classes).float()[:, self._stream_of]
            logits = self._logits_by_stream(features)
            losses, logit_gradients = self._loss_and_logit_gradients(logits, targets)
            norms = self._backward(features, logit_gradients)
            self._step(rates)
            hits = (logits.argmax(dim=2) == labels[:, self._stream_of]).sum(dim=0)
        return losses, hits, norms

    def _views(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the weights [M, C * D] and the biases [M, C] in a flat tensor."""
        border = self.count * self.classes * self.width
        return flat[:border].view(self.count, -1), flat[border:].view(self.count, -1)

    def _logits_by_stream(self, features: Sequence[Tensor]) -> Tensor:
        weight, bias = self._views(self._parameters)
        by_stream = [
            torch.addmm(bias[heads].flatten(), rows, weight[heads].view(-1, self.width).T)
            for rows, heads in zip(features, self._heads_of_stream, strict=True)
        ]
        joined = by_stream[0] if len(by_stream) == 1 else torch.cat(by_stream, dim=1)
        logits: Tensor = joined.view(-1, self.count, self.classes)
        return logits

    def _loss_and_logit_gradients(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss [M] of each head, and its gradient with respect to the logits, [B, M, C]."""
        losses, gradients = logits.new_empty(self.count), torch.empty_like(logits)
        for loss, heads in self._losses:
            own_logits, own_targets = logits[:, heads], targets[:, heads].flatten(0, 1)
            with torch.enable_grad():
                leaf = own_logits.flatten(0, 1).requires_grad_()
                means: Tensor = loss(leaf, own_targets).view(own_logits.shape[:2]).mean(dim=0)
            (gradient,) = torch.autograd.grad(means, leaf, torch.ones_like(means))
            losses[heads] = means.detach()
            gradients[:, heads] = gradient.view(own_logits.shape)
        return losses, gradients

    def _backward(self, features: Sequence[Tensor], logit_gradients: Tensor) -> Tensor:
        """Compute and clip the gradient; return its norm before clipping, [M]."""
        assert self._direction.grad is not None
        weight, bias = self._views(self._direction.grad)
        for rows, heads in zip(features, self._heads_of_stream, strict=True):
            torch.mm(logit_gradients[:, heads].flatten(1).T, rows, out=weight[heads].view(-1, self.width))
        torch.sum(logit_gradients, dim=0, out=bias)
        both = [torch.linalg.vector_norm(part, dim=1) for part in (weight, bias)]
        norms: Tensor = torch.linalg.vector_norm(torch.stack(both), dim=0)
        if self._clip_norm is not None:  # as torch.nn.utils.clip_grads_with_norm_
            factor = torch.where(self._clip_norm.isinf(), 1.0, (self._clip_norm / (norms + 1e-6)).clamp(max=1.0))
            weight.mul_(factor[:, None])
            bias.mul_(factor[:, None])
        if self._clip_value is not None:
            limit = self._clip_value[:, None]
            for part in (weight, bias):
                torch.clamp(part, -limit, limit, out=part)
        return norms

    def _step(self, rates: Rates) -> None:
        weight, bias = self._views(self._parameters)
        learning_rate, factor = (rate[:, None] for rate in rates)
        if self._batched_step.decay == "gradient":
            assert self._direction.grad is not None
            self._views(self._direction.grad)[0].addcmul_(weight, self._gradient_decay)
        else:
            weight.mul_(factor)
        self._direction.zero_()
        self._batched_step.step(self._optimizer)
        for part, direction in zip((weight, bias), self._views(self._direction), strict=True):
            part.addcmul_(direction, learning_rate)
        self._steps += 1
        period = self._batched_step.lookahead_period
        if self._slow_parameters is not None and period and self._steps % period == 0:
            self._parameters.copy_(self._slow_parameters.lerp_(self._parameters, Ranger.SLOW_STEP))


def _limits(values: Sequence[float | None], device: torch.device) -> Tensor | None:
    """Limit of each head [M], infinite for None; None if no head has a limit."""
    if all(value is None for value in values):
        return None
    return torch.tensor([math.inf if value is None else value for value in values], device=device)


def _heads_by_loss(recipes: Sequence[Recipe], device: torch.device) -> list[tuple[Loss, Tensor | slice]]:
    """Each distinct loss with the indices of its heads."""
    heads: dict[Any, list[int]] = {}
    for index, recipe in enumerate(recipes):
        heads.setdefault(recipe.loss, []).append(index)
    if len(heads) == 1:
        return [(recipes[0].loss.build(LOSSES), slice(None))]
    return [(loss.build(LOSSES), torch.tensor(indices, device=device)) for loss, indices in heads.items()]
