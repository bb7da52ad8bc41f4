"""Schedules: pure functions from training progress in [0, 1] to a learning-rate multiplier in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def onecycle() -> Schedule:
    """Rises from 1/25 to 1 over the first 30%, then falls to 1/250,000, both along a cosine.

    The slow start protects pretrained weights from the random head's first gradients and allows a higher peak rate. It
    needs the whole run: one stopped early never reaches the low rates that make it good. Smith 2018, arXiv:1803.09820.

    The learning-rate half of `torch.optim.lr_scheduler.OneCycleLR` with its defaults; momentum stays constant.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> rate = onecycle()
    >>> [round(rate(progress), 3) for progress in (0.0, 0.3, 0.65, 1.0)]
    [0.04, 1.0, 0.5, 0.0]
    """
    warmup_fraction, start, end = 0.3, 1 / 25, 1 / 25 / 1e4

    def rate(progress: float) -> float:
        if progress < warmup_fraction:
            return _anneal(start, 1.0, progress / warmup_fraction)
        return _anneal(1.0, end, (progress - warmup_fraction) / (1 - warmup_fraction))

    return rate


def cosine() -> Schedule:
    """Falls from 1 to 0 along half a cosine, without restarts.

    Nothing to tune, and most of a run uses rates that matter. The first steps are the largest, which harms pretrained
    weights below a random head unless something else protects them. Loshchilov & Hutter 2017, arXiv:1608.03983.

    Measured: 80.2% ± 7.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(cosine()(progress), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return lambda progress: _anneal(1.0, 0.0, progress)


def cosine_warmup(warmup: float = 0.1) -> Schedule:
    """Rises linearly from 0 to 1 over a fraction `warmup` of the run, then falls to 0 along half a cosine.

    For large batches and rates (Goyal et al. 2017, arXiv:1706.02677), for transformers, and for adaptive optimizers,
    whose first steps rely on few gradients. In a run of a few dozen steps the warm-up is one or two of them and changes
    little.

    Measured: 78.8% ± 3.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(cosine_warmup(warmup=0.2)(progress), 3) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Args:
        warmup: fraction of the run, in (0, 1).

    Raises:
        ValueError: If `warmup` is outside its range.
    """
    _check_fraction("warmup", warmup, "0 is schedule cosine, and with 1 the rate would never fall")
    return lambda progress: (
        progress / warmup if progress < warmup else _anneal(1.0, 0.0, _progress_since(warmup, progress))
    )


def flat_cosine(flat: float = 0.75) -> Schedule:
    """Stays at 1 for a fraction `flat` of the run, then falls to 0 along half a cosine.

    Designed for optimizers that need no warm-up, such as Ranger (Wright 2019,
    https://github.com/lessw2020/Ranger-Deep-Learning-Optimizer). With others the very first step must tolerate the full
    rate. The default is that of fastai's fit_flat_cos (Howard & Gugger 2020, arXiv:2002.04688).

    Measured: 82.6% ± 3.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(flat_cosine(flat=0.6)(progress), 3) for progress in (0.0, 0.6, 0.8, 1.0)]
    [1.0, 1.0, 0.5, 0.0]

    Args:
        flat: fraction of the run, in (0, 1).

    Raises:
        ValueError: If `flat` is outside its range.
    """
    _check_fraction("flat", flat, "0 is schedule cosine, 1 is schedule constant")
    return lambda progress: 1.0 if progress < flat else _anneal(1.0, 0.0, _progress_since(flat, progress))


def step(drop_every: float = 2 / 3, drop_to: float = 0.1) -> Schedule:
    """Starts at 1 and is multiplied by `drop_to` after every fraction `drop_every` of the run.

    The standard before cosine schedules, for comparison with results published with it: the default drops to a tenth
    after ten of fifteen epochs. When to drop is one more hyperparameter, and it depends on the length of the run. After
    Krizhevsky et al. 2012, NeurIPS, who divided by 10 by hand whenever validation stopped improving.

    Measured: 86.5% ± 3.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    >>> [round(step(drop_every=0.4)(progress), 3) for progress in (0.0, 0.39, 0.4, 0.8, 1.0)]
    [1.0, 1.0, 0.1, 0.01, 0.01]

    Args:
        drop_every: fraction of the run between drops, in (0, 1).
        drop_to: factor of the rate at each drop, in (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_fraction("drop_every", drop_every, "with 1 the rate would not drop before the end, as in schedule constant")
    _check_fraction("drop_to", drop_to, "it is the factor that a drop multiplies the rate by")
    # In floating point 0.6 / 0.2 is slightly below 3: without the tolerance that drop would be one step late.
    return lambda progress: drop_to ** math.floor(progress / drop_every + 1e-9)


def constant() -> Schedule:
    """1 from the first step to the last.

    Shows how much the other schedules contribute, and may be stopped at any time. The last steps are as coarse as the
    first, so the final network is rarely the best one nearby.

    Measured: 81.2% ± 5.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda progress: 1.0


def _anneal(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _progress_since(fraction: float, progress: float) -> float:
    return (progress - fraction) / (1 - fraction)


def _check_fraction(name: str, fraction: float, reason: str) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {fraction}: {reason}")


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    f.__name__: f for f in (onecycle, cosine, cosine_warmup, flat_cosine, step, constant)
}
