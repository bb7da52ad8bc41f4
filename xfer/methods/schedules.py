"""Schedules: pure functions from progress in [0, 1] to a multiplier of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def onecycle() -> Schedule:
    """Up from 1/25 to 1 over the first 30%, down to 1/250,000 over the rest, both along a cosine (Smith 2018).

    The learning-rate half of `torch.optim.lr_scheduler.OneCycleLR` with its defaults; momentum is left alone.

    >>> rate = onecycle()
    >>> [round(rate(progress), 3) for progress in (0.0, 0.3, 0.65, 1.0)]
    [0.04, 1.0, 0.5, 0.0]
    """
    warmup_fraction, start, end = 0.3, 1 / 25, 1 / 25 / 1e4

    def rate(progress: float) -> float:
        if progress < warmup_fraction:
            return _cosine(start, 1.0, progress / warmup_fraction)
        return _cosine(1.0, end, (progress - warmup_fraction) / (1 - warmup_fraction))

    return rate


def cosine() -> Schedule:
    """From 1 down to 0 along half a cosine (Loshchilov & Hutter 2017), without restarts.

    >>> [round(cosine()(progress), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return lambda progress: _cosine(1.0, 0.0, progress)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[..., Schedule]] = {f.__name__: f for f in (onecycle, cosine)}
