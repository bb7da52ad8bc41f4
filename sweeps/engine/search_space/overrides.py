"""Overrides: the search space that `--strategies`, `--vary` and `--fix` ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sweeps.engine.search_space.constraints import CONSTRAINTS, allowed_values, takes_steps
from sweeps.engine.search_space.defaults import AXES, LEARNING_RATE_RANGES, PARAMETER_RANGES, default_axes
from sweeps.engine.search_space.distributions import domain_values, numeric_values, parse_distribution
from sweeps.engine.search_space.feasibility import CompatibilityCheck, feasible_space
from sweeps.engine.search_space.image_sizes import parse_image_sizes
from sweeps.engine.search_space.space import Space, unfreeze_ranges
from sweeps.engine.search_space.suggest import NearestTrial
from xfer.choices import Value, default_parameters, unknown_name_message
from xfer.hyperparameters import (
    COUNTED_IN_EPOCHS,
    DEFAULT_EPOCHS,
    OPTIMIZERS,
    PARAMETERS,
    Categorical,
    Distribution,
    Range,
)
from xfer.lengths import RunLength
from xfer.methods.strategies import STRATEGIES
from xfer.models.families import network_traits
from xfer.recipe import CHOICE_TABLES, CLOSED_FORM_VALUES


def space_for(
    backbones: Sequence[str],
    length: int | RunLength,
    strategies: Sequence[str] = (),
    edits: Mapping[str, str] | None = None,
    is_compatible: CompatibilityCheck | None = None,
) -> Space:
    """Return the search space that a user asked for.

    Args:
        backbones: timm's names.
        length: how long runs are; a number stands for epochs.
        strategies: the strategies that compete; by default those of the default space that suit the networks.
        edits: axes with other values than the default, as on the command line: `{"learning_rate": "1e-4..1e-2"}`.
        is_compatible: checks what each backbone can do; by default every backbone can do everything.

    Raises:
        ValueError: an unknown axis or value, one that does not apply, or one outside the limits.
    """
    length = RunLength(length) if isinstance(length, int) else length
    traits = {name: network_traits(name) for name in backbones}
    edits = {**(edits or {}), **({"strategy": ",".join(strategies)} if strategies else {})}
    limits = parse_distribution("images_per_class", edits.get("images_per_class", "none"))
    defaults = default_axes(
        traits.values(), length, [n for n in domain_values(limits) if n is None or isinstance(n, int)]
    )
    sizes = {"image_size": Categorical(parse_image_sizes(edits["image_size"]))} if "image_size" in edits else {}
    axes: dict[str, Distribution] = {"backbone": Categorical(tuple(backbones)), **sizes, **defaults}
    parameters, rates = dict(PARAMETER_RANGES), dict[str, Distribution](LEARNING_RATE_RANGES)
    if "strategy" not in edits and Space(axes, parameters, rates, length).shortest < 2:
        names = tuple(name for name in domain_values(axes["strategy"]) if name != "freeze_then_unfreeze")
        axes["strategy"] = Categorical(names)  # a single epoch leaves none to train the unfrozen network
    for axis, text in edits.items():
        if axis == "learning_rate":
            rates = dict.fromkeys(OPTIMIZERS, parse_distribution(axis, text))
        elif _owners(axis):
            # An edit of a parameter holds for every entry that has it.
            parameters = {name: row for name, row in parameters.items() if name.rpartition(".")[2] != axis}
            parameters[axis] = parse_distribution(axis, text)
        elif axis in axes and axis != "backbone":
            axes[axis] = parse_distribution(axis, text)
        else:
            raise ValueError(unknown_name_message("axis", axis, [*AXES, *PARAMETERS, "image_size", "learning_rate"]))
    for axis in edits:
        owners = _owners(axis)
        tried = [(kind, name) for kind, name in owners if name in domain_values(axes[kind])]
        if owners and not tried:
            *others, last = (name for _, name in owners)
            flag = "--strategies" if owners[0][0] == "strategy" else f"--vary {owners[0][0]}"
            owner_names = f"{', '.join(others)} and {last}" if others else last
            raise ValueError(f"{axis} belongs to {owner_names}, which this sweep does not try: add it with {flag}")
        for kind, name in tried:
            for value in domain_values(parameters[axis]):
                CHOICE_TABLES[kind][name](**{axis: value})  # the entry checks its own values
    space = Space(axes, parameters, rates, length, traits=traits, edited=frozenset(edits))
    space = _with_stretched_ranges(space, edits)
    for strategy in space.strategies():
        space.suggest(NearestTrial({"strategy": strategy}))
    _check_unfreezing(space, edits)
    _check_reachable(space, edits)
    if is_compatible is None:
        return space
    possible = feasible_space(space, edits, is_compatible)
    able = tuple(name for name in space.strategies() if any(name in strategies for strategies in possible.values()))
    return replace(space, possible=possible, axes={**space.axes, "strategy": Categorical(able)})


def _with_stretched_ranges(space: Space, edits: Mapping[str, str]) -> Space:
    """Return a space whose default ranges in epochs cover the same fraction of longer runs as of `DEFAULT_EPOCHS`."""
    factor = space.shortest / DEFAULT_EPOCHS
    stretched: dict[str, Distribution] = {}
    for name in COUNTED_IN_EPOCHS - edits.keys():
        row = space.parameters[name]
        assert isinstance(row, Range), f"{name} has a range by default"
        stretched[name] = Range(row.low, round(factor * row.high)) if factor > 1 else row
    return replace(space, parameters={**space.parameters, **stretched})


def _owners(parameter: str) -> list[tuple[str, str]]:
    """Return the table entries that have a parameter of this name, as (kind, entry)."""
    return [
        (kind, name)
        for kind, table in CHOICE_TABLES.items()
        for name in table
        if parameter in default_parameters(table[name])
    ]


def _check_unfreezing(space: Space, edits: Mapping[str, str]) -> None:
    """Raise a ValueError if a strategy could unfreeze the network too late to train it."""
    epochs, highest = space.shortest, unfreeze_ranges(space.shortest)
    for strategy in space.strategies():
        names = highest.keys() & default_parameters(STRATEGIES[strategy]).keys()
        distributions = {
            name: space.parameters[name] if name in edits else space.parameter(strategy, name) for name in names
        }
        latest: dict[str, Value] = {name: max(numeric_values(values)) for name, values in distributions.items()}
        if STRATEGIES[strategy](**latest).pace.unfreezing_ends_after(epochs) < epochs:
            continue
        limit = "".join(f"{name} can be at most {highest[name]:g}" for name in names)
        advice = limit if limit and epochs > 1 else "that is too few"
        raise ValueError(f"{strategy} needs an epoch after it unfreezes: with {epochs} epochs, {advice}")


def _check_reachable(space: Space, edits: Mapping[str, str]) -> None:
    """Raise a ValueError if a requested value would never be proposed, whatever the other choices are."""
    # A preset's own norm takes precedence, and backbones compete with different strategies: both are intended.
    restricted = (CONSTRAINTS.keys() | CLOSED_FORM_VALUES.keys()) - {"clip_norm", "strategy"}
    for axis in edits.keys() & space.axes.keys() & restricted:
        for value in domain_values(space.axes[axis]):
            starts = [{"strategy": strategy, "clip_norm": None, axis: value} for strategy in space.strategies()]
            configs = [space.suggest(NearestTrial(start)) for start in starts]
            if not any(config[axis] == value for config in configs):
                _, because = allowed_values(space, axis, Categorical((value,)), configs[0])
                raise ValueError(f"{axis}={value} would never be tried: {because}={configs[0][because]} rules it out")
    if "learning_rate" in edits and not any(takes_steps({"strategy": name}) for name in space.strategies()):
        raise ValueError(
            f"learning_rate={edits['learning_rate']} would never be tried: {', '.join(space.strategies())} fits its "
            f"head in closed form, without gradient steps"
        )
