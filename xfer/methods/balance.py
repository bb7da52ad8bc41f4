"""Balance: counteracts unequal class sizes, through the loss, through the sampling, or through the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ClassVector = Callable[[Tensor], Tensor]
"""Maps the number of training images of each class [C], float32 and at least 1, to one value per class [C]."""


@dataclass(frozen=True)
class Balance:
    """What a run changes about unequal class sizes; by default nothing."""

    loss_weights: ClassVector | None = None
    """Weight of each class in the loss. The weights of all training images have a mean of 1, so the learning rate
    keeps its meaning."""
    logit_offsets: ClassVector | None = None
    """Added to the logits in the loss only, not when the network is evaluated or used."""
    resamples: bool = False
    """Whether every epoch draws the same number of images of each class (`balanced_indices`)."""


def none() -> Balance:
    """Takes the data as they are, so that frequent classes dominate the loss.

    The baseline for the others, and the right choice for classes of similar size.

    Measured: balanced accuracy 61.8% ± 4.9%, rarest class 12.5% ± 10.8% on imbalanced simpsons, mobilenetv2_100 (3
    seeds; benchmarks/CARDS.md).
    """
    return Balance()


def class_weights() -> Balance:
    """Weights each image in the loss by the inverse frequency of its class.

    Every class then has the same total weight. The classic remedy for unequal class sizes; Cui et al. 2019,
    arXiv:1901.05555, compare its variants. Few images with large weights make gradients noisy, and over-parametrized
    networks that fit all images regardless of their weights gain little.

    Measured: balanced accuracy 62.8% ± 6.3%, rarest class 20.8% ± 3.6% on imbalanced simpsons, mobilenetv2_100 (3
    seeds; benchmarks/CARDS.md).
    """
    return Balance(loss_weights=lambda counts: counts.sum() / (len(counts) * counts))


def balanced_sampler() -> Balance:
    """Draws the same number of images of each class in every epoch, which stays as long as before.

    Rare classes are repeated and frequent ones subsampled, so steps see balanced batches; Kang et al. 2020,
    arXiv:1910.09217, compare it with other samplers. Repeated images are memorised early: combine it with augmentation.

    Measured: balanced accuracy 61.1% ± 4.7%, rarest class 14.6% ± 3.6% on imbalanced simpsons, mobilenetv2_100 (3
    seeds; benchmarks/CARDS.md).
    """
    return Balance(resamples=True)


def logit_adjustment(tau: float = 1.0) -> Balance:
    """Adds the logarithm of the class frequency, times `tau`, to the logits while the network is trained.

    The network then learns what speaks for a class beyond its frequency, which minimises the balanced error. Nothing is
    repeated, and gradients have no large weights. Menon et al. 2021, arXiv:2007.07314, whose value is the default.

    Measured: balanced accuracy 70.5% ± 3.2%, rarest class 56.2% ± 0.0% on imbalanced simpsons, mobilenetv2_100 (3
    seeds; benchmarks/CARDS.md).

    >>> import torch
    >>> logit_adjustment().logit_offsets(torch.tensor([75.0, 25.0])).exp()
    tensor([0.7500, 0.2500])

    Args:
        tau: strength, above 0.

    Raises:
        ValueError: If `tau` is not above 0 and finite.
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"tau must be above 0 and finite, got {tau}; use balance none for no adjustment")
    return Balance(logit_offsets=lambda counts: tau * (counts / counts.sum()).log())


BALANCES: dict[str, Callable[..., Balance]] = {
    f.__name__: f for f in (none, class_weights, balanced_sampler, logit_adjustment)
}


def balanced_indices(indices: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return as many indices as given, with class frequencies that differ by one at most.

    An image comes again only after all others of its class, so a class of n images with a quota of q has each image
    q // n or q // n + 1 times.

    >>> sorted(balanced_indices(np.arange(6), np.array([0, 0, 0, 0, 0, 1]), seed=0).tolist())[3:]
    [5, 5, 5]

    Args:
        indices: of the training images, [N].
        labels: class of each of them, [N].
        seed: determines which images are left out or repeated.
    """
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(labels))  # the remainder of N / C goes to other classes in every epoch
    quotas = np.full(len(classes), len(indices) // len(classes))
    quotas[: len(indices) % len(classes)] += 1
    drawn = []
    for label, quota in zip(classes, quotas, strict=True):
        of_class = indices[labels == label]
        rounds = [rng.permutation(of_class) for _ in range(math.ceil(quota / len(of_class)))]
        drawn.append(np.concatenate([*rounds, of_class[:0]])[:quota])
    return np.sort(np.concatenate(drawn))
