"""The default search space: every axis with what a sweep tries unless `--vary` or `--fix` say otherwise.

What depends on the network or the number of images is in `constraints.DEFAULT_RULES`.
"""

from __future__ import annotations

from collections.abc import Iterable

from xfer.hyperparameters import CHOICES, NUMBERS, OPTIMIZERS, PARAMETERS, Categorical, Distribution, Range
from xfer.models.families import FAMILIES, NetworkTraits

SEARCH_ORDER = (
    *("strategy", "clip_norm", "clip_value", "optimizer", "schedule", "augmentation", "embedding_loss", "mixing"),
    *("views", "loss", "balance", "head", "activation", "batch_size", "batch_norm", "drop_path", "colour"),
    *("weight_decay", "body_rate", "images_per_class"),
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
} | {f"{family}.{name}": range_ for family, row in FAMILIES.items() for name, range_ in row.parameters.items()}
"""The default of every parameter of a table entry, named `parameter`, `entry.parameter` if entries differ, or
`family.parameter` on networks of a family that has its own."""

LEARNING_RATE_RANGES: dict[str, Range] = (
    {name: row.learning_rates for name, row in OPTIMIZERS.items()}
    | {f"head.{name}": row.head_learning_rates for name, row in OPTIMIZERS.items()}
    | {f"{family}.{name}": rates for family, row in FAMILIES.items() for name, rates in row.learning_rates.items()}
)
"""The default range of the learning rate: `optimizer`, `head.optimizer` if only a head is trained, or
`family.optimizer` to fine-tune a network of a family that has its own."""


def default_axes(traits: Iterable[NetworkTraits]) -> dict[str, Distribution]:
    """Return the axes for networks of these traits: every value that suits at least one of them."""
    traits = list(traits)
    optimizers = dict.fromkeys(name for network in traits for name in FAMILIES[network.family].optimizers)
    rates = dict.fromkeys(
        rate for network in traits if network.has_drop_path for rate in FAMILIES[network.family].drop_path
    )
    return {
        **AXES,
        "optimizer": Categorical(tuple(optimizers)),
        "drop_path": Categorical(tuple(rates) or (0.0,)),
    }
