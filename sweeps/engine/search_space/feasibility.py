"""Feasibility: what each backbone can do of a space, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.space import Space
from xfer.choices import Value, default_parameters
from xfer.hyperparameters import COUNTED_IN_EPOCHS, Categorical, Distribution, Range
from xfer.methods.strategies import STRATEGIES

CompatibilityCheck = Callable[[str, str, Mapping[str, Value]], None]
"""A function of (backbone, strategy, its parameters) that raises a ValueError if the network cannot do that."""


def feasible_space(
    space: Space, edits: Mapping[str, str], is_compatible: CompatibilityCheck
) -> dict[str, dict[str, dict[str, Distribution]]]:
    """Find out what each backbone can do.

    Args:
        space: the space as requested.
        edits: the axes that the user set; an infeasible value there is an error, elsewhere it is left out.
        is_compatible: raises a ValueError for an infeasible combination.

    Returns:
        The remaining distribution of each strategy's parameters, by backbone, strategy and parameter.

    Raises:
        ValueError: no backbone can do one of the strategies or values that the user set, or a backbone can do none of
            the strategies.
    """
    backbones = [str(name) for name in domain_values(space.axes["backbone"])]
    feasible: dict[str, dict[str, dict[str, Distribution]]] = {backbone: {} for backbone in backbones}
    refusals: dict[str, list[str]] = {backbone: [] for backbone in backbones}
    for strategy in space.strategies():
        reasons = []
        for backbone in backbones:
            try:
                feasible[backbone][strategy] = _feasible_parameters(space, is_compatible, backbone, strategy)
            except ValueError as error:
                reasons.append(f"{backbone}: {error}")
                refusals[backbone].append(str(error))
        if len(reasons) == len(backbones) and "strategy" in edits:
            raise ValueError(f"strategy {strategy} cannot be tried. " + "; ".join(reasons))
        able = {backbone: strategies[strategy] for backbone, strategies in feasible.items() if strategy in strategies}
        if not able:
            continue
        for name in edits.keys() & default_parameters(STRATEGIES[strategy]).keys():
            _check_requested(space.parameter(strategy, name), is_compatible, strategy, name, able)
    for backbone, strategies in feasible.items():
        if not strategies:
            names = ", ".join(space.strategies())
            raise ValueError(f"backbone {backbone} can do none of {names}: {refusals[backbone][0]}")
    return feasible


def _check_requested(
    requested: Distribution,
    is_compatible: CompatibilityCheck,
    strategy: str,
    name: str,
    able: Mapping[str, Mapping[str, Distribution]],
) -> None:
    """Raise a ValueError if a requested value is feasible on no backbone."""
    feasible = {value for parameters in able.values() for value in _all_values(parameters[name])}
    backbone, parameters = next(iter(able.items()))
    others = {other: domain_values(distribution)[0] for other, distribution in parameters.items()}
    for value in _all_values(requested):
        if value not in feasible:
            try:
                is_compatible(backbone, strategy, {**others, name: value})
            except ValueError as error:
                raise ValueError(f"{name}={value} cannot be tried with {strategy}. {backbone}: {error}") from error


def _feasible_parameters(
    space: Space, is_compatible: CompatibilityCheck, backbone: str, strategy: str
) -> dict[str, Distribution]:
    """Return the feasible part of a strategy's parameters on a backbone; a ValueError if there is none."""
    parameters = {name: space.parameter(strategy, name, backbone) for name in default_parameters(STRATEGIES[strategy])}
    values = {name: domain_values(distribution)[0] for name, distribution in parameters.items()}
    for name, distribution in parameters.items():
        if name in COUNTED_IN_EPOCHS or (isinstance(distribution, Range) and not distribution.is_integer):
            continue  # epochs, fractions and strengths do not depend on the shape of a network
        good: list[Value] = []
        for value in _all_values(distribution):
            try:
                is_compatible(backbone, strategy, {**values, name: value})
                good.append(value)
            except ValueError as error:
                refusal = error
        if not good:
            raise refusal
        values[name] = good[0]
        parameters[name] = _restrict(distribution, good)
    is_compatible(backbone, strategy, values)
    return parameters


def _all_values(distribution: Distribution) -> tuple[Value, ...]:
    """Return every value, or the two ends of a continuous range."""
    if isinstance(distribution, Range) and distribution.is_integer:
        return tuple(range(int(distribution.low), int(distribution.high) + 1))
    return domain_values(distribution)


def _restrict(distribution: Distribution, good: Sequence[Value]) -> Distribution:
    """Restrict a distribution to its good values. A range stays a range if they are consecutive."""
    if isinstance(distribution, Categorical):
        return Categorical(tuple(good))
    integers = [value for value in good if isinstance(value, int)]
    if integers[-1] - integers[0] == len(integers) - 1:
        return replace(distribution, low=integers[0], high=integers[-1])
    return Categorical(tuple(good))
