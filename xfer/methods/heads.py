"""Heads: what makes logits [N, C] of embeddings [N, D]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Head = Callable[[int, int], nn.Module]
"""(width of the embeddings, number of classes) to a new, random head."""


def linear() -> Head:
    """One linear layer, as the network was pretrained with.

    The rule unless there is a reason: on good features it is enough, and it is what published figures stand on.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return nn.Linear


def mlp(hidden: int = 512) -> Head:
    """A hidden layer of `hidden` units with ReLU before the linear layer.

    Helps where the features are frozen and the classes are not linearly separable in them; on few images it has more to
    overfit with. Common in transfer practice, as in fastai's two-layer head (Howard & Gugger 2020).

    Measured: 79.2% ± 2.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: no hidden unit.
    """
    if not isinstance(hidden, int) or hidden < 1:
        raise ValueError(f"hidden is {hidden}; a whole number of units is needed, at least 1, or linear is meant")
    return lambda width, classes: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def cosine(cosine_scale: float = 16.0) -> Head:
    """Logits are the cosine between embedding and class vector, times `cosine_scale`.

    Bounds the logits, and so the first gradients, whatever the size of the features; of use with few or unequal numbers
    of images per class (Gidaris & Komodakis 2018).

    Measured: 76.7% ± 4.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a scale that is not above 0, or not finite.
    """
    if not 0 < cosine_scale < math.inf:
        raise ValueError(f"cosine_scale is {cosine_scale}; it must be above 0, and finite")
    return lambda width, classes: CosineClassifier(width, classes, cosine_scale)


class CosineClassifier(nn.Module):
    """Scaled cosines between embeddings [N, D] and class vectors [C, D]: logits [N, C]."""

    def __init__(self, width: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(classes, width) / width**0.5)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits [N, C] in [-scale, scale]."""
        return self.scale * functional.linear(
            functional.normalize(embeddings, dim=1), functional.normalize(self.weight, dim=1)
        )


HEADS: dict[str, Callable[..., Head]] = {f.__name__: f for f in (linear, mlp, cosine)}
