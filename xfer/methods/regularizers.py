"""Anchors: staying near the weights that a run started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Regularizer(Protocol):
    """A pull towards the starting weights, added to the gradient before it is clipped."""

    def add_gradient(self, parameters: Sequence[nn.Parameter], start: Sequence[Tensor]) -> None:
        """Add the pull to the gradients of `parameters`; `start` are their values at the first step."""
        ...


@dataclass(frozen=True)
class L2SP(Regularizer):
    """The gradient of strength / 2 * |w - w0|^2: weight decay whose origin is the starting point (Li et al. 2018)."""

    strength: float

    def add_gradient(self, parameters: Sequence[nn.Parameter], start: Sequence[Tensor]) -> None:
        """Add strength * (w - w0) to each gradient; parameters without one are passed over."""
        moving = [(p.grad, p.detach(), w0) for p, w0 in zip(parameters, start, strict=True) if p.grad is not None]
        if moving:
            gradients, now, before = zip(*moving, strict=True)
            torch._foreach_add_(gradients, torch._foreach_sub(now, before), alpha=self.strength)
