"""Constraints: which values of an axis remain after earlier choices.

There are two kinds. `CONSTRAINTS` rule out contradictions, always. `DEFAULT_RULES` keep the default search sensible for
the network; they do not apply to an axis that the user has set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, get_args

from sweeps.engine.search_space.defaults import can_freeze_batch_norm, suits
from sweeps.engine.search_space.distributions import Config, domain_values
from xfer.choices import Value, default_parameters
from xfer.hyperparameters import Categorical, Distribution, Range
from xfer.methods.freezing import HeadFirst, TrainingProgress
from xfer.methods.strategies import STRATEGIES
from xfer.models.families import DECOUPLED_DECAY, FAMILIES, Family, NetworkTraits
from xfer.models.params import Kind, Param
from xfer.recipe import CHOICE_TABLES, CLOSED_FORM_VALUES

MAX_DEPTH = 1_000
"""Number of blocks below the head that exceeds what any strategy counts from the top."""

Feasible = Mapping[str, Mapping[str, Mapping[str, Distribution]]]
"""The remaining distribution of each strategy's parameters, by backbone, strategy and parameter. A strategy that is
absent is impossible on that backbone."""

Constrained = tuple[Distribution, str]
"""The remaining distribution, and what restricted it: an axis, one of its values, a family; '' if unrestricted."""


class SpaceView(Protocol):
    """The part of a space that constraints depend on."""

    @property
    def axes(self) -> Mapping[str, Distribution]:
        """Every axis with its distribution."""
        ...

    @property
    def possible(self) -> Feasible:
        """What each backbone can do."""
        ...

    @property
    def traits(self) -> Mapping[str, NetworkTraits]:
        """The traits of each backbone."""
        ...

    @property
    def edited(self) -> frozenset[str]:
        """The axes that the user has set."""
        ...

    @property
    def shortest(self) -> int:
        """Number of epochs of the shortest run."""
        ...


def allowed_values(space: SpaceView, axis: str, distribution: Distribution, config: Config) -> Constrained:
    """Return what earlier choices leave of an axis.

    Args:
        space: the space that the axis belongs to.
        axis: the axis to choose next.
        distribution: all values of the axis.
        config: the choices made so far.

    Returns:
        The remaining distribution, and what restricted it ('' if unrestricted).

    Raises:
        ValueError: the axes of the space contradict each other.
    """
    if axis in CLOSED_FORM_VALUES and not takes_steps(config):
        return Categorical((value_without_steps(axis),)), "strategy"
    reasons = []
    rules = () if axis in space.edited else (DEFAULT_RULES,)
    for table in (*rules, CONSTRAINTS):
        if axis in table:
            distribution, because = table[axis](space, distribution, config)
            reasons += [because] if because else []
    return distribution, ".".join(reasons)


def takes_steps(config: Config) -> bool:
    """Whether the chosen strategy takes gradient steps. If not, most axes have no effect."""
    return STRATEGIES[str(config["strategy"])]().steps


def value_without_steps(axis: str) -> Value:
    """Return the value of an axis for strategies without gradient steps."""
    value: Value = CLOSED_FORM_VALUES[axis].name if axis in CHOICE_TABLES else CLOSED_FORM_VALUES[axis]
    return value


def _strategies(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    backbone = str(config["backbone"])
    if backbone not in space.possible:
        return distribution, ""
    return _only(distribution, backbone, lambda name: name in space.possible[backbone])


def _clip_norms(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    strategy = str(config["strategy"])
    preset = STRATEGIES[strategy]().clip_norm
    by_value = None not in domain_values(space.axes["clip_value"])
    if preset is None:
        if not by_value:
            return distribution, ""
        if None not in domain_values(distribution):
            raise ValueError(
                f"clip_norm={distribution} and clip_value={space.axes['clip_value']} exclude each other: clip the "
                f"gradient by one of them"
            )
        return Categorical((None,)), "clip_value"
    norms = tuple(value for value in domain_values(distribution) if value is not None)
    if not norms or by_value:
        conflict = "clip_norm=none" if not norms else f"clip_value={space.axes['clip_value']}"
        raise ValueError(
            f"{conflict} contradicts strategy {strategy}, which clips the gradient norm: list the other strategies "
            f"with --strategies"
        )
    if isinstance(distribution, Range):
        return distribution, ""
    return Categorical((preset,) if preset in norms else norms), strategy


def _clip_values(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    return (distribution, "") if config["clip_norm"] is None else (Categorical((None,)), "clip_norm")


def _embedding_losses(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    # An embedding loss needs exactly one class per image.
    if "none" in domain_values(space.axes["mixing"]):
        return distribution, ""
    if "none" not in domain_values(distribution):
        raise ValueError(
            f"embedding_loss={distribution} needs one class per image, but mixing={space.axes['mixing']} gives it two"
        )
    return _only(distribution, "mixing", lambda name: name == "none")


def _mixings(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    if config["embedding_loss"] == "none":
        # Features of a frozen body are computed once. Mixing makes a new image in every step, which has none.
        cached = only_head_moves(config) and domain_values(space.axes["views"]) != (None,)
        if cached and "none" in domain_values(distribution):
            return _only(distribution, "views", lambda name: name == "none")
        return distribution, ""
    return _only(distribution, "embedding_loss", lambda name: name == "none")


def _batch_norms(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    strategy = str(config["strategy"])
    if STRATEGIES[strategy]().pretrained:
        return distribution, ""
    if domain_values(distribution) == ("frozen",):
        raise ValueError(
            f"batch_norm=frozen needs pretrained statistics, but strategy {strategy} starts from random weights: list "
            f"the other strategies with --strategies"
        )
    return _only(distribution, strategy, lambda name: name != "frozen")


def _views(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    # Only augmented images have views, and only while frozen layers see them.
    if config["augmentation"] == "none":
        return Categorical((None,)), "augmentation"
    if config["mixing"] != "none":
        return Categorical((None,)), "mixing"
    return (distribution, "") if _begins_frozen(config, space.shortest) else (Categorical((None,)), "strategy")


def _drop_paths(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    # No block is skipped if only the head moves, or in a network that the strategy brings, which has none to skip.
    skips = not only_head_moves(config) and not STRATEGIES[str(config["strategy"])]().backbone
    return (distribution, "") if skips else (Categorical((0.0,)), "strategy")


def _body_rates(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    # If only the head moves, no body learns more slowly.
    return (Categorical((1.0,)), "strategy") if only_head_moves(config) else (distribution, "")


CONSTRAINTS: dict[str, Callable[[SpaceView, Distribution, Config], Constrained]] = {
    "strategy": _strategies,
    "clip_norm": _clip_norms,
    "clip_value": _clip_values,
    "embedding_loss": _embedding_losses,
    "mixing": _mixings,
    "views": _views,
    "batch_norm": _batch_norms,
    "drop_path": _drop_paths,
    "body_rate": _body_rates,
}
"""The axes that earlier choices may restrict, apart from those without effect when no gradient step is taken."""


def network_traits_of(space: SpaceView, config: Config) -> NetworkTraits:
    """Return the traits of the chosen backbone."""
    return space.traits.get(str(config["backbone"]), NetworkTraits())


def _family_of(space: SpaceView, config: Config) -> tuple[str, Family]:
    name = network_traits_of(space, config).family
    return name, FAMILIES[name]


def _suited_strategies(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    network = network_traits_of(space, config)
    return _only(distribution, network.family, lambda name: suits(str(name), network))


def _family_optimizers(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    strategy = str(config["strategy"])
    if strategy in STRATEGY_OPTIMIZERS and STRATEGY_OPTIMIZERS[strategy] in domain_values(distribution):
        return Categorical((STRATEGY_OPTIMIZERS[strategy],)), strategy
    name, family = _family_of(space, config)
    return _only(distribution, name, lambda optimizer: optimizer in family.optimizers)


def _family_weight_decay(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    name, family = _family_of(space, config)
    fine_tunes = STRATEGIES[str(config["strategy"])]().pretrained and not only_head_moves(config)
    if family.weight_decay is None or config["optimizer"] not in DECOUPLED_DECAY or not fine_tunes:
        return distribution, ""
    return family.weight_decay, name


def _family_drop_path(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    name, family = _family_of(space, config)
    rates = family.drop_path if network_traits_of(space, config).has_drop_path else (0.0,)
    return _only(distribution, name, lambda rate: rate in rates)


def _small_batch_statistics(space: SpaceView, distribution: Distribution, config: Config) -> Constrained:
    # A frozen body has frozen batch norms anyway.
    network, batch_size = network_traits_of(space, config), config["batch_size"]
    assert isinstance(batch_size, int), "batch sizes are integers"
    useful = can_freeze_batch_norm(network, batch_size) and not only_head_moves(config)
    return (distribution, "") if useful else _only(distribution, "batch_size", lambda name: name != "frozen")


STRATEGY_OPTIMIZERS = {"layer_decay": "adamw", "freeze_first": "sgd"}
"""The optimizer of strategies that were published with one, where it competes."""

DEFAULT_RULES: dict[str, Callable[[SpaceView, Distribution, Config], Constrained]] = {
    "strategy": _suited_strategies,
    "optimizer": _family_optimizers,
    "batch_norm": _small_batch_statistics,
    "weight_decay": _family_weight_decay,
    "drop_path": _family_drop_path,
}
"""What the network and earlier choices leave of an axis in the default search."""


def only_head_moves(config: Config) -> bool:
    """Whether the chosen strategy never trains anything below the head."""
    return bool(STRATEGIES[str(config["strategy"])]().pace == HeadFirst(freeze_epochs=None))


def _begins_frozen(config: Config, epochs: int) -> bool:
    """Whether the lowest block of a deep network is frozen in the first epoch."""
    name = str(config["strategy"])
    parameters = {parameter: config[parameter] for parameter in default_parameters(STRATEGIES[name])}
    pace, start = STRATEGIES[name](**parameters).pace, TrainingProgress(0, epochs)
    return all(pace(Param(depth=MAX_DEPTH, kind=kind), start) == 0 for kind in get_args(Kind))


def _only(distribution: Distribution, because: str, allowed: Callable[[Value], bool]) -> Constrained:
    remaining = Categorical(tuple(value for value in domain_values(distribution) if allowed(value)))
    return (distribution, "") if remaining == distribution else (remaining, because)
