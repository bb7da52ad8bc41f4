"""Embedding losses: terms on the embeddings [N, D], added to the classification loss on their logits.

An independent choice: the term is multiplied by `weight` and added to the classification loss. It needs one class per
image, so a recipe with batch mixing is refused. All terms come from pytorch-metric-learning (Musgrave et al. 2020,
arXiv:2008.09164), installed with `pip install 'xfer[metric]'`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddingLoss:
    """A weighted term on embeddings, to be built for a network's width and number of classes."""

    weight: float
    """Weight of the term; the classification loss has weight 1."""
    build: Callable[[int, int], nn.Module]
    """Maps (embedding width D, number of classes C) to a module that maps embeddings [N, D] (float) and labels [N]
    (int64, in [0, C)) to a scalar loss.

    The module may have trainable parameters of its own, initialised from torch's global random state. Raises a
    ValueError where pytorch-metric-learning is not installed.
    """


def none() -> EmbeddingLoss | None:
    """No term on the embeddings; only the classification loss shapes them.

    The baseline for the others, and the only choice together with batch mixing.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return None


def contrastive(weight: float = 1.0, pair_margin: float = 1.0) -> EmbeddingLoss:
    """Pulls embeddings of one class together and pushes those of two classes at least `pair_margin` apart.

    For classes that differ in details, and for embeddings that will be searched by distance. A batch must hold several
    images of a class, so it has little effect on small batches of many classes. Hadsell et al. 2006, CVPR, with
    distances instead of their squares.

    Embeddings are normalised to length 1, so distances are in [0, 2]. The loss is the mean over same-class pairs plus
    the mean over different-class pairs, each taken over the pairs with a loss above 0.

    Measured: 79.9% ± 4.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        weight: weight of the term, above 0.
        pair_margin: required minimum distance between embeddings of two classes, in (0, 2].

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_in_range("weight", weight, 0, math.inf)
    _check_in_range("pair_margin", pair_margin, 0, 2)

    def build(width: int, classes: int) -> nn.Module:
        loss: nn.Module = _metric_learning().losses.ContrastiveLoss(pos_margin=0.0, neg_margin=pair_margin)
        return loss

    return EmbeddingLoss(weight, build)


def triplet(weight: float = 1.0, triplet_margin: float = 0.2) -> EmbeddingLoss:
    """Pulls each image closer to its own class than to any other, by `triplet_margin` in squared distance.

    Like `contrastive`, but only the order of distances counts, so a class may keep its spread. It learns from the
    semi-hard triplets of a batch: correctly ordered, but by less than the margin. A batch without any has loss 0, which
    is common for small batches with many classes. Schroff et al. 2015, arXiv:1503.03832, whose margin is the default.

    Embeddings are normalised to length 1, so squared distances are in [0, 4]. The loss is the mean over the triplets.

    Measured: 77.8% ± 9.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        weight: weight of the term, above 0.
        triplet_margin: margin in squared distance, in (0, 4].

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_in_range("weight", weight, 0, math.inf)
    _check_in_range("triplet_margin", triplet_margin, 0, 4)
    return EmbeddingLoss(weight, lambda width, classes: SemiHardTripletLoss(triplet_margin))


def arcface(weight: float = 1.0, angular_margin: float = 0.5, scale: float = 64.0) -> EmbeddingLoss:
    """Classifies embeddings by their angle to a centre of each class, with a margin of `angular_margin` radians.

    For many classes that differ in details: it needs no pairs in a batch, so small batches work too. The centres are D
    times C additional parameters. The loss starts near `scale` times the sine of the margin, about 30 with the
    defaults: it dominates the classification loss unless `weight` is small. Deng et al. 2019, arXiv:1801.07698, whose
    margin and scale, tuned for faces, are the defaults.

    Measured: 59.4% ± 6.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        weight: weight of the term, above 0.
        angular_margin: added to the angle to the image's own centre, in radians, in (0, pi / 2].
        scale: factor of the cosines before softmax, above 0.

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_in_range("weight", weight, 0, math.inf)
    _check_in_range("angular_margin", angular_margin, 0, math.pi / 2)
    _check_in_range("scale", scale, 0, math.inf)

    def build(width: int, classes: int) -> nn.Module:
        # The library expects degrees.
        loss: nn.Module = _metric_learning().losses.ArcFaceLoss(classes, width, math.degrees(angular_margin), scale)
        return loss

    return EmbeddingLoss(weight, build)


class SemiHardTripletLoss(nn.Module):
    """Mean loss of the semi-hard triplets of a batch; 0 if there are none."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        library = _metric_learning()
        squared = library.distances.LpDistance(power=2)
        self.miner = library.miners.TripletMarginMiner(margin, type_of_triplets="semihard", distance=squared)
        self.loss = library.losses.TripletMarginLoss(margin, distance=squared)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Maps embeddings [N, D] and labels [N] to a scalar."""
        loss: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
        return loss


def _check_in_range(name: str, value: float, low: float, high: float) -> None:
    if not low < value <= high or math.isinf(value):
        upper = "" if math.isinf(high) else f" and at most {high:.4g}"
        raise ValueError(f"{name} must be above {low}{upper}, got {value}; for no such term use embedding_loss none")


def _metric_learning() -> Any:
    try:
        # Optional, and importing it takes seconds.
        import pytorch_metric_learning.distances
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners
    except ImportError as error:
        raise ValueError(
            "an embedding loss needs pytorch-metric-learning, which is not installed: pip install 'xfer[metric]'"
        ) from error
    return pytorch_metric_learning


EMBEDDING_LOSSES: dict[str, Callable[..., EmbeddingLoss | None]] = {
    f.__name__: f for f in (none, contrastive, triplet, arcface)
}
