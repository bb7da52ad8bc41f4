"""Decides whether a trial is long enough for torch.compile to pay off, and says where it has failed."""

from __future__ import annotations

from xfer.recipe import Recipe
from xfer.records import NOT_COMPILED

COMPILE_SAVING = 0.2
"""Fraction of a step's time that torch.compile saves, a cautious estimate. Ansel et al. (2024,
https://dl.acm.org/doi/10.1145/3620665.3640366) report that training is 1.41 times as fast on an A100, a saving of 0.29,
as the geometric mean over some 180 networks."""

COMPILE_SECONDS = 120
"""Seconds that compilation takes, a cautious estimate: it ranges from seconds to minutes, and even with a full cache
each process traces the network again."""


def worth_compiling(recipe: Recipe, steps: int, seconds_per_step: float) -> bool:
    """Return whether torch.compile saves at least twice the time that it costs.

    False if the set of trained parameters changes during training, because each change would compile again.

    Args:
        recipe: recipe of the trial.
        steps: number of training steps of the whole run.
        seconds_per_step: duration of a step without compilation.
    """
    return recipe.last_unfreeze_epoch == 0 and steps * seconds_per_step * COMPILE_SAVING > 2 * COMPILE_SECONDS


def failure_line(arithmetic: str) -> str:
    """Return a line for the user if torch.compile has failed in a trial, else "".

    >>> failure_line("float32, compiled")
    ''

    Args:
        arithmetic: the trial's `Record.arithmetic`.
    """
    _, failed, reason = arithmetic.partition(NOT_COMPILED)
    if not failed:
        return ""
    return f"torch.compile has failed ({reason}); training continues without. It needs gcc, g++ and Python's headers"
