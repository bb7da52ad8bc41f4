"""Probes: heads fitted to convergence on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def fit_head(
    head: nn.Module, embeddings: Tensor, labels: Tensor, steps: int = 200, penalty: float = 1.0, tolerance: float = 1e-6
) -> float:
    """Fit a head in place by L-BFGS on all examples at once; the final cross-entropy.

    The penalty is that of logistic regression as commonly used, |w|^2 / 2 for the sum of losses over all examples,
    times `penalty`: without it separable classes would drive the weights to infinity. Deterministic; for a linear head
    the problem is convex, so the end does not depend on the start.

    Args:
        head: makes logits [N, C] of embeddings.
        embeddings: [N, D].
        labels: int64 [N].
        steps: at most so many iterations.
        penalty: above 0; the inverse of scikit-learn's C.
        tolerance: it ends where no number of the gradient is larger, or the loss changes by less than a thousandth.
    """
    weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=steps,
        tolerance_grad=tolerance,
        tolerance_change=tolerance / 1000,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        size = sum((weight.square().sum() for weight in weights), embeddings.new_zeros(())) / 2
        loss = functional.cross_entropy(head(embeddings), labels) + penalty * size / len(labels)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float(functional.cross_entropy(head(embeddings), labels))
