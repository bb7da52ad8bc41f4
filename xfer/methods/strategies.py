"""Strategies: what of the pretrained network moves, and when. One short function each.

A strategy's signature is the list of its hyperparameters; the values worth trying stand in sweeps/engine/spaces.py.
Gradient clipping is an axis of its own and composes with every strategy; a preset may bring a value for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xfer.methods.freezing import HeadFirst, Pace, Together


@dataclass(frozen=True)
class Strategy:
    """What a strategy comes to: where it starts from, and how fast each parameter moves."""

    pace: Pace
    pretrained: bool = True
    """Whether the run starts from the backbone's weights or from random ones."""
    clip_norm: float | None = None
    """The clip norm that a preset stands for; the recipe may set another one, but not none."""
    settled_after: int = 0
    """After how many epochs all that will ever move does: no run is judged before the epoch that follows."""


def scratch() -> Strategy:
    """The same architecture from random weights: the yardstick for what transfer brings."""
    return Strategy(Together(), pretrained=False)


def linear_probe() -> Strategy:
    """Only the new head is trained, on frozen features: cheap, and hard to beat on little data like the source's."""
    return Strategy(HeadFirst(freeze_epochs=None))


def freeze_then_unfreeze(freeze_epochs: int = 2) -> Strategy:
    """The head alone for `freeze_epochs` epochs, then everything: the usual advice (Howard & Ruder 2018, in spirit).

    It keeps the random head's first large gradients away from the pretrained weights.

    Raises:
        ValueError: nothing would be frozen; that is `naive`.
    """
    if freeze_epochs < 1:
        raise ValueError(f"freeze_epochs is {freeze_epochs}; at least 1 is needed, for 0 is what naive does")
    return Strategy(HeadFirst(freeze_epochs), settled_after=freeze_epochs)


def naive() -> Strategy:
    """Everything moves from the first step, with nothing to protect the pretrained weights."""
    return Strategy(Together())


def clip() -> Strategy:
    """`naive` with the global gradient norm clipped at 1.0: the head's first gradients are bounded, nothing is frozen.

    The way that the study this project grew out of advises to start with.
    """
    return Strategy(Together(), clip_norm=1.0)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    f.__name__: f for f in (scratch, linear_probe, freeze_then_unfreeze, naive, clip)
}
