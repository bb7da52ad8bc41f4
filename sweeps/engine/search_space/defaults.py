"""The default search space: every axis with what a sweep tries unless `--vary` or `--fix` say otherwise.

What depends on the network or the number of images is in `constraints.DEFAULT_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from xfer.hyperparameters import CHOICES, NUMBERS, OPTIMIZERS, PARAMETERS, Categorical, Distribution, Range
from xfer.lengths import RunLength
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


MIN_IMAGES_FOR_MIXING = 20_000
"""Number of training images from which on mixing two images competes, as in BiT-HyperRule (Kolesnikov et al. 2020,
arXiv 1912.11370). On 384 images cutmix cost 11 points of accuracy (benchmarks/CARDS.md)."""

SMALL_BATCH = 16
"""Largest batch with which frozen batch norms compete: the statistics of so few images are noisy. Frozen ones are the
practice of EfficientDet and DINO, and gained 3 points on 384 images (benchmarks/CARDS.md)."""

SUITS: dict[str, Callable[[NetworkTraits], bool]] = {
    "layer_decay": lambda network: network.is_deep,
    # With the stem frozen, SGD is as good as AdamW on ViT and needs a third less memory (Kumar et al. 2024).
    "freeze_first": lambda network: network.family == "vit",
}
"""Strategies of the default search that need certain networks. The others suit all."""


def suits(strategy: str, network: NetworkTraits) -> bool:
    """Return whether a strategy of the default search is tried on a network."""
    return strategy not in SUITS or SUITS[strategy](network)


def can_freeze_batch_norm(network: NetworkTraits, batch_size: int) -> bool:
    """Return whether frozen batch norms compete on a network with batches of this size."""
    return network.family == "batch_norm" and network.has_batch_norm and batch_size <= SMALL_BATCH


def default_axes(
    traits: Iterable[NetworkTraits], length: RunLength, images_per_class: Iterable[int | None] = (None,)
) -> dict[str, Distribution]:
    """Return the axes for some networks and images: every value that suits at least one of the networks.

    Args:
        traits: of the networks.
        length: of runs, with the number of training images.
        images_per_class: values of the axis of this name.
    """
    networks = list(traits)
    optimizers = dict.fromkeys(name for network in networks for name in FAMILIES[network.family].optimizers)
    rates = dict.fromkeys(
        rate for network in networks if network.has_drop_path for rate in FAMILIES[network.family].drop_path
    )
    strategies = [name for name in CHOICES["strategy"].search if any(suits(name, network) for network in networks)]
    batch_sizes = _default_batch_sizes(length)
    freezes = any(can_freeze_batch_norm(network, min(batch_sizes)) for network in networks)
    images = max(length.images(limit) for limit in images_per_class)
    return {
        **AXES,
        "strategy": Categorical(tuple(strategies)),
        "optimizer": Categorical(tuple(optimizers)),
        "mixing": AXES["mixing"] if not images or images >= MIN_IMAGES_FOR_MIXING else Categorical(("none",)),
        "batch_size": Categorical(batch_sizes),
        "batch_norm": AXES["batch_norm"] if freezes else Categorical(("with_weights",)),
        "drop_path": Categorical(tuple(rates) or (0.0,)),
    }


def _default_batch_sizes(length: RunLength) -> tuple[int, ...]:
    """Return the batch sizes that compete by default on images of this number: at least the smallest."""
    axis = AXES["batch_size"]
    assert isinstance(axis, Categorical), "batch sizes are a few values"
    sizes = [size for size in axis.values if isinstance(size, int)]
    return tuple(size for size in sizes if length.allows_batch_size(size)) or (min(sizes),)
