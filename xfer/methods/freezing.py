"""Pace: how fast each parameter moves in each epoch; 0 freezes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from xfer.models.params import Kind, Param


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run has come."""

    epoch: int
    """Epoch being trained, counted from 0."""
    epochs: int
    """Number of epochs of the whole run."""
    val_losses: tuple[float, ...] = ()
    """Validation loss after each completed epoch."""


class Pace(Protocol):
    """Learning-rate multiplier of every parameter, constant within an epoch; 0 freezes.

    A frozen parameter gets no gradient, and normalisation layers and dropout in an entirely frozen part of the network
    run in evaluation mode (see `Run`).
    """

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns the multiplier, at least 0."""
        ...

    def unfreezing_ends_after(self, epochs: int) -> int:
        """Returns the number of epochs after which every parameter that will ever move does, at the latest."""
        return 0

    def check(self, blocks: int) -> None:
        """Raises a ValueError if this pace makes no sense for a network with `blocks` blocks below its head."""
        return


@dataclass(frozen=True)
class TrainAll(Pace):
    """Trains everything at the same pace from the first step.

    >>> TrainAll()(Param(depth=7), TrainingProgress(epoch=0, epochs=10))
    1.0
    """

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 1."""
        return 1.0


@dataclass(frozen=True)
class HeadFirst(Pace):
    """Trains only the head for `freeze_epochs` epochs, then everything. None: only the head throughout.

    >>> pace = HeadFirst(freeze_epochs=2)
    >>> [pace(Param(depth=1), TrainingProgress(epoch, epochs=4)) for epoch in range(4)]
    [0.0, 0.0, 1.0, 1.0]
    >>> pace(Param(depth=0), TrainingProgress(0, epochs=4))
    1.0
    """

    freeze_epochs: int | None

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 1 for the head and, once it is unfrozen, the body; otherwise 0."""
        unfrozen = self.freeze_epochs is not None and progress.epoch >= self.freeze_epochs
        return 1.0 if unfrozen or param.depth == 0 else 0.0

    def unfreezing_ends_after(self, epochs: int) -> int:
        """Returns `freeze_epochs`, or 0 if the body is never unfrozen."""
        return self.freeze_epochs or 0


@dataclass(frozen=True)
class HeadUntilConverged(Pace):
    """Trains only the head until its validation loss stops falling, then everything.

    The head has converged when the last `patience` epochs did not lower the best loss by 1%. The body is unfrozen after
    half of the epochs in any case, so that it gets some training.

    >>> pace = HeadUntilConverged(patience=1)
    >>> pace(Param(depth=1), TrainingProgress(2, 10, val_losses=(1.0, 0.8)))
    0.0
    >>> pace(Param(depth=1), TrainingProgress(3, 10, val_losses=(1.0, 0.8, 0.799)))
    1.0
    """

    patience: int

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 1 for the head and, after convergence or half of the epochs, the body; otherwise 0."""
        completed = range(1, len(progress.val_losses) + 1)
        converged = any(self._converged(progress.val_losses[:epochs]) for epochs in completed)
        late = progress.epoch >= self.unfreezing_ends_after(progress.epochs)
        return 1.0 if param.depth == 0 or converged or late else 0.0

    def unfreezing_ends_after(self, epochs: int) -> int:
        """Returns half of the epochs, rounded up."""
        return math.ceil(epochs / 2)

    def _converged(self, losses: tuple[float, ...]) -> bool:
        earlier, recent = losses[: -self.patience], losses[-self.patience :]
        return bool(earlier) and min(recent) > 0.99 * min(earlier)


@dataclass(frozen=True)
class TrainLastBlocks(Pace):
    """Trains only the head and the `blocks` blocks below it.

    >>> [TrainLastBlocks(blocks=2)(Param(depth), TrainingProgress(0, epochs=4)) for depth in range(4)]
    [1.0, 1.0, 1.0, 0.0]
    """

    blocks: int

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 1 for the upper part, 0 for the rest."""
        return 1.0 if param.depth <= self.blocks else 0.0

    def check(self, blocks: int) -> None:
        """Raises a ValueError unless the network has more than `self.blocks` blocks."""
        _check_fewer("trains the last", self.blocks, blocks, "naive")


@dataclass(frozen=True)
class FreezeFirstBlocks(Pace):
    """Trains everything except the lowest `blocks` blocks, which include the stem.

    >>> pace = FreezeFirstBlocks(blocks=1)
    >>> [pace(Param(depth=3 - height, height=height), TrainingProgress(0, epochs=4)) for height in range(3)]
    [0.0, 1.0, 1.0]
    """

    blocks: int

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 0 for the lower part, 1 for the rest."""
        return 1.0 if param.depth == 0 or param.height >= self.blocks else 0.0

    def check(self, blocks: int) -> None:
        """Raises a ValueError unless the network has more than `self.blocks` blocks."""
        _check_fewer("freezes the first", self.blocks, blocks, "linear_probe")


@dataclass(frozen=True)
class GradualUnfreeze(Pace):
    """Unfreezes `blocks` more blocks at a time from the top, in equal steps; all of them by `until`.

    >>> pace = GradualUnfreeze(blocks=2, until=0.5)
    >>> [pace(Param(depth=3, height=1), TrainingProgress(epoch, epochs=8)) for epoch in range(6)]
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    >>> [pace(Param(depth=2, height=2), TrainingProgress(epoch, epochs=8)) for epoch in range(6)]
    [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """

    blocks: int
    until: float

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 1 for the head and the blocks unfrozen so far, 0 for the rest."""
        steps, step = math.ceil(param.blocks / self.blocks), math.ceil(param.depth / self.blocks)
        return 1.0 if progress.epoch >= self._epochs_until(step / max(steps, 1), progress.epochs) else 0.0

    def unfreezing_ends_after(self, epochs: int) -> int:
        """Returns the fraction `until` of the epochs, rounded up."""
        return self._epochs_until(1.0, epochs)

    def _epochs_until(self, fraction: float, epochs: int) -> int:
        # Rounded first: in floating point 0.56 * 50 is slightly above 28.
        return math.ceil(round(fraction * self.until * epochs, 9))


@dataclass(frozen=True)
class SlowerWithDepth(Pace):
    """Multiplies the learning rate by `decay` for each block below the head.

    >>> SlowerWithDepth(decay=0.5)(Param(depth=2), TrainingProgress(0, epochs=4))
    0.25
    """

    decay: float

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns `decay` to the power of the depth."""
        return float(self.decay**param.depth)


@dataclass(frozen=True)
class TrainParamKinds(Pace):
    """Trains the whole head, and only parameters of the given kinds in the body.

    >>> pace = TrainParamKinds(("bias",))
    >>> [pace(Param(1, kind), TrainingProgress(0, epochs=4)) for kind in ("bias", "weight")]
    [1.0, 0.0]
    """

    kinds: tuple[Kind, ...]

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 1 for the head and those kinds, 0 for the rest."""
        return 1.0 if param.depth == 0 or param.kind in self.kinds else 0.0


@dataclass(frozen=True)
class TrainOneQuarter(Pace):
    """Trains only the head and one quarter of the body; quarter 1 is the lowest, 4 the one below the head.

    >>> pace = TrainOneQuarter(quarter=1)
    >>> [pace(Param(depth=8 - height, height=height), TrainingProgress(0, epochs=4)) for height in (0, 1, 2)]
    [1.0, 1.0, 0.0]
    """

    quarter: int

    def __call__(self, param: Param, progress: TrainingProgress) -> float:
        """Returns 1 for the head and that quarter, 0 for the rest."""
        moves = param.depth == 0 or 4 * param.height // max(param.blocks, 1) + 1 == self.quarter
        return 1.0 if moves else 0.0

    def check(self, blocks: int) -> None:
        """Raises a ValueError for networks with fewer than four blocks."""
        if blocks < 4:
            raise ValueError(
                f"surgical trains a quarter of the blocks and needs a network with at least 4; this one has {blocks}"
            )


def _check_fewer(does: str, requested: int, available: int, alternative: str) -> None:
    if requested >= available:
        raise ValueError(
            f"the strategy {does} {requested} blocks, but this network has {available} below its head: use at most "
            f"{available - 1}, or strategy {alternative}"
        )
