"""Losses: logits [N, C] and target probabilities [N, C] to one loss per example [N]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy() -> Loss:
    """The negative log-likelihood of the right class; under batch mixing, of the mixture of classes."""
    return lambda logits, targets: functional.cross_entropy(logits, targets, reduction="none")


def label_smoothing(smoothing: float = 0.1) -> Loss:
    """Cross-entropy against targets of which `smoothing` is spread over all classes (Szegedy et al. 2016)."""
    return lambda logits, targets: functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=smoothing
    )


LOSSES: dict[str, Callable[..., Loss]] = {f.__name__: f for f in (cross_entropy, label_smoothing)}
