"""Batch norm modes: whether the running statistics of batch normalisation follow the new images."""

from __future__ import annotations

from collections.abc import Callable

BatchNormMode = Callable[[bool], bool]
"""Maps whether the layer's own scale or shift is trained to whether the layer runs in training mode, that is
normalises by the batch and updates its statistics."""


def with_weights() -> BatchNormMode:
    """Updates statistics where the layer itself is trained, and freezes them where it is frozen.

    The default: a frozen body then produces the same features in every epoch, and a trained body adapts to the new
    images.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda moves: moves


def frozen() -> BatchNormMode:
    """Keeps all statistics from pretraining, also in layers that are trained.

    Helps with small batches, whose own statistics are noisy, and makes training and evaluation compute the same. He et
    al. (2016), arXiv:1512.03385, did so to fine-tune for detection.

    Measured: 84.4% ± 4.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda moves: False


def always() -> BatchNormMode:
    """Updates all statistics from the new images, also in a frozen body.

    This is the result of freezing weights without switching the layers to evaluation mode, as in many published runs:
    the features of a frozen body then drift towards the new images. A simple form of AdaBN (Li et al. 2016,
    arXiv:1603.04779).

    Measured: 60.8% ± 8.0% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda moves: True


BATCH_NORM_MODES: dict[str, Callable[[], BatchNormMode]] = {f.__name__: f for f in (with_weights, frozen, always)}
