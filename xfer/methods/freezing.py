"""Pace: how fast each parameter moves, and when; 0 freezes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xfer.params import Param


@dataclass(frozen=True)
class Moment:
    """Where in its training a run stands."""

    epoch: int
    """The epoch being trained, counted from 0."""
    epochs: int
    """How many epochs the whole run has."""


class Pace(Protocol):
    """A multiplier of the learning rate for every parameter, constant over an epoch. 0 freezes.

    A parameter that is frozen costs no gradient, and a normalisation layer or dropout in a part of the network where
    everything is frozen behaves as in evaluation (see `Run`).
    """

    def __call__(self, param: Param, moment: Moment) -> float:
        """The multiplier, at least 0."""
        ...


@dataclass(frozen=True)
class Together:
    """Everything moves at the same pace from the first step.

    >>> Together()(Param(depth=7), Moment(epoch=0, epochs=10))
    1.0
    """

    def __call__(self, param: Param, moment: Moment) -> float:
        """1 for every parameter at every moment."""
        return 1.0


@dataclass(frozen=True)
class HeadFirst:
    """Only the head moves for `freeze_epochs` epochs, then everything does. None: only the head, throughout.

    >>> pace = HeadFirst(freeze_epochs=2)
    >>> [pace(Param(depth=1), Moment(epoch, epochs=4)) for epoch in range(4)]
    [0.0, 0.0, 1.0, 1.0]
    >>> pace(Param(depth=0), Moment(0, epochs=4))
    1.0
    """

    freeze_epochs: int | None

    def __call__(self, param: Param, moment: Moment) -> float:
        """1 for the head and, once the body is free, for everything; 0 for a frozen body."""
        free = self.freeze_epochs is not None and moment.epoch >= self.freeze_epochs
        return 1.0 if free or param.depth == 0 else 0.0
