"""Losses: logits [N, C] and target probabilities [N, C] to one loss per example [N]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy() -> Loss:
    """The negative log-likelihood of the right class; under batch mixing, of the mixture of classes.

    The measure for the others. It asks for ever larger logits of images that are right already, so in long trainings
    on few images a network becomes surer than it should be.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda logits, targets: functional.cross_entropy(logits, targets, reduction="none")


def label_smoothing(smoothing: float = 0.1) -> Loss:
    """Cross-entropy against targets of which `smoothing` is spread over all classes.

    Against overconfidence: a logit has nothing to gain beyond a bound, so probabilities are often better calibrated
    (Müller et al. 2019). It also forgives labels that are wrong now and then. Of less use where batch mixing softens
    the targets already. Szegedy et al. 2016, whose share for ImageNet is the default.

    Measured: 79.9% ± 6.4% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(
            f"smoothing is the share of a target that is spread over all classes: from 0 to below 1, not {smoothing}"
        )
    return lambda logits, targets: functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=smoothing
    )


def focal(gamma: float = 2.0) -> Loss:
    """Cross-entropy in which a class counts less the surer the network is of it: by (1 - probability) to the `gamma`.

    For classes of very unequal size, where a multitude of easy images would drown the few hard ones; it was made for
    detectors, whose images are nearly all background. With balanced classes there is little to expect, and labels that
    are wrong count as the hardest of all. Lin et al. 2017, whose best `gamma` is the default; 0 is cross-entropy.

    The form for softmax, without weights for classes. Under batch mixing each class of the mixture counts by its share.

    Measured: 74.7% ± 9.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> loss = focal(gamma=2.0)(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # at a probability of a half
    >>> round(loss.item() / math.log(2), 3)
    0.25

    Raises:
        ValueError: a `gamma` below 0 or not finite.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma says how much less an easy image counts: 0 as in cross_entropy, or more, not {gamma}")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        log_likelihood = logits.log_softmax(dim=1)
        # Where a probability rounds to 1 the root of 0 would have an infinite slope, for gamma below 1.
        doubt = (-torch.expm1(log_likelihood)).clamp(min=torch.finfo(logits.dtype).tiny)
        return -(targets * doubt**gamma * log_likelihood).sum(dim=1)

    return loss


LOSSES: dict[str, Callable[..., Loss]] = {f.__name__: f for f in (cross_entropy, label_smoothing, focal)}
