"""Losses: logits [N, C] and target probabilities [N, C] to one loss per example [N]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy() -> Loss:
    """Negative log-likelihood of the correct class, or of the mixture of classes under batch mixing.

    The baseline for the others. It rewards ever larger logits for images that are already classified correctly, so long
    training on few images makes a network overconfident.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda logits, targets: functional.cross_entropy(logits, targets, reduction="none")


def label_smoothing(smoothing: float = 0.1) -> Loss:
    """Cross-entropy against targets of which a fraction `smoothing` is spread over all classes.

    Reduces overconfidence: the loss does not reward logits beyond a bound, so probabilities are often better calibrated
    (Müller et al. 2019, arXiv:1906.02629). It also tolerates occasional wrong labels. Less useful where batch mixing
    already softens the targets. Szegedy et al. 2016, arXiv:1512.00567, whose value for ImageNet is the default.

    Measured: 79.9% ± 6.4% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        smoothing: fraction of the target spread uniformly over all classes, in [0, 1).

    Raises:
        ValueError: If `smoothing` is outside its range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
    return lambda logits, targets: functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=smoothing
    )


def focal(gamma: float = 2.0) -> Loss:
    """Cross-entropy weighted by (1 - probability) to the power `gamma`, so that easy examples count less.

    For very unequal class sizes, where many easy images would outweigh the few hard ones; it was designed for
    detectors, whose training examples are nearly all background. It helps little on balanced classes, and images with
    wrong labels get the largest weight. Lin et al. 2017, arXiv:1708.02002, whose best `gamma` is the default; 0 is
    cross-entropy.

    The softmax form, without class weights. Under batch mixing each class of the mixture counts by its share.

    Measured: 74.7% ± 9.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> loss = focal(gamma=2.0)(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # at a probability of a half
    >>> round(loss.item() / math.log(2), 3)
    0.25

    Args:
        gamma: exponent of the weight, at least 0.

    Raises:
        ValueError: If `gamma` is below 0 or not finite.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 0 and finite, got {gamma}; 0 is cross_entropy")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        log_likelihood = logits.log_softmax(dim=1)
        # Clamped because 0**gamma has an infinite slope for gamma below 1, where a probability rounds to 1.
        error_probability = (-torch.expm1(log_likelihood)).clamp(min=torch.finfo(logits.dtype).tiny)
        return -(targets * error_probability**gamma * log_likelihood).sum(dim=1)

    return loss


LOSSES: dict[str, Callable[..., Loss]] = {f.__name__: f for f in (cross_entropy, label_smoothing, focal)}
