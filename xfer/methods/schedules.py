"""Schedules: pure functions from progress in [0, 1] to a multiplier of the learning rate, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def onecycle() -> Schedule:
    """Up from 1/25 to 1 over the first 30%, down to 1/250,000 over the rest, both along a cosine.

    The slow start spares pretrained weights the random head's first gradients, and lets the highest rate be higher than
    without it. It is spent on the whole of a run: one stopped early never sees the low rates that make it good.
    Smith 2018.

    The learning-rate half of `torch.optim.lr_scheduler.OneCycleLR` with its defaults; momentum is left alone.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

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
    """From 1 down to 0 along half a cosine, without restarts.

    Nothing to set, and most of a run is spent at rates that matter. The first steps are the largest, which is hard on
    pretrained weights below a random head unless something else spares them. Loshchilov & Hutter 2017.

    Measured: 80.2% ± 7.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(cosine()(progress), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return lambda progress: _cosine(1.0, 0.0, progress)


def cosine_warmup(warmup: float = 0.1) -> Schedule:
    """From 0 straight up to 1 over the first `warmup` of the run, a fraction, then down to 0 along half a cosine.

    For large batches and rates (Goyal et al. 2017), for transformers, and for adaptive optimizers, whose first steps
    rest on few gradients. In a run of a few dozen steps the warm-up is one or two of them and changes little.

    Measured: 78.8% ± 3.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(cosine_warmup(warmup=0.2)(progress), 3) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Raises:
        ValueError: a fraction that leaves nothing for one of the two parts.
    """
    _check("warmup", warmup, "with 0 it would be cosine, with 1 the rate would never come down")
    return lambda progress: progress / warmup if progress < warmup else _cosine(1.0, 0.0, _since(warmup, progress))


def flat_cosine(flat: float = 0.75) -> Schedule:
    """1 over the first `flat` of the run, a fraction, then down to 0 along half a cosine.

    Made for optimizers that need no warm-up, such as Ranger (Wright 2019). With others the rate must be one that the
    very first step can bear. The default is that of fastai's fit_flat_cos (Howard & Gugger 2020).

    Measured: 82.6% ± 3.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(flat_cosine(flat=0.6)(progress), 3) for progress in (0.0, 0.6, 0.8, 1.0)]
    [1.0, 1.0, 0.5, 0.0]

    Raises:
        ValueError: a fraction that leaves nothing for one of the two parts.
    """
    _check("flat", flat, "with 0 it would be cosine, with 1 it would be constant")
    return lambda progress: 1.0 if progress < flat else _cosine(1.0, 0.0, _since(flat, progress))


def step(drop_every: float = 2 / 3, drop_to: float = 0.1) -> Schedule:
    """From 1, each time another `drop_every` of the run is over, a fraction, down to `drop_to` of what it was.

    The rule before cosines, for comparison with figures that were published with it: the default is ten of fifteen
    epochs, then a tenth. When to drop is one more thing to choose, and it depends on the length of the run. After
    Krizhevsky et al. 2012, who divided by 10 by hand whenever validation stopped improving.

    Measured: 86.5% ± 3.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(step(drop_every=0.4)(progress), 3) for progress in (0.0, 0.39, 0.4, 0.8, 1.0)]
    [1.0, 1.0, 0.1, 0.01, 0.01]

    Raises:
        ValueError: a fraction with which nothing would ever drop, or a share that is no drop.
    """
    _check("drop_every", drop_every, "with 1 nothing would drop before the run is over, which is constant")
    _check("drop_to", drop_to, "it is what is left of the rate after a drop")
    # 0.6 / 0.2 is a hair below 3: without the allowance such a drop would come a step late.
    return lambda progress: drop_to ** math.floor(progress / drop_every + 1e-9)


def constant() -> Schedule:
    """1 from the first step to the last.

    Shows what the other schedules are worth, and may be stopped at any moment. The last steps are as coarse as the
    first, so the network that comes out is rarely the best that was near.

    Measured: 81.2% ± 5.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda progress: 1.0


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _since(fraction: float, progress: float) -> float:
    return (progress - fraction) / (1 - fraction)


def _check(name: str, fraction: float, reason: str) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"{name} is {fraction}; it must be above 0 and below 1: {reason}")


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    f.__name__: f for f in (onecycle, cosine, cosine_warmup, flat_cosine, step, constant)
}
