"""Strategies: which parts of the pretrained network move, and when. One short function each.

A strategy's signature is the list of its hyperparameters; xfer/hyperparameters.py holds their ranges. The first line of
its docstring says what it does in a few words; reports, help and console show it next to the name
(xfer/methods/descriptions.py).
Gradient clipping, batch norm, head and activation are independent choices and combine with every strategy; a strategy
may preset a value for one. Blocks are timm's, counted without the head; xfer/methods/truncation.py describes stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from xfer.methods.adapters import add_low_rank
from xfer.methods.freezing import (
    FreezeFirstBlocks,
    GradualUnfreeze,
    HeadFirst,
    HeadUntilConverged,
    Pace,
    SlowerWithDepth,
    TrainAll,
    TrainLastBlocks,
    TrainOneQuarter,
    TrainParamKinds,
)
from xfer.methods.regularizers import L2SP, Regularizer
from xfer.methods.truncation import TruncatedModel, drop_stages

ModelTransform = Callable[[Any, int], Any]
"""Maps (timm network with its weights, side of the images in pixels) to the network that is trained."""


def keep_model(model: Any, image_size: int) -> Any:
    """Returns the network unchanged."""
    return model


@dataclass(frozen=True)
class HeadFit:
    """A linear head fitted to convergence on frozen features by `xfer.linear_heads`.

    Raises:
        ValueError: If the penalty is not above 0, where the best head may not be unique.
    """

    how: Literal["logistic", "ridge"]
    penalty: float
    """Weight of the squared norm of the head's weights, above 0."""

    def __post_init__(self) -> None:
        if not 0 < self.penalty < math.inf:
            raise ValueError(
                f"penalty must be above 0 and finite, got {self.penalty}: without a penalty many heads fit equally well"
            )


@dataclass(frozen=True)
class Strategy:
    """What a strategy prescribes: the initial weights, the pace of each parameter, and further changes."""

    pace: Pace
    pretrained: bool = True
    """Whether the run starts from the backbone's pretrained weights or from random ones."""
    clip_norm: float | None = None
    """Gradient clip norm that the strategy presets; the recipe may set another value, but not None."""
    transform_model: ModelTransform = keep_model
    """Applied to the network after its weights are loaded. Raises a ValueError if it does not fit the network."""
    regularizer: Regularizer | None = None
    """Keeps the body near its starting weights; replaces the body's weight decay."""
    fit: HeadFit | None = None
    """How the head is fitted before the first step; None if it is not."""
    steps: bool = True
    """Whether gradient steps follow. Without them the fit is the whole run, counted as one epoch."""
    backbone: str | None = None
    """Network that the strategy prescribes; None for the recipe's own."""


def scratch() -> Strategy:
    """Training from random weights.

    The same architecture without pretraining: the baseline that shows what transfer gains. Helps where there are very
    many images and pretraining contained nothing like them. He et al. 2019, arXiv:1811.08883.

    Measured: 21.5% ± 1.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainAll(), pretrained=False)


def small_cnn() -> Strategy:
    """Training a small CNN from random weights.

    A plain network of 0.86 million parameters instead of the backbone (see basic_cnn.py). The other baseline: what is
    possible without transfer and without a large architecture. In source 000 it beat the large network trained from
    scratch.

    Measured: 51.0% ± 2.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainAll(), pretrained=False, backbone="basic_cnn")


def linear_probe() -> Strategy:
    """Training only the new head, on frozen features.

    Cheap, and hard to beat with few images like the source's. The oldest way to transfer a convolutional network
    (Razavian et al. 2014, arXiv:1403.6382); it loses where the images are unlike those of pretraining.

    Measured: 62.2% ± 8.7% on simpsons, mobilenetv2_100; 60.0% ± 3.3% on digits-5-9, test_resnet; 44.4% ± 10.7% on
    digits-5-9, test_vit (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(HeadFirst(freeze_epochs=None))


def ridge_probe(penalty: float = 100.0) -> Strategy:
    """Ridge regression on frozen features.

    A linear head in closed form: penalised least squares on one-hot targets. Like `linear_probe`, without a learning
    rate, schedule or number of epochs to choose. Its outputs are not log-probabilities, so read its accuracy and not
    its loss. One decomposition serves many penalties at once. Hoerl & Kennard 1970, Technometrics.

    Args:
        penalty: weight of the squared norm of the head's weights, above 0.

    Raises:
        ValueError: If `penalty` is not above 0.
    """
    return Strategy(HeadFirst(freeze_epochs=None), fit=HeadFit("ridge", penalty), steps=False)


def logistic_probe(penalty: float = 1.0) -> Strategy:
    """Logistic regression on frozen features.

    A multinomial head, fitted to convergence by L-BFGS with an L2 penalty. The common way to compare features
    (Kornblith et al. 2019, arXiv:1805.08974): `linear_probe` with nothing to choose but the penalty, the inverse of
    scikit-learn's C. `lp_ft` with the same penalty starts from exactly this head.

    Args:
        penalty: weight of half the squared norm of the head's weights, above 0.

    Raises:
        ValueError: If `penalty` is not above 0.
    """
    return Strategy(HeadFirst(freeze_epochs=None), fit=HeadFit("logistic", penalty), steps=False)


def freeze_then_unfreeze(freeze_epochs: int = 2) -> Strategy:
    """Training the head alone for a few epochs, then everything.

    The usual advice: it protects the pretrained weights from the random head's first large gradients. After Howard &
    Ruder 2018, arXiv:1801.06146.

    Measured: 74.0% ± 2.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        freeze_epochs: number of epochs with a frozen body, at least 1.

    Raises:
        ValueError: If `freeze_epochs` is below 1.
    """
    if freeze_epochs < 1:
        raise ValueError(f"freeze_epochs must be at least 1, got {freeze_epochs}; for 0 use strategy naive")
    return Strategy(HeadFirst(freeze_epochs))


def freeze_until_converged(patience: int = 1) -> Strategy:
    """Training the head alone until it converges, then everything.

    The head has converged once its validation loss has not fallen for `patience` epochs. The variant that source 000
    mentions of its "recommended way": the number of epochs need not be guessed. The body is unfrozen after half of the
    epochs at the latest, so in short runs it equals `freeze_then_unfreeze`.

    Measured: 54.9% ± 1.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        patience: number of epochs without improvement, at least 1.

    Raises:
        ValueError: If `patience` is below 1.
    """
    if patience < 1:
        raise ValueError(f"patience must be at least 1 epoch, got {patience}")
    return Strategy(HeadUntilConverged(patience))


def naive() -> Strategy:
    """Full fine-tuning.

    Everything is trained from the first step, with nothing to protect the pretrained weights (Girshick et al. 2014,
    arXiv:1311.2524): right where there are many images, or where they are unlike those of pretraining.

    Measured: 83.0% ± 4.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainAll())


def clip() -> Strategy:
    """Full fine-tuning, gradients clipped.

    `naive` with the global gradient norm clipped at 1.0: bounds the head's first gradients, freezes nothing. Not
    related to the network CLIP. The first thing to try according to source 000; gradient clipping is from Pascanu et
    al. 2013, arXiv:1211.5063.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100; 45.6% ± 15.8% on digits-5-9, test_vit (3 seeds;
    benchmarks/CARDS.md).
    """
    return Strategy(TrainAll(), clip_norm=1.0)


def freeze_first(blocks: int = 3) -> Strategy:
    """Fine-tuning with the lowest blocks frozen.

    Low-level features transfer best (Yosinski et al. 2014, arXiv:1411.1792), and a frozen stem needs no backward pass.
    One of source 002's configurations.

    Measured: 79.9% ± 2.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        blocks: number of frozen blocks, at least 1.

    Raises:
        ValueError: If `blocks` is below 1.
    """
    return Strategy(FreezeFirstBlocks(_check_at_least_one("blocks", blocks, "naive")))


def train_last(blocks: int = 3) -> Strategy:
    """Fine-tuning only the head and the last blocks.

    Between linear_probe and naive: source 002's advice for few images unlike those of pretraining. Where the split
    should be is the question of Yosinski et al. (2014), arXiv:1411.1792.

    Measured: 69.8% ± 7.9% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        blocks: number of trained blocks, at least 1.

    Raises:
        ValueError: If `blocks` is below 1.
    """
    return Strategy(TrainLastBlocks(_check_at_least_one("blocks", blocks, "linear_probe")))


def early_cut(stage: int = 3) -> Strategy:
    """Linear classifier on the frozen features of an early stage.

    Everything above the stage is removed. What sources 003 and 004 advise for few images unlike those of pretraining:
    late features are too specialised, early ones are edges and textures, which all images have. Also several times
    cheaper.

    Measured: 28.1% ± 5.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        stage: the last stage to keep, from 1 to the number of stages minus 1.
    """
    return Strategy(HeadFirst(freeze_epochs=None), transform_model=lambda model, size: TruncatedModel(model, stage))


def drop_early(stage: int = 1) -> Strategy:
    """New head on the frozen late stages, the early ones removed.

    The literal steps of source 003 for images unlike those of pretraining, which contradict its own prose: that keeps
    the early layers (`early_cut`). The late stages then get inputs unlike any they were trained on, so expect little.
    Networks whose stages do not fit together without the removed ones are refused, which is most convolutional
    networks.

    Measured: 65.6% ± 5.1% on digits-5-9, test_resnet; 47.8% ± 8.4% on digits-5-9, test_vit (3 seeds;
    benchmarks/CARDS.md).

    Args:
        stage: the last stage to remove, from 1 to the number of stages minus 1.
    """
    return Strategy(HeadFirst(freeze_epochs=None), transform_model=lambda model, size: drop_stages(model, stage, size))


def gradual_unfreeze(blocks: int = 3, until: float = 0.5) -> Strategy:
    """Fine-tuning, unfreezing blocks from the top down.

    Trains the head first, then unfreezes `blocks` more blocks at a time, all by `until`. Gentle on the lower layers,
    which change last and least (Howard & Ruder 2018, arXiv:1801.06146, for text). Runs of a few epochs are hardly long
    enough for it.

    Measured: 81.6% ± 2.4% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        blocks: number of blocks unfrozen at a time, at least 1.
        until: fraction of the epochs after which everything moves, in (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """
    if not 0 < until < 1:
        raise ValueError(f"until must be above 0 and below 1, got {until}")
    return Strategy(GradualUnfreeze(_check_at_least_one("blocks", blocks, "linear_probe"), until))


def layer_decay(decay: float = 0.75) -> Strategy:
    """Full fine-tuning with lower learning rates in lower blocks.

    Each block learns `decay` times as fast as the one above it. Standard for fine-tuning transformers (Clark et al.
    2020, arXiv:2003.10555; 0.75 as in BEiT, Bao et al. 2021, arXiv:2106.08254): preserves the general features low in
    the network and adapts the specialised ones at the top.

    Measured: 65.3% ± 9.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        decay: learning-rate factor per block, in (0, 1].

    Raises:
        ValueError: If `decay` is outside its range.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, got {decay}")
    return Strategy(SlowerWithDepth(decay))


def lp_ft(penalty: float = 1.0) -> Strategy:
    """Logistic regression on frozen features, then full fine-tuning.

    Starts from the head of `logistic_probe` with the same penalty. With a fitted head the first gradients no longer
    distort the features; better than plain fine-tuning especially on images unlike the training ones. The fit takes one
    pass over the images. Unless penalties are given, a sweep first determines which one makes the best head. Kumar et
    al. 2022, arXiv:2202.10054.

    Measured: 71.9% ± 4.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        penalty: weight of half the squared norm of the head's weights, above 0.

    Raises:
        ValueError: If `penalty` is not above 0.
    """
    return Strategy(TrainAll(), fit=HeadFit("logistic", penalty))


def bitfit() -> Strategy:
    """Fine-tuning only the head, biases and normalization shifts.

    Less than a percent of the parameters, so there is little to overfit and little to store per task. The backward pass
    still goes through the whole network: it is not faster. Ben Zaken et al. 2022, arXiv:2106.10199.

    Measured: 58.7% ± 3.9% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainParamKinds(("bias", "shift")))


def lora(rank: int = 8) -> Strategy:
    """Fine-tuning the head and low-rank updates of a frozen backbone.

    Adds a trainable product of rank `rank` to every linear layer below the head. For large transformers: about a
    percent of the parameters move, and the result is merged into weights of the original shape. Networks without linear
    layers below the head are refused. Hu et al. 2022, arXiv:2106.09685.

    Measured: 32.2% ± 13.5% on digits-5-9, test_vit (3 seeds; benchmarks/CARDS.md).

    Args:
        rank: inner dimension of the products, at least 1.

    Raises:
        ValueError: If `rank` is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    return Strategy(
        TrainParamKinds(("adapter",)),
        transform_model=lambda model, size: add_low_rank(model, rank, model.get_classifier()),
    )


def l2_sp(strength: float = 0.01) -> Strategy:
    """Full fine-tuning, pulled towards the pretrained weights.

    Replaces the body's weight decay, which pulls towards 0 and so away from what was learned in pretraining. Helps on
    few images. Li et al. 2018, arXiv:1802.01483.

    Measured: 79.2% ± 4.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        strength: factor of the distance to the pretrained weights in the gradient, above 0.

    Raises:
        ValueError: If `strength` is not above 0.
    """
    if strength <= 0:
        raise ValueError(f"strength must be above 0, got {strength}; for 0 use strategy naive")
    return Strategy(TrainAll(), regularizer=L2SP(strength))


def surgical(block: int = 1) -> Strategy:
    """Fine-tuning only the head and one quarter of the backbone.

    Block 1 is the lowest quarter, 4 the one below the head. Which quarter is best depends on how the images differ:
    noise and colour call for the lowest, other classes for the highest. Lee et al. 2023, arXiv:2210.11466.

    Measured: 71.9% ± 7.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        block: the quarter, from 1 to 4.

    Raises:
        ValueError: If `block` is outside its range.
    """
    if not 1 <= block <= 4:
        raise ValueError(f"block must be a quarter of the network from 1 (lowest) to 4, got {block}")
    return Strategy(TrainOneQuarter(block))


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    f.__name__: f
    for f in (
        *(scratch, small_cnn, linear_probe, ridge_probe, logistic_probe),
        *(freeze_then_unfreeze, freeze_until_converged, naive, clip),
        *(freeze_first, train_last, early_cut, drop_early, gradual_unfreeze, layer_decay),
        *(lp_ft, bitfit, lora, l2_sp, surgical),
    )
}


def _check_at_least_one(name: str, value: int, alternative: str) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}; for 0 use strategy {alternative}")
    return value
