"""Stacked: many linear heads side by side, stepped as one, each as if it were alone.

The optimizers are those of `OPTIMIZERS` themselves. At a rate of 1 they are run on a `direction` that is 0 before each
step; what they write into it is scaled by each head's own rate and added to its weights. That is exact where a step is
proportional to the rate and does not look at the weights; weight decay, which does, is added here, head by head.

Nothing is summed over heads, so one whose numbers are no longer finite leaves the others bit for bit as they were.
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
"""Of each head [M] the learning rate of a step, and the share of its weights that decay apart from it leaves."""


@dataclass(frozen=True)
class BatchedStep:
    """How an optimizer is run on many heads at once."""

    decay: Literal["gradient", "weights"]
    """Whether weight decay is a term of the gradient or takes its share off the weights, apart from the step."""
    step: Callable[[Optimizer], Any] = lambda optimizer: optimizer.step()
    """Writes a step into the direction."""
    lookahead_period: int | None = None
    """After how many steps the weights themselves, not the direction, go half-way back to slow ones; None: never."""


BATCHED_STEPS: dict[str, BatchedStep] = {
    "sgd": BatchedStep("gradient"),
    "nesterov": BatchedStep("gradient"),
    "adam": BatchedStep("gradient"),
    "adamw": BatchedStep("weights"),
    "radam": BatchedStep("gradient"),
    "ranger": BatchedStep("gradient", lambda ranger: RAdam.step(ranger), Ranger.PERIOD),  # type: ignore[arg-type]
    "lion": BatchedStep("weights"),
}
"""Optimizers by name. Not `lamb`: its step looks at the norm of the weights."""


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head: logits are embeddings [N, D] times the transposed weight [C, D], plus the bias [C]."""

    weight: Tensor
    bias: Tensor


class BatchedHeads:
    """M linear heads and their optimizer.

    Heads that see the same images in the same order share a stream: their products are one matrix product.

    Args:
        heads: where each begins, all of one shape.
        recipes: what each is trained by; the optimizer is the same for all.
        streams: for each head the number of its stream, in ascending order from 0.
        device: where.
    """

    def __init__(
        self, heads: Sequence[Head], recipes: Sequence[Recipe], streams: Sequence[int], device: torch.device
    ) -> None:
        self.count, (self.classes, self.width) = len(heads), heads[0].weight.shape
        self._way = BATCHED_STEPS[recipes[0].optimizer.name]
        self._stream_of = torch.tensor(streams, device=device)
        ends = torch.tensor(streams).bincount().cumsum(0).tolist()
        self._slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self._weights = torch.cat(
            [
                torch.stack([head.weight for head in heads]).flatten(),
                torch.stack([head.bias for head in heads]).flatten(),
            ]
        ).to(device, torch.float32, copy=True)
        self._slow = self._weights.clone() if self._way.lookahead_period else None
        self._steps = 0
        self._direction = torch.zeros_like(self._weights)
        self._direction.grad = torch.zeros_like(self._weights)
        group = {"params": [self._direction], "depth": 0, "kind": "weight", "weight_decay": 0.0}
        self._optimizer: Optimizer = recipes[0].optimizer.build(OPTIMIZERS, [group], 1.0)
        self._decay = torch.tensor([recipe.weight_decay for recipe in recipes], dtype=torch.float64)
        self._gradient_decay = self._decay.float().to(device)[:, None]
        self._clip_norm = _limits([recipe.clip_norm for recipe in recipes], device)
        self._clip_value = _limits([recipe.clip_value for recipe in recipes], device)
        self._losses = _losses_of(recipes, device)

    def head(self, member: int) -> Head:
        """One of the heads as it stands now; a copy."""
        weight, bias = self._parts(self._weights)
        return Head(weight[member].clone().view(self.classes, self.width), bias[member].clone())

    def load_heads(self, heads: Sequence[Head]) -> None:
        """Take the place of all heads, in their order."""
        weight, bias = self._parts(self._weights)
        weight.copy_(torch.stack([head.weight.flatten() for head in heads]))
        bias.copy_(torch.stack([head.bias for head in heads]))

    def logits(self, features: Tensor) -> Tensor:
        """What all heads say of the same embeddings [N, D]: [N, M, C]."""
        weight, bias = self._parts(self._weights)
        all_classes = torch.addmm(bias.flatten(), features, weight.view(-1, self.width).T)
        return all_classes.view(len(features), self.count, self.classes)

    def step_rates(self, rates: Tensor) -> list[Rates]:
        """What `train` takes as each step's rates, of the learning rate of each head at each step, float64 [steps, M].

        In double precision until here and rounded once, as a head alone has it.
        """
        device = self._weights.device
        return list(zip(rates.float().to(device), (1 - rates * self._decay).float().to(device), strict=True))

    def train(self, features: Sequence[Tensor], labels: Tensor, rates: Rates) -> tuple[Tensor, Tensor, Tensor]:
        """One step: of each head the loss, the number of right answers and the norm of the gradient, each [M].

        Args:
            features: for each stream a batch of embeddings [B, D].
            labels: int64 [B, streams].
            rates: this step's, of `paced`.
        """
        with torch.no_grad():
            targets = functional.one_hot(labels, self.classes).float()[:, self._stream_of]
            logits = self._logits_by_stream(features)
            losses, slopes = self._slopes(logits, targets)
            norms = self._backward(features, slopes)
            self._step(rates)
            hits = (logits.argmax(dim=2) == labels[:, self._stream_of]).sum(dim=0)
        return losses, hits, norms

    def _parts(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the weights [M, C * D] and the biases [M, C] in a flat tensor."""
        border = self.count * self.classes * self.width
        return flat[:border].view(self.count, -1), flat[border:].view(self.count, -1)

    def _logits_by_stream(self, features: Sequence[Tensor]) -> Tensor:
        weight, bias = self._parts(self._weights)
        found = [
            torch.addmm(bias[members].flatten(), rows, weight[members].view(-1, self.width).T)
            for rows, members in zip(features, self._slices, strict=True)
        ]
        joined = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        logits: Tensor = joined.view(-1, self.count, self.classes)
        return logits

    def _slopes(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each head's mean loss [M], and its slope in the logits [B, M, C]."""
        losses, slopes = logits.new_empty(self.count), torch.empty_like(logits)
        for loss, members in self._losses:
            said, asked = logits[:, members], targets[:, members].flatten(0, 1)
            with torch.enable_grad():
                leaf = said.flatten(0, 1).requires_grad_()
                means: Tensor = loss(leaf, asked).view(said.shape[:2]).mean(dim=0)
            (slope,) = torch.autograd.grad(means, leaf, torch.ones_like(means))
            losses[members] = means.detach()
            slopes[:, members] = slope.view(said.shape)
        return losses, slopes

    def _backward(self, features: Sequence[Tensor], slopes: Tensor) -> Tensor:
        """Fill in the gradient, clipped; the norm that it had before, [M]."""
        assert self._direction.grad is not None
        weight, bias = self._parts(self._direction.grad)
        for rows, members in zip(features, self._slices, strict=True):
            torch.mm(slopes[:, members].flatten(1).T, rows, out=weight[members].view(-1, self.width))
        torch.sum(slopes, dim=0, out=bias)
        parts = [torch.linalg.vector_norm(part, dim=1) for part in (weight, bias)]
        norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        if self._clip_norm is not None:  # as torch.nn.utils.clip_grads_with_norm_
            share = torch.where(self._clip_norm.isinf(), 1.0, (self._clip_norm / (norms + 1e-6)).clamp(max=1.0))
            weight.mul_(share[:, None])
            bias.mul_(share[:, None])
        if self._clip_value is not None:
            limit = self._clip_value[:, None]
            for part in (weight, bias):
                torch.clamp(part, -limit, limit, out=part)
        return norms

    def _step(self, rates: Rates) -> None:
        weight, bias = self._parts(self._weights)
        rate, kept = (each[:, None] for each in rates)
        if self._way.decay == "gradient":
            assert self._direction.grad is not None
            self._parts(self._direction.grad)[0].addcmul_(weight, self._gradient_decay)
        else:
            weight.mul_(kept)
        self._direction.zero_()
        self._way.step(self._optimizer)
        for part, direction in zip((weight, bias), self._parts(self._direction), strict=True):
            part.addcmul_(direction, rate)
        self._steps += 1
        if self._slow is not None and self._way.lookahead_period and self._steps % self._way.lookahead_period == 0:
            self._weights.copy_(self._slow.lerp_(self._weights, Ranger.SLOW_STEP))


def _limits(values: Sequence[float | None], device: torch.device) -> Tensor | None:
    """Each head's limit [M], infinite where it has none; None where nobody has one."""
    if all(value is None for value in values):
        return None
    return torch.tensor([math.inf if value is None else value for value in values], device=device)


def _losses_of(recipes: Sequence[Recipe], device: torch.device) -> list[tuple[Loss, Tensor | slice]]:
    """Each distinct loss with its members."""
    members: dict[Any, list[int]] = {}
    for member, recipe in enumerate(recipes):
        members.setdefault(recipe.loss, []).append(member)
    if len(members) == 1:
        return [(recipes[0].loss.build(LOSSES), slice(None))]
    return [(loss.build(LOSSES), torch.tensor(those, device=device)) for loss, those in members.items()]
