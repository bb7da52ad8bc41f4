"""Conditions: what earlier choices leave of an axis, so that no contradiction is ever proposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

from sweeps.engine.search_space.distributions import Categorical, Distribution, Range, domain_values
from xfer.choices import Value, default_parameters
from xfer.methods.freezing import HeadFirst, TrainingProgress
from xfer.methods.strategies import STRATEGIES
from xfer.models.params import Kind, Param
from xfer.recipe import CHOICE_TABLES, CLOSED_FORM_VALUES

if TYPE_CHECKING:
    from sweeps.engine.search_space.space import Config, Space

MAX_DEPTH = 1_000
"""Blocks below the head: more than a strategy counts from the top."""

Constrained = tuple[Distribution, str]
"""What is left of an axis after earlier choices, and which of them is to blame; nobody where all of it is left."""


def allowed_values(space: Space, axis: str, domain: Distribution, config: Config) -> Constrained:
    """What earlier choices leave of an axis.

    Raises:
        ValueError: the axes as given contradict each other.
    """
    if axis in CLOSED_FORM_VALUES and not takes_steps(config):
        return Categorical((value_without_steps(axis),)), "strategy"
    return CONSTRAINTS[axis](space, domain, config) if axis in CONSTRAINTS else (domain, "")


def takes_steps(config: Config) -> bool:
    """Whether the strategy that was chosen takes steps at all: where not, most axes have no say."""
    return STRATEGIES[str(config["strategy"])]().steps


def value_without_steps(axis: str) -> Value:
    """What an axis is where no step is taken."""
    value: Value = CLOSED_FORM_VALUES[axis].name if axis in CHOICE_TABLES else CLOSED_FORM_VALUES[axis]
    return value


def _strategies_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    backbone = str(config["backbone"])
    if backbone not in space.possible:
        return domain, ""
    return _only(domain, backbone, lambda name: name in space.possible[backbone])


def _clip_norms_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    strategy = str(config["strategy"])
    preset = STRATEGIES[strategy]().clip_norm
    by_value = None not in domain_values(space.axes["clip_value"])
    if preset is None:
        if not by_value:
            return domain, ""
        if None not in domain_values(domain):
            raise ValueError(
                f"clip_norm={domain} and clip_value={space.axes['clip_value']}: a gradient is clipped once"
            )
        return Categorical((None,)), "clip_value"
    clipping = tuple(value for value in domain_values(domain) if value is not None)
    if not clipping or by_value:
        what = "clip_norm=none" if not clipping else f"clip_value={space.axes['clip_value']}"
        raise ValueError(f"{what} takes from strategy clip what it is: name the others with --strategies")
    if isinstance(domain, Range):
        return domain, ""
    return Categorical((preset,) if preset in clipping else clipping), strategy


def _clip_values_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    return (domain, "") if config["clip_norm"] is None else (Categorical((None,)), "clip_norm")


def _embedding_losses_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    # They need one class an image.
    if "none" in domain_values(space.axes["mixing"]):
        return domain, ""
    if "none" not in domain_values(domain):
        raise ValueError(
            f"embedding_loss={domain} needs one class an image, and mixing={space.axes['mixing']} gives it two"
        )
    return _only(domain, "mixing", lambda name: name == "none")


def _mixings_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    if config["embedding_loss"] == "none":
        # Features of a frozen body are computed once; a mixed image is another one in every step, and has none.
        fixed = _only_head_moves(config) and domain_values(space.axes["views"]) != (None,)
        if fixed and "none" in domain_values(domain):
            return _only(domain, "views", lambda name: name == "none")
        return domain, ""
    return _only(domain, "embedding_loss", lambda name: name == "none")


def _batch_norms_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    strategy = str(config["strategy"])
    if STRATEGIES[strategy]().pretrained:
        return domain, ""
    if domain_values(domain) == ("frozen",):
        raise ValueError(
            f"batch_norm=frozen needs pretrained statistics, and strategy {strategy} starts without: name the others "
            f"with --strategies"
        )
    return _only(domain, strategy, lambda name: name != "frozen")


def _views_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    # There are versions of augmented images only, and only while something is frozen that sees them.
    for axis, without in (("augmentation", "none"), ("mixing", None)):
        if (config[axis] == without) if without else (config[axis] != "none"):
            return Categorical((None,)), axis
    return (domain, "") if _begins_frozen(config, space.epochs) else (Categorical((None,)), "strategy")


def _body_rates_left(space: Space, domain: Distribution, config: Config) -> Constrained:
    # Where the head alone moves there is nothing to be slower.
    return (Categorical((1.0,)), "strategy") if _only_head_moves(config) else (domain, "")


CONSTRAINTS: dict[str, Callable[[Space, Distribution, Config], Constrained]] = {
    "strategy": _strategies_left,
    "clip_norm": _clip_norms_left,
    "clip_value": _clip_values_left,
    "embedding_loss": _embedding_losses_left,
    "mixing": _mixings_left,
    "views": _views_left,
    "batch_norm": _batch_norms_left,
    "body_rate": _body_rates_left,
}
"""The axes of which earlier choices may leave less, beside those that have no say without steps."""


def _only_head_moves(config: Config) -> bool:
    return bool(STRATEGIES[str(config["strategy"])]().pace == HeadFirst(freeze_epochs=None))


def _begins_frozen(config: Config, epochs: int) -> bool:
    """Whether the lowest block of a deep network stands still in the first epoch."""
    name = str(config["strategy"])
    own = {parameter: config[parameter] for parameter in default_parameters(STRATEGIES[name])}
    pace, start = STRATEGIES[name](**own).pace, TrainingProgress(0, epochs)
    return all(pace(Param(depth=MAX_DEPTH, kind=kind), start) == 0 for kind in get_args(Kind))


def _only(domain: Distribution, because: str, allowed: Callable[[Value], bool]) -> Constrained:
    left = Categorical(tuple(value for value in domain_values(domain) if allowed(value)))
    return (domain, "") if left == domain else (left, because)
