"""Classification heads: embeddings [N, D] to logits [N, C]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Head = Callable[[int, int], nn.Module]
"""Maps (embedding width D, number of classes C) to a new, randomly initialised head."""


def linear() -> Head:
    """One linear layer, as in pretraining.

    The default: on good features it is sufficient, and published results use it.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return nn.Linear


def mlp(hidden: int = 512) -> Head:
    """A hidden layer of `hidden` units with ReLU before the linear layer.

    Helps where the features are frozen and do not separate the classes linearly; with few images it has more capacity
    to overfit. Common in transfer practice, such as fastai's two-layer head (Howard & Gugger 2020, arXiv:2002.04688).

    Measured: 79.2% ± 2.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        hidden: number of hidden units, at least 1.

    Raises:
        ValueError: If `hidden` is not an integer of at least 1.
    """
    if not isinstance(hidden, int) or hidden < 1:
        raise ValueError(f"hidden must be an integer of at least 1, got {hidden}; for no hidden layer use head linear")
    return lambda width, classes: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def cosine(cosine_scale: float = 16.0) -> Head:
    """Logits are the cosine between embedding and class vector, times `cosine_scale`.

    Bounds the logits, and so the first gradients, independently of the size of the features; useful with few or unequal
    numbers of images per class. Gidaris & Komodakis 2018, arXiv:1804.09458.

    Measured: 76.7% ± 4.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        cosine_scale: factor of the cosines, above 0.

    Raises:
        ValueError: If `cosine_scale` is not above 0 and finite.
    """
    if not 0 < cosine_scale < math.inf:
        raise ValueError(f"cosine_scale must be above 0 and finite, got {cosine_scale}")
    return lambda width, classes: CosineClassifier(width, classes, cosine_scale)


class CosineClassifier(nn.Module):
    """Scaled cosines between embeddings [N, D] and class vectors [C, D]: logits [N, C]."""

    def __init__(self, width: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(classes, width) / width**0.5)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Returns logits [N, C] in [-scale, scale]."""
        return self.scale * functional.linear(
            functional.normalize(embeddings, dim=1), functional.normalize(self.weight, dim=1)
        )


HEADS: dict[str, Callable[..., Head]] = {f.__name__: f for f in (linear, mlp, cosine)}
