"""The default search space: every axis with what a sweep tries unless `--vary` or `--fix` say otherwise."""

from __future__ import annotations

from xfer.hyperparameters import CHOICES, NUMBERS, OPTIMIZERS, PARAMETERS, Categorical, Distribution, Range

SEARCH_ORDER = (
    *("strategy", "clip_norm", "clip_value", "optimizer", "schedule", "augmentation", "embedding_loss", "mixing"),
    *("views", "loss", "balance", "head", "activation", "batch_norm", "colour"),
    *("weight_decay", "batch_size", "body_rate", "images_per_class"),
)
"""The order in which axes are chosen: an axis comes after those that constrain it (see `constraints`). Samplers draw in
this order, so changing it changes what a seed proposes."""


def _default_distribution(axis: str) -> Distribution:
    distribution = Categorical(CHOICES[axis].search) if axis in CHOICES else NUMBERS[axis].search
    assert distribution is not None, f"{axis} is no axis of its own"
    return distribution


AXES: dict[str, Distribution] = {axis: _default_distribution(axis) for axis in SEARCH_ORDER}
"""The default of every axis. The first value is the one to begin with if nothing else is known."""

PARAMETER_RANGES: dict[str, Distribution] = {
    name: distribution
    for parameter, row in PARAMETERS.items()
    for name, distribution in (
        *((f"{entry}.{parameter}", distribution) for entry, distribution in row.search_by_entry.items()),
        *([(parameter, row.search)] if row.search is not None else []),
    )
}
"""The default of every parameter of a table entry, named `parameter`, or `entry.parameter` if entries differ."""

LEARNING_RATE_RANGES: dict[str, Range] = {name: row.learning_rates for name, row in OPTIMIZERS.items()}
"""The default range of the learning rate, by optimizer."""
