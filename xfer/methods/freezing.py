"""Pace: how fast each parameter moves, and when; 0 freezes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from xfer.models.params import Kind, Param


@dataclass(frozen=True)
class TrainingProgress:
    """Where in its training a run stands."""

    epoch: int
    """The epoch being trained, counted from 0."""
    epochs: int
    """How many epochs the whole run has."""
    val_losses: tuple[float, ...] = ()
    """The validation loss after each epoch so far."""


class Pace(Protocol):
    """A multiplier of the learning rate for every parameter, constant over an epoch. 0 freezes.

    A parameter that is frozen costs no gradient, and a normalisation layer or dropout in a part of the network where
    everything is frozen behaves as in evaluation (see `Run`).
    """

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """The multiplier, at least 0."""
        ...

    def unfreezing_ends_after(self, epochs: int) -> int:
        """After how many of a run's epochs, at the latest, all that will ever move does."""
        return 0

    def check(self, blocks: int) -> None:
        """Raise a ValueError where this pace makes no sense for a network of so many blocks below its head."""
        return


@dataclass(frozen=True)
class TrainAll(Pace):
    """Everything moves at the same pace from the first step.

    >>> TrainAll()(Param(depth=7), TrainingProgress(epoch=0, epochs=10))
    1.0
    """

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """1 for every parameter at every moment."""
        return 1.0


@dataclass(frozen=True)
class HeadFirst(Pace):
    """Only the head moves for `freeze_epochs` epochs, then everything does. None: only the head, throughout.

    >>> pace = HeadFirst(freeze_epochs=2)
    >>> [pace(Param(depth=1), TrainingProgress(epoch, epochs=4)) for epoch in range(4)]
    [0.0, 0.0, 1.0, 1.0]
    >>> pace(Param(depth=0), TrainingProgress(0, epochs=4))
    1.0
    """

    freeze_epochs: int | None

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """1 for the head and, once the body is free, for everything; 0 for a frozen body."""
        free = self.freeze_epochs is not None and moment.epoch >= self.freeze_epochs
        return 1.0 if free or param.depth == 0 else 0.0

    def unfreezing_ends_after(self, epochs: int) -> int:
        """The epochs in which the body is frozen, where it will not be for good."""
        return self.freeze_epochs or 0


@dataclass(frozen=True)
class HeadUntilConverged(Pace):
    """Only the head moves until its validation loss no longer falls, then everything does.

    The head has converged when the last `patience` epochs did not bring the best loss down by 1%. At half of the
    epochs the body is freed in any case: something must be left to train it.

    >>> pace = HeadUntilConverged(patience=1)
    >>> pace(Param(depth=1), TrainingProgress(2, 10, val_losses=(1.0, 0.8)))
    0.0
    >>> pace(Param(depth=1), TrainingProgress(3, 10, val_losses=(1.0, 0.8, 0.799)))
    1.0
    """

    patience: int

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """1 for the head and, once that has converged or time is half up, for everything; 0 for a frozen body."""
        past = range(1, len(moment.val_losses) + 1)
        converged = any(self._converged(moment.val_losses[:epochs]) for epochs in past)
        late = moment.epoch >= self.unfreezing_ends_after(moment.epochs)
        return 1.0 if param.depth == 0 or converged or late else 0.0

    def unfreezing_ends_after(self, epochs: int) -> int:
        """Half of the epochs, rounded up."""
        return math.ceil(epochs / 2)

    def _converged(self, losses: tuple[float, ...]) -> bool:
        before, since = losses[: -self.patience], losses[-self.patience :]
        return bool(before) and min(since) > 0.99 * min(before)


@dataclass(frozen=True)
class TrainLastBlocks(Pace):
    """Only the head and the `blocks` blocks below it move.

    >>> [TrainLastBlocks(blocks=2)(Param(depth), TrainingProgress(0, epochs=4)) for depth in range(4)]
    [1.0, 1.0, 1.0, 0.0]
    """

    blocks: int

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """1 for the upper part, 0 for the rest."""
        return 1.0 if param.depth <= self.blocks else 0.0

    def check(self, blocks: int) -> None:
        """Refuse to train more blocks than there are, or all of them."""
        _check_fewer("trains the last", self.blocks, blocks, "naive")


@dataclass(frozen=True)
class FreezeFirstBlocks(Pace):
    """Everything moves but the lowest `blocks` blocks, the stem among them.

    >>> [FreezeFirstBlocks(blocks=1)(Param(depth=3 - height, height=height), TrainingProgress(0, epochs=4)) for height in range(3)]
    [0.0, 1.0, 1.0]
    """

    blocks: int

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """0 for the lower part, 1 for the rest."""
        return 1.0 if param.depth == 0 or param.height >= self.blocks else 0.0

    def check(self, blocks: int) -> None:
        """Refuse to freeze more blocks than there are, or all of them."""
        _check_fewer("freezes the first", self.blocks, blocks, "linear_probe")


@dataclass(frozen=True)
class GradualUnfreeze(Pace):
    """The head first, then `blocks` more blocks at a time from the top, in equal steps; all of them by `until`.

    >>> pace = GradualUnfreeze(blocks=2, until=0.5)
    >>> [pace(Param(depth=3, height=1), TrainingProgress(epoch, epochs=8)) for epoch in range(6)]
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    >>> [pace(Param(depth=2, height=2), TrainingProgress(epoch, epochs=8)) for epoch in range(6)]
    [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """

    blocks: int
    until: float

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """1 for the head and whatever has been freed, 0 for the rest."""
        steps, step = math.ceil(param.blocks / self.blocks), math.ceil(param.depth / self.blocks)
        return 1.0 if moment.epoch >= self._after(step / max(steps, 1), moment.epochs) else 0.0

    def unfreezing_ends_after(self, epochs: int) -> int:
        """The share `until` of the epochs, rounded up."""
        return self._after(1.0, epochs)

    def _after(self, share: float, epochs: int) -> int:
        # Rounded first, for 0.56 * 50 is a little more than 28 to a computer.
        return math.ceil(round(share * self.until * epochs, 9))


@dataclass(frozen=True)
class SlowerWithDepth(Pace):
    """Each block below the head moves `decay` times as fast as the one above it.

    >>> SlowerWithDepth(decay=0.5)(Param(depth=2), TrainingProgress(0, epochs=4))
    0.25
    """

    decay: float

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """`decay` to the power of the depth."""
        return float(self.decay**param.depth)


@dataclass(frozen=True)
class TrainParamKinds(Pace):
    """Of the body only parameters of some kinds move; the head moves as a whole.

    >>> pace = TrainParamKinds(("bias",))
    >>> [pace(Param(1, kind), TrainingProgress(0, epochs=4)) for kind in ("bias", "weight")]
    [1.0, 0.0]
    """

    kinds: tuple[Kind, ...]

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """1 for the head and those kinds, 0 for the rest."""
        return 1.0 if param.depth == 0 or param.kind in self.kinds else 0.0


@dataclass(frozen=True)
class TrainOneQuarter(Pace):
    """Only the head and one quarter of the body move; quarter 1 is the lowest, 4 the one below the head.

    >>> pace = TrainOneQuarter(quarter=1)
    >>> [pace(Param(depth=8 - height, height=height), TrainingProgress(0, epochs=4)) for height in (0, 1, 2)]
    [1.0, 1.0, 0.0]
    """

    quarter: int

    def __call__(self, param: Param, moment: TrainingProgress) -> float:
        """1 for the head and that quarter, 0 for the rest."""
        moves = param.depth == 0 or 4 * param.height // max(param.blocks, 1) + 1 == self.quarter
        return 1.0 if moves else 0.0

    def check(self, blocks: int) -> None:
        """Refuse networks of fewer than four blocks."""
        if blocks < 4:
            raise ValueError(f"a quarter of {blocks} blocks is less than one: surgical needs a network of at least 4")


def _check_fewer(does: str, asked: int, blocks: int, otherwise: str) -> None:
    if asked >= blocks:
        raise ValueError(
            f"it {does} {asked} blocks, but this network has {blocks} below its head: give at most {blocks - 1}, or "
            f"take {otherwise}"
        )
