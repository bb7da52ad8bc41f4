"""Edits: the space that a user asked for, by `--strategies`, `--vary` and `--fix`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sweeps.engine.search_space.constraints import CONSTRAINTS, allowed_values, takes_steps
from sweeps.engine.search_space.distributions import (
    Categorical,
    Distribution,
    domain_values,
    numeric_values,
    parse_distribution,
)
from sweeps.engine.search_space.feasibility import CompatibilityCheck, feasible_space
from sweeps.engine.search_space.space import (
    AXES,
    LEARNING_RATE_RANGES,
    PARAMETER_RANGES,
    NearestTrial,
    Space,
    unfreeze_ranges,
)
from xfer.choices import Value, default_parameters, unknown_name_message
from xfer.methods.strategies import STRATEGIES
from xfer.recipe import CHOICE_TABLES, CLOSED_FORM_VALUES


def space_for(
    backbones: Sequence[str],
    epochs: int,
    strategies: Sequence[str] = (),
    edits: Mapping[str, str] | None = None,
    is_compatible: CompatibilityCheck | None = None,
) -> Space:
    """The space that a user asked for.

    Args:
        backbones: timm's names.
        epochs: how long each run is.
        strategies: those to compete; the five of the default space unless given.
        edits: axes with other values than usual, as on the command line: `{"learning_rate": "1e-4..1e-2"}`.
        is_compatible: asked what each backbone can do; everything unless given.

    Raises:
        ValueError: an unknown axis or value, one that does not apply, or one beyond reason.
    """
    axes: dict[str, Distribution] = {"backbone": Categorical(tuple(backbones)), **AXES}
    own, rates = dict(PARAMETER_RANGES), dict[str, Distribution](LEARNING_RATE_RANGES)
    edits = {**(edits or {}), **({"strategy": ",".join(strategies)} if strategies else {})}
    if "strategy" not in edits and epochs < 2:
        known = tuple(name for name in domain_values(AXES["strategy"]) if name != "freeze_then_unfreeze")
        axes["strategy"] = Categorical(known)  # nothing would be left to train once everything is free
    for axis, text in edits.items():
        if axis == "learning_rate":
            rates = dict.fromkeys(rates, parse_distribution(axis, text))
        elif _owners(axis):
            # What is said of a parameter holds for every entry that has it.
            own = {name: domain for name, domain in own.items() if name.rpartition(".")[2] != axis}
            own[axis] = parse_distribution(axis, text)
        elif axis in axes and axis != "backbone":
            axes[axis] = parse_distribution(axis, text)
        else:
            raise ValueError(unknown_name_message("axis", axis, [*AXES, *STRATEGY_PARAMETER_NAMES, "learning_rate"]))
    for axis in edits:
        owners = _owners(axis)
        tried = [(kind, name) for kind, name in owners if name in domain_values(axes[kind])]
        if owners and not tried:
            *others, last = (name for _, name in owners)
            flag = "--strategies" if owners[0][0] == "strategy" else f"--vary {owners[0][0]}"
            names = f"{', '.join(others)} and {last}" if others else last
            raise ValueError(f"{axis} belongs to {names}, which this sweep does not try: name it with {flag}")
        for kind, name in tried:
            for value in domain_values(own[axis]):
                CHOICE_TABLES[kind][name](**{axis: value})  # an entry knows best which values make no sense
    space = Space(axes, own, rates, epochs)
    for strategy in space.strategies():
        space.suggest(NearestTrial({"strategy": strategy}))
    _check_thaw(space, edits)
    _check_reached(space, edits)
    return replace(space, possible=feasible_space(space, edits, is_compatible)) if is_compatible is not None else space


STRATEGY_PARAMETER_NAMES = tuple(
    dict.fromkeys(
        own for table in CHOICE_TABLES.values() for entry in table.values() for own in default_parameters(entry)
    )
)
"""The names of all parameters of table entries."""


def _owners(parameter: str) -> list[tuple[str, str]]:
    """The entries that have a parameter of this name, each with its table's."""
    return [
        (kind, name)
        for kind, table in CHOICE_TABLES.items()
        for name in table
        if parameter in default_parameters(table[name])
    ]


def _check_thaw(space: Space, edits: Mapping[str, str]) -> None:
    """Raise a ValueError where a strategy could free the network too late for anything to be trained."""
    epochs, most = space.epochs, unfreeze_ranges(space.epochs)
    for name in space.strategies():
        own = most.keys() & default_parameters(STRATEGIES[name]).keys()
        domains = {each: space.parameters[each] if each in edits else space.parameter(name, each) for each in own}
        latest: dict[str, Value] = {each: max(numeric_values(domain)) for each, domain in domains.items()}
        if STRATEGIES[name](**latest).pace.unfreezing_ends_after(epochs) < epochs:
            continue
        late = "".join(f"{each} can be at most {most[each]:g}" for each in own)
        few = late if late and epochs > 1 else "that is too few"
        raise ValueError(f"{name} needs an epoch after it unfreezes: with {epochs} epochs, {few}")


def _check_reached(space: Space, edits: Mapping[str, str]) -> None:
    """Raise a ValueError where something that was asked for would never be proposed, whatever else is."""
    # A preset's own norm comes before the others, and strategies compete by network: those two are meant to be left.
    for axis in (edits.keys() & space.axes.keys() & (CONSTRAINTS.keys() | CLOSED_FORM_VALUES.keys())) - {
        "clip_norm",
        "strategy",
    }:
        for value in domain_values(space.axes[axis]):
            wishes = [{"strategy": strategy, "clip_norm": None, axis: value} for strategy in space.strategies()]
            configs = [space.suggest(NearestTrial(wish)) for wish in wishes]
            if not any(config[axis] == value for config in configs):
                _, because = allowed_values(space, axis, Categorical((value,)), configs[0])
                raise ValueError(f"{axis}={value} would never be tried: {because}={configs[0][because]} rules it out")
    if "learning_rate" in edits and not any(takes_steps({"strategy": name}) for name in space.strategies()):
        raise ValueError(
            f"learning_rate={edits['learning_rate']} would never be tried: {', '.join(space.strategies())} fits its "
            f"head in one go, without steps"
        )
