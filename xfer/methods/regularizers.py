"""Regularizers: keep the weights near those that a run started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Regularizer(Protocol):
    """A pull towards the starting weights, added to the gradient before clipping."""

    def add_gradient(self, parameters: Sequence[nn.Parameter], start: Sequence[Tensor]) -> None:
        """Adds the pull to the gradients of `parameters`; `start` holds their values before the first step."""
        ...


@dataclass(frozen=True)
class L2SP(Regularizer):
    """Gradient of strength / 2 * |w - w0|^2: weight decay towards the starting point.

    Li et al. 2018, arXiv:1802.01483.
    """

    strength: float

    def add_gradient(self, parameters: Sequence[nn.Parameter], start: Sequence[Tensor]) -> None:
        """Adds strength * (w - w0) to each gradient; parameters without a gradient are skipped."""
        trained = [(p.grad, p.detach(), w0) for p, w0 in zip(parameters, start, strict=True) if p.grad is not None]
        if trained:
            gradients, current, initial = zip(*trained, strict=True)
            torch._foreach_add_(gradients, torch._foreach_sub(current, initial), alpha=self.strength)
