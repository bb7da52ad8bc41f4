"""Batch norm: whether the running statistics of batch normalisation follow the new images."""

from __future__ import annotations

from collections.abc import Callable

BatchNormMode = Callable[[bool], bool]
"""Does the layer's own scale or shift move? -> Does it normalise by the batch, and its statistics follow?"""


def with_weights() -> BatchNormMode:
    """Statistics follow where the layer itself is trained, and stand still where it is frozen.

    The rule: a frozen body then gives the same features in every epoch, and a trained one adapts to the new images.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda moves: moves


def frozen() -> BatchNormMode:
    """All statistics stay those of pretraining, also in layers that are trained.

    Helps with small batches, whose own statistics are noisy, and keeps training and evaluation alike; He et al. (2016)
    did so to fine-tune for detection.

    Measured: 84.4% ± 4.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda moves: False


def always() -> BatchNormMode:
    """All statistics follow the new images, also in a frozen body.

    What one gets by freezing weights without touching the layers' mode, as many published runs did: the features of a
    frozen body then drift towards the new images (a simple form of AdaBN, Li et al. 2016).

    Measured: 60.8% ± 8.0% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda moves: True


BATCH_NORM_MODES: dict[str, Callable[[], BatchNormMode]] = {f.__name__: f for f in (with_weights, frozen, always)}
