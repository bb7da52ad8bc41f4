"""Conditions: what earlier choices leave of an axis, so that no contradiction is ever proposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sweeps.engine.domains import Domain, Options, Range, values_of
from xfer.choices import Value
from xfer.methods.freezing import HeadFirst
from xfer.methods.strategies import STRATEGIES

if TYPE_CHECKING:
    from sweeps.engine.spaces import Config, Space

Left = tuple[Domain, str]
"""What is left of an axis after earlier choices, and which of them is to blame; nobody where all of it is left."""


def _strategies_left(space: Space, domain: Domain, config: Config) -> Left:
    backbone = str(config["backbone"])
    if backbone not in space.possible:
        return domain, ""
    return _only(domain, backbone, lambda name: name in space.possible[backbone])


def _clip_norms_left(space: Space, domain: Domain, config: Config) -> Left:
    strategy = str(config["strategy"])
    preset = STRATEGIES[strategy]().clip_norm
    by_value = None not in values_of(space.axes["clip_value"])
    if preset is None:
        if not by_value:
            return domain, ""
        if None not in values_of(domain):
            raise ValueError(
                f"clip_norm={domain} and clip_value={space.axes['clip_value']}: a gradient is clipped once"
            )
        return Options((None,)), "clip_value"
    clipping = tuple(value for value in values_of(domain) if value is not None)
    if not clipping or by_value:
        what = "clip_norm=none" if not clipping else f"clip_value={space.axes['clip_value']}"
        raise ValueError(f"{what} takes from strategy clip what it is: name the others with --strategies")
    if isinstance(domain, Range):
        return domain, ""
    return Options((preset,) if preset in clipping else clipping), strategy


def _clip_values_left(space: Space, domain: Domain, config: Config) -> Left:
    return (domain, "") if config["clip_norm"] is None else (Options((None,)), "clip_norm")


def _embedding_losses_left(space: Space, domain: Domain, config: Config) -> Left:
    # They need one class an image.
    if "none" in values_of(space.axes["mixing"]):
        return domain, ""
    if "none" not in values_of(domain):
        raise ValueError(
            f"embedding_loss={domain} needs one class an image, and mixing={space.axes['mixing']} gives it two"
        )
    return _only(domain, "mixing", lambda name: name == "none")


def _mixings_left(space: Space, domain: Domain, config: Config) -> Left:
    if config["embedding_loss"] == "none":
        return domain, ""
    return _only(domain, "embedding_loss", lambda name: name == "none")


def _batch_norms_left(space: Space, domain: Domain, config: Config) -> Left:
    strategy = str(config["strategy"])
    if STRATEGIES[strategy]().pretrained:
        return domain, ""
    if values_of(domain) == ("frozen",):
        raise ValueError(
            f"batch_norm=frozen needs pretrained statistics, and strategy {strategy} starts without: name the others "
            f"with --strategies"
        )
    return _only(domain, strategy, lambda name: name != "frozen")


def _body_rates_left(space: Space, domain: Domain, config: Config) -> Left:
    # Where the head alone moves there is nothing to be slower.
    probes = STRATEGIES[str(config["strategy"])]().pace == HeadFirst(freeze_epochs=None)
    return (Options((1.0,)), "strategy") if probes else (domain, "")


LEFT: dict[str, Callable[[Space, Domain, Config], Left]] = {
    "strategy": _strategies_left,
    "clip_norm": _clip_norms_left,
    "clip_value": _clip_values_left,
    "embedding_loss": _embedding_losses_left,
    "mixing": _mixings_left,
    "batch_norm": _batch_norms_left,
    "body_rate": _body_rates_left,
}
"""The axes of which earlier choices may leave less. A ValueError says that the axes as given contradict each other."""


def _only(domain: Domain, because: str, allowed: Callable[[Value], bool]) -> Left:
    left = Options(tuple(value for value in values_of(domain) if allowed(value)))
    return (domain, "") if left == domain else (left, because)
