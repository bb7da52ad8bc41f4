"""Strategies: what of the pretrained network moves, and when. One short function each.

A strategy's signature is the list of its hyperparameters; the values worth trying stand in xfer/hyperparameters.py.
Gradient clipping, batch norm, head and activation are axes of their own and compose with every strategy; a preset may
bring a value for one. Blocks are timm's, counted without the head; stages are described in cuts.py.
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
"""(a timm network with its weights, side of the images in pixels) to the network that is trained."""


def keep_model(model: Any, image_size: int) -> Any:
    """The network as it is."""
    return model


@dataclass(frozen=True)
class HeadFit:
    """A linear head fitted to convergence on frozen features, as `xfer.linear_heads` does it.

    Raises:
        ValueError: a penalty that is not above 0, without which the head that fits best may not be the only one.
    """

    how: Literal["logistic", "ridge"]
    penalty: float
    """On the squared size of the head's weights."""

    def __post_init__(self) -> None:
        if not 0 < self.penalty < math.inf:
            raise ValueError(
                f"penalty is {self.penalty}; it must be above 0, and finite: without it many heads fit equally well"
            )


@dataclass(frozen=True)
class Strategy:
    """What a strategy comes to: where it starts from, how fast each parameter moves, and what else it does."""

    pace: Pace
    pretrained: bool = True
    """Whether the run starts from the backbone's weights or from random ones."""
    clip_norm: float | None = None
    """The clip norm that a preset stands for; the recipe may set another one, but not none."""
    transform_model: ModelTransform = keep_model
    """What is done to the network once it has its weights. A ValueError says that this network cannot do it."""
    regularizer: Regularizer | None = None
    """What keeps the body near its starting weights, in the place of its weight decay."""
    fit: HeadFit | None = None
    """How the head is fitted before the first step, where it is."""
    steps: bool = True
    """Whether any follow. Without, the fit is all there is: a run of one epoch in which nothing else happens."""
    backbone: str | None = None
    """The network that the strategy brings; None where the recipe's is meant."""


def scratch() -> Strategy:
    """The same architecture from random weights: the yardstick for what transfer brings.

    Helps where there are images in abundance and nothing like them in pretraining (He et al. 2019).

    Measured: 21.5% ± 1.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainAll(), pretrained=False)


def small_cnn() -> Strategy:
    """A plain network of 0.86 million parameters from random weights, in the place of the backbone (see basic_cnn.py).

    The other yardstick: what one reaches without transfer and without a large architecture. Source 000 saw it beat the
    large one from scratch.

    Measured: 51.0% ± 2.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainAll(), pretrained=False, backbone="basic_cnn")


def linear_probe() -> Strategy:
    """Only the new head is trained, on frozen features: cheap, and hard to beat on little data like the source's.

    The oldest way of transferring a convolutional network (Razavian et al. 2014); it loses where the images are unlike
    those of pretraining.

    Measured: 62.2% ± 8.7% on simpsons, mobilenetv2_100; 60.0% ± 3.3% on digits-5-9, test_resnet; 44.4% ± 10.7% on
    digits-5-9, test_vit (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(HeadFirst(freeze_epochs=None))


def ridge_probe(penalty: float = 100.0) -> Strategy:
    """A linear head in closed form on frozen features: least squares on one-hot targets, the weights penalised.

    `linear_probe` without a rate, a schedule or an epoch to choose (Hoerl & Kennard 1970). Its outputs are no
    log-probabilities, so read its accuracy and not its loss. One decomposition serves many penalties side by side.

    Raises:
        ValueError: a penalty that is not above 0.
    """
    return Strategy(HeadFirst(freeze_epochs=None), fit=HeadFit("ridge", penalty), steps=False)


def logistic_probe(penalty: float = 1.0) -> Strategy:
    """Multinomial logistic regression on frozen features, to convergence by L-BFGS, the weights penalised.

    The way in which features are commonly compared (Kornblith et al. 2019): `linear_probe` with nothing to choose but
    the penalty, the inverse of scikit-learn's C. `lp_ft` with the same penalty starts from this very head.

    Raises:
        ValueError: a penalty that is not above 0.
    """
    return Strategy(HeadFirst(freeze_epochs=None), fit=HeadFit("logistic", penalty), steps=False)


def freeze_then_unfreeze(freeze_epochs: int = 2) -> Strategy:
    """The head alone for `freeze_epochs` epochs, then everything: the usual advice (Howard & Ruder 2018, in spirit).

    It keeps the random head's first large gradients away from the pretrained weights.

    Measured: 74.0% ± 2.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: nothing would be frozen; that is `naive`.
    """
    if freeze_epochs < 1:
        raise ValueError(f"freeze_epochs is {freeze_epochs}; at least 1 is needed, for 0 is what naive does")
    return Strategy(HeadFirst(freeze_epochs))


def freeze_until_converged(patience: int = 1) -> Strategy:
    """The head alone until its validation loss stops falling for `patience` epochs, then everything.

    The variant that source 000 mentions of its "recommended way": nobody has to guess how long. Freed at half of the
    epochs at the latest, so in short runs it is `freeze_then_unfreeze`.

    Measured: 54.9% ± 1.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: no patience at all.
    """
    if patience < 1:
        raise ValueError(f"patience is {patience}; at least 1 epoch is needed to see whether the loss still falls")
    return Strategy(HeadUntilConverged(patience))


def naive() -> Strategy:
    """Everything moves from the first step, with nothing to protect the pretrained weights.

    Plain fine-tuning (Girshick et al. 2014): right where there are many images, or they are unlike pretraining's.

    Measured: 83.0% ± 4.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainAll())


def clip() -> Strategy:
    """`naive` with the global gradient norm clipped at 1.0: the head's first gradients are bounded, nothing is frozen.

    The way that source 000 advises to start with; clipping itself is Pascanu et al.'s (2013).

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100; 45.6% ± 15.8% on digits-5-9, test_vit (3 seeds;
    benchmarks/CARDS.md).
    """
    return Strategy(TrainAll(), clip_norm=1.0)


def freeze_first(blocks: int = 3) -> Strategy:
    """The lowest `blocks` blocks stay frozen, the rest is trained.

    Low-level features carry over best (Yosinski et al. 2014), and a frozen stem needs no backward pass. One of source
    002's arms.

    Measured: 79.9% ± 2.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: no block.
    """
    return Strategy(FreezeFirstBlocks(_at_least_one("blocks", blocks, "naive")))


def train_last(blocks: int = 3) -> Strategy:
    """The head and the `blocks` blocks below it are trained, the rest stays frozen.

    Between linear_probe and naive: source 002's advice for few images unlike those of pretraining. Where the split
    should be is the question of Yosinski et al. (2014).

    Measured: 69.8% ± 7.9% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: no block.
    """
    return Strategy(TrainLastBlocks(_at_least_one("blocks", blocks, "linear_probe")))


def early_cut(stage: int = 3) -> Strategy:
    """A linear classifier on the frozen features of an early stage, all above it removed.

    What sources 003 and 004 mean for few images unlike those of pretraining: late features are too particular, early
    ones are edges and textures, which everything has. Also several times cheaper.

    Measured: 28.1% ± 5.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(HeadFirst(freeze_epochs=None), transform_model=lambda model, size: TruncatedModel(model, stage))


def drop_early(stage: int = 1) -> Strategy:
    """The early stages removed, the late ones kept and frozen, a new head trained: source 003 to the letter.

    Its steps for images unlike those of pretraining say so, against its own prose, which wants the early layers
    (`early_cut`). Late stages then meet what they never saw, so expect little. Refused by networks whose stages do not
    fit together without the removed ones, which is most convolutional ones.

    Measured: 65.6% ± 5.1% on digits-5-9, test_resnet; 47.8% ± 8.4% on digits-5-9, test_vit (3 seeds;
    benchmarks/CARDS.md).
    """
    return Strategy(HeadFirst(freeze_epochs=None), transform_model=lambda model, size: drop_stages(model, stage, size))


def gradual_unfreeze(blocks: int = 3, until: float = 0.5) -> Strategy:
    """The head first, then `blocks` more blocks at a time from the top, all of them by `until` of the epochs.

    Gentle with the lower layers, which change last and least (Howard & Ruder 2018, for text). In runs of a few epochs
    there is hardly time for it.

    Measured: 81.6% ± 2.4% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: no block, or a share that is not inside (0, 1).
    """
    if not 0 < until < 1:
        raise ValueError(f"until is {until}; it must lie between 0 and 1, both excluded")
    return Strategy(GradualUnfreeze(_at_least_one("blocks", blocks, "linear_probe"), until))


def layer_decay(decay: float = 0.75) -> Strategy:
    """Everything moves, each block `decay` times as fast as the one above it.

    Standard for fine-tuning transformers (Clark et al. 2020; 0.75 as in BEiT, Bao et al. 2021): general features low in
    the network are kept, particular ones at the top adapt.

    Measured: 65.3% ± 9.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a decay that is not inside (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}; it must lie above 0 and be at most 1")
    return Strategy(SlowerWithDepth(decay))


def lp_ft(penalty: float = 1.0) -> Strategy:
    """The head of `logistic_probe` with this penalty first, then everything is trained from there.

    With a head that fits, the first gradients no longer distort the features; better than plain fine-tuning above all
    on images unlike the training ones (Kumar et al. 2022). The fit takes one pass over the images. Unless penalties are
    asked for, a sweep finds out beforehand which makes the best head.

    Measured: 71.9% ± 4.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a penalty that is not above 0.
    """
    return Strategy(TrainAll(), fit=HeadFit("logistic", penalty))


def bitfit() -> Strategy:
    """Only the head, the biases and the shifts of normalisation layers are trained (Ben Zaken et al. 2022).

    Below a percent of the parameters, so there is little to overfit with and little to store for each task. The
    backward pass goes through the whole network all the same: it is not faster.

    Measured: 58.7% ± 3.9% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Strategy(TrainParamKinds(("bias", "shift")))


def lora(rank: int = 8) -> Strategy:
    """Every linear layer of a frozen body gets a trainable product of rank `rank` (Hu et al. 2022).

    For large transformers: a percent of the parameters move, and the result is merged into weights of the old shape.
    Refused by networks without linear layers below the head.

    Measured: 32.2% ± 13.5% on digits-5-9, test_vit (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; at least 1 is needed")
    return Strategy(
        TrainParamKinds(("adapter",)),
        transform_model=lambda model, size: add_low_rank(model, rank, model.get_classifier()),
    )


def l2_sp(strength: float = 0.01) -> Strategy:
    """Everything moves, pulled back towards the pretrained weights with `strength` (Li et al. 2018).

    Takes the place of the body's weight decay, which pulls towards 0 and so away from what was learned before. Helps
    on few images.

    Measured: 79.2% ± 4.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: a strength that is not above 0.
    """
    if strength <= 0:
        raise ValueError(f"strength is {strength}; it must be above 0, for 0 is what naive does")
    return Strategy(TrainAll(), regularizer=L2SP(strength))


def surgical(block: int = 1) -> Strategy:
    """Only the head and one quarter of the body are trained; block 1 is the lowest quarter, 4 the one below the head.

    Which quarter is right says how the images differ: noise and colour call for the lowest, other classes for the
    highest (Lee et al. 2023).

    Measured: 71.9% ± 7.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Raises:
        ValueError: there is no such quarter.
    """
    if not 1 <= block <= 4:
        raise ValueError(f"block is {block}; it is a quarter of the network, from 1 (lowest) to 4")
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


def _at_least_one(name: str, value: int, otherwise: str) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; at least 1 is needed, for 0 is what {otherwise} does")
    return value
