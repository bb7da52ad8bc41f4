"""Embedding losses: what is asked of the embeddings [N, D] beside the classification loss on their logits.

An axis of its own: the term is added to the classification loss, `weight` times. It needs to know which images are of
the same class, so labels must be hard, and a recipe with batch mixing is refused. All of them come from
pytorch-metric-learning (Musgrave et al. 2020), which is installed with `pip install 'xfer[metric]'`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddingLoss:
    """A term on embeddings, still to be built for a network and its classes."""

    weight: float
    """How much the term counts; the classification loss counts 1."""
    build: Callable[[int, int], nn.Module]
    """(width of the embeddings D, number of classes C) to a module that maps embeddings [N, D], floats, and labels [N],
    whole numbers below C, to their loss, a scalar.

    The module may have parameters of its own to train, random like all new ones: from torch's global state. It is built
    only where pytorch-metric-learning is installed, and says so in a ValueError where it is not."""


def none() -> EmbeddingLoss | None:
    """Nothing is asked of the embeddings but that the head can tell them apart.

    The measure for the others, and the only choice together with batch mixing.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return None


def contrastive(weight: float = 1.0, pair_margin: float = 1.0) -> EmbeddingLoss:
    """Draws embeddings of one class together and pushes those of two classes at least `pair_margin` apart.

    For classes that differ in details, and for embeddings that will be searched by distance. A batch must hold several
    images of a class, so it does little with small batches of many classes. Hadsell et al. 2006, with distances rather
    than their squares.

    Embeddings are brought to length 1, so distances are in [0, 2]. Pairs that have nothing to complain about do not
    count: the loss is the mean over the others, of one class and of two, added.

    Measured: 79.9% ± 4.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a weight that is not above 0, or a margin outside (0, 2].
    """
    _check("weight", weight, 0, math.inf)
    _check("pair_margin", pair_margin, 0, 2)

    def build(width: int, classes: int) -> nn.Module:
        loss: nn.Module = _library().losses.ContrastiveLoss(pos_margin=0.0, neg_margin=pair_margin)
        return loss

    return EmbeddingLoss(weight, build)


def triplet(weight: float = 1.0, triplet_margin: float = 0.2) -> EmbeddingLoss:
    """Wants an image closer to those of its class than to any other, by `triplet_margin` in squared distance.

    As `contrastive`, but only the order of distances counts, so a class may keep its spread. Of a batch it learns from
    the semi-hard triplets: right, but by less than the margin. A batch without any teaches nothing, as small ones with
    many classes often are. Schroff et al. 2015, whose margin is the default.

    Embeddings are brought to length 1, so squared distances are in [0, 4]. The loss is the mean over the triplets.

    Measured: 77.8% ± 9.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a weight that is not above 0, or a margin outside (0, 4].
    """
    _check("weight", weight, 0, math.inf)
    _check("triplet_margin", triplet_margin, 0, 4)
    return EmbeddingLoss(weight, lambda width, classes: SemiHardTripletLoss(triplet_margin))


def arcface(weight: float = 1.0, angular_margin: float = 0.5, scale: float = 64.0) -> EmbeddingLoss:
    """Classifies embeddings by their angle to a centre of each class, with a handicap of `angular_margin` radians.

    For many classes that differ in details: it needs no pairs in a batch, so small batches serve as well. The centres
    are parameters of its own, D times C of them. The loss begins near `scale` times the sine of the margin, about 30
    with the defaults: unless `weight` is small, the classification loss hardly counts beside it. Deng et al. 2019,
    whose margin and scale, for faces, are the defaults.

    Measured: 59.4% ± 6.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a weight or a scale that is not above 0, or a margin outside (0, pi / 2].
    """
    _check("weight", weight, 0, math.inf)
    _check("angular_margin", angular_margin, 0, math.pi / 2)
    _check("scale", scale, 0, math.inf)

    def build(width: int, classes: int) -> nn.Module:
        # The library takes degrees.
        loss: nn.Module = _library().losses.ArcFaceLoss(classes, width, math.degrees(angular_margin), scale)
        return loss

    return EmbeddingLoss(weight, build)


class SemiHardTripletLoss(nn.Module):
    """The mean loss of the semi-hard triplets of a batch: 0 where there is none."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        library = _library()
        squared = library.distances.LpDistance(power=2)
        self.miner = library.miners.TripletMarginMiner(margin, type_of_triplets="semihard", distance=squared)
        self.loss = library.losses.TripletMarginLoss(margin, distance=squared)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [N, D] and labels [N] to a scalar."""
        loss: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
        return loss


def _check(name: str, value: float, above: float, limit: float) -> None:
    if not above < value <= limit or math.isinf(value):
        most = "" if math.isinf(limit) else f" and at most {limit:.4g}"
        raise ValueError(f"{name} must be above {above}{most}, not {value}; without any such term the choice is none")


def _library() -> Any:
    try:
        # A plain installation is without it, and importing it takes seconds.
        import pytorch_metric_learning.distances
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners
    except ImportError as error:
        raise ValueError(
            "an embedding loss needs the library pytorch-metric-learning: pip install 'xfer[metric]'"
        ) from error
    return pytorch_metric_learning


EMBEDDING_LOSSES: dict[str, Callable[..., EmbeddingLoss | None]] = {
    f.__name__: f for f in (none, contrastive, triplet, arcface)
}
