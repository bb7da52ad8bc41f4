"""Possible: what each backbone can do of a space, found out before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sweeps.engine.search_space.distributions import Categorical, Distribution, Range, domain_values
from sweeps.engine.search_space.space import Space
from xfer.choices import Value, default_parameters
from xfer.methods.strategies import STRATEGIES

CompatibilityCheck = Callable[[str, str, Mapping[str, Value]], None]
"""(backbone, strategy, its parameters): raises a ValueError where that network cannot do it."""


def feasible_space(
    space: Space, edits: Mapping[str, str], is_compatible: CompatibilityCheck
) -> dict[str, dict[str, dict[str, Distribution]]]:
    """What each backbone can do: by backbone and strategy what is left of the strategy's parameters.

    Raises:
        ValueError: there is a strategy, or a value that was asked for, that no backbone can do; or a backbone that can
            do none of the strategies.
    """
    backbones = [str(name) for name in domain_values(space.axes["backbone"])]
    found: dict[str, dict[str, dict[str, Distribution]]] = {backbone: {} for backbone in backbones}
    refused: dict[str, list[str]] = {backbone: [] for backbone in backbones}
    for strategy in space.strategies():
        reasons = []
        for backbone in backbones:
            try:
                found[backbone][strategy] = _left_of(space, is_compatible, backbone, strategy)
            except ValueError as error:
                reasons.append(f"{backbone}: {error}")
                refused[backbone].append(str(error))
        if len(reasons) == len(backbones):
            raise ValueError(f"strategy {strategy} cannot be tried. " + "; ".join(reasons))
        able = {backbone: can[strategy] for backbone, can in found.items() if strategy in can}
        for name in edits.keys() & default_parameters(STRATEGIES[strategy]).keys():
            _check_asked(space.parameter(strategy, name), is_compatible, strategy, name, able)
    for backbone, can in found.items():
        if not can:
            names = ", ".join(space.strategies())
            raise ValueError(f"backbone {backbone} can do none of {names}: {refused[backbone][0]}")
    return found


def _check_asked(
    asked: Distribution,
    is_compatible: CompatibilityCheck,
    strategy: str,
    name: str,
    able: Mapping[str, Mapping[str, Distribution]],
) -> None:
    """Raise a ValueError where a value that was asked for is left on no backbone."""
    left = {value for domains in able.values() for value in _each(domains[name])}
    backbone, domains = next(iter(able.items()))
    usual = {other: domain_values(domain)[0] for other, domain in domains.items()}
    for value in _each(asked):
        if value not in left:
            try:
                is_compatible(backbone, strategy, {**usual, name: value})
            except ValueError as error:
                raise ValueError(f"{name}={value} cannot be tried with {strategy}. {backbone}: {error}") from error


def _left_of(space: Space, is_compatible: CompatibilityCheck, backbone: str, strategy: str) -> dict[str, Distribution]:
    """What is left of a strategy's parameters on a backbone; a ValueError where nothing is."""
    left = {name: space.parameter(strategy, name) for name in default_parameters(STRATEGIES[strategy])}
    usual = {name: domain_values(domain)[0] for name, domain in left.items()}
    for name, domain in left.items():
        if isinstance(domain, Range) and not domain.is_integer:
            continue  # shares and strengths are no matter of a network's shape
        good: list[Value] = []
        for value in _each(domain):
            try:
                is_compatible(backbone, strategy, {**usual, name: value})
                good.append(value)
            except ValueError as error:
                refusal = error
        if not good:
            raise refusal
        usual[name] = good[0]
        left[name] = _only(domain, good)
    is_compatible(backbone, strategy, usual)
    return left


def _each(domain: Distribution) -> tuple[Value, ...]:
    """Every value there is; of a range of real numbers its ends."""
    if isinstance(domain, Range) and domain.is_integer:
        return tuple(range(int(domain.low), int(domain.high) + 1))
    return domain_values(domain)


def _only(domain: Distribution, good: Sequence[Value]) -> Distribution:
    """What is left of a domain where only some values are good; of a range another one, where it is without gaps."""
    if isinstance(domain, Categorical):
        return Categorical(tuple(good))
    whole = [value for value in good if isinstance(value, int)]
    if whole[-1] - whole[0] == len(whole) - 1:
        return replace(domain, low=whole[0], high=whole[-1])
    return Categorical(tuple(good))
