"""Spaces: for every table in xfer.methods the settings worth trying, and how a configuration becomes a recipe.

The space is conditional: a table entry's own parameters exist only where it is chosen, a preset brings its own clip
norm, and the range of the learning rate belongs to the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sweeps.engine.domains import Domain, Options, Range, domain_from, numbers_in, values_of
from xfer.choices import Value, choose, parameters, unknown
from xfer.methods.strategies import STRATEGIES
from xfer.recipe import LIMITS, TABLES

Config = dict[str, Value]
"""One point of a space: a value for every axis that exists there, under the axis' name."""


AXES: dict[str, Domain] = {
    "strategy": Options(("clip", "freeze_then_unfreeze", "naive", "linear_probe", "scratch")),
    "clip_norm": Options((None, 0.5, 1.0, 5.0)),
    "optimizer": Options(("sgd", "adam", "radam", "ranger")),
    "schedule": Options(("onecycle", "cosine")),
    "augmentation": Options(("flip", "none", "randaugment")),
    "mixing": Options(("none", "cutmix")),
    "loss": Options(("cross_entropy", "label_smoothing")),
    "weight_decay": Range(1e-6, 1e-2, log=True),
    "batch_size": Options((16, 32, 64)),
}
"""What every sweep searches unless told otherwise. Where nothing is known, the first value is the one to begin with."""

PARAMETERS: dict[str, Domain] = {
    "freeze_epochs": Range(1, 3),
    "num_ops": Options((2,)),  # RandAugment's published setting for ImageNet
    "magnitude": Options((9,)),
    "alpha": Options((1.0,)),  # CutMix as published: any share of the image is as likely as any other
    "smoothing": Options((0.1,)),
}
"""The parameters of table entries. Their names are unique across tables, so `--fix freeze_epochs=2` says enough."""

LEARNING_RATES: dict[str, Range] = {
    "sgd": Range(1e-3, 1e-1, log=True),
    "adam": Range(3e-5, 1e-2, log=True),
    "radam": Range(3e-5, 1e-2, log=True),
    "ranger": Range(1e-4, 3e-2, log=True),
}

GOOD_RATES: dict[str, float] = {"sgd": 1e-2, "adam": 5e-4, "radam": 5e-4, "ranger": 1e-3}
"""Where to begin when everything is trained; a head alone takes ten times as much."""

KNOWN_GOOD: tuple[Config, ...] = (
    # The sources' own advice: start with everything trained from the first step and the gradient norm clipped at 1.0.
    {"strategy": "clip", "clip_norm": 1.0},
    {"strategy": "freeze_then_unfreeze", "freeze_epochs": 2, "clip_norm": 1.0},
    {"strategy": "linear_probe", "optimizer": "adam", "batch_size": 32},
    # With nothing to bound the head's first gradients, a rate of 1e-2 throws MobileNetV2 back to guessing.
    {"strategy": "naive", "sgd.learning_rate": 1e-3},
    # The recipe search on Stanford Cars: Ranger, label smoothing, RandAugment.
    {"strategy": "clip", "optimizer": "ranger", "loss": "label_smoothing", "augmentation": "randaugment"},
    # The yardstick: what the same network reaches without transfer.
    {"strategy": "scratch", "optimizer": "adam"},
)
"""What is tried first, best bet first. Axes that are not named take their first value, rates those of `GOOD_RATES`.

Chosen on validation parts of Hymenoptera and Dogs vs Cats (MobileNetV2 at 128 px, two draws each, 2026-11-20)."""


class Asked(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """One of several values."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number."""
        ...


@dataclass(frozen=True)
class Space:
    """The configurations that a sweep may try."""

    axes: Mapping[str, Domain]
    parameters: Mapping[str, Domain]
    learning_rates: Mapping[str, Domain]
    epochs: int

    def suggest(self, asked: Asked) -> Config:
        """A configuration, every free choice of it made by `asked`."""
        config: Config = {}
        for name, domain in self.axes.items():
            if name == "clip_norm":
                left = _preset(STRATEGIES[str(config["strategy"])]().clip_norm, domain)
                # To the sampler other options are another parameter.
                config[name] = _suggest(asked, name if left == domain else f"{config['strategy']}.{name}", left)
                continue
            config[name] = _suggest(asked, name, domain)
            if name in TABLES:
                for parameter in parameters(TABLES[name][str(config[name])]):
                    config[parameter] = _suggest(asked, parameter, self.parameter(parameter))
        optimizer = str(config["optimizer"])
        rates = self.learning_rates[optimizer]
        # Ranges differ between optimizers, so each is a parameter of its own to the sampler.
        config["learning_rate"] = _suggest(asked, f"{optimizer}.learning_rate", rates)
        return config

    def strategies(self) -> tuple[str, ...]:
        """The names of those that compete."""
        return tuple(map(str, values_of(self.axes["strategy"])))

    def known_good(self, arms: Sequence[Mapping[str, Value]] = ()) -> list[dict[str, Any]]:
        """The free choices to begin with, for `configured`.

        Args:
            arms: configurations to take instead of `KNOWN_GOOD`, each as it is.

        Raises:
            ValueError: an arm lies outside this space.
        """
        if arms:
            return [self._arm(arm) for arm in arms]
        backbones = values_of(self.axes["backbone"])
        wishes: list[Config] = [{**wish, "backbone": backbones[0]} for wish in KNOWN_GOOD]
        wishes[1:1] = [{**KNOWN_GOOD[0], "backbone": backbone} for backbone in backbones[1:]]
        found: list[dict[str, Any]] = []
        for wish in wishes:
            asked = Wishes(wish)
            if wish["strategy"] in self.strategies() and self.suggest(asked) and asked.granted not in found:
                found.append(asked.granted)
        return found

    def configured(self, params: Mapping[str, Any]) -> Config:
        """The configuration that free choices stand for."""
        return self.suggest(Wishes(params))

    def _arm(self, arm: Mapping[str, Value]) -> dict[str, Any]:
        asked = Wishes(arm)
        config = self.suggest(asked)
        for name, value in arm.items():
            if config.get(name) != value:
                raise ValueError(f"an arm wants {name}={value}, which this space does not have")
        return asked.granted

    def described(self) -> dict[str, str]:
        """Every axis with what it ranges over, for plan.json and the report."""
        rates = {
            f"{name}.learning_rate": str(self.learning_rates[name])
            for name in map(str, values_of(self.axes["optimizer"]))
        }
        entries = [(kind, str(name)) for kind in TABLES for name in values_of(self.axes[kind])]
        own = {
            f"{name}.{parameter}": str(self.parameter(parameter))
            for kind, name in entries
            for parameter in parameters(TABLES[kind][name])
        }
        return {**{name: str(domain) for name, domain in self.axes.items()}, **own, **rates}

    def parameter(self, name: str) -> Domain:
        """What a table entry's parameter ranges over in runs of this length."""
        domain = self.parameters[name]
        if name == "freeze_epochs" and isinstance(domain, Range):
            # Something must be left to train once everything is free.
            return replace(domain, high=max(domain.low, min(domain.high, self.epochs - 1)))
        return domain


class Wishes:
    """Answers a space with wishes, moved into its domains: an `Asked` that leaves nothing to chance."""

    def __init__(self, wishes: Mapping[str, Value]) -> None:
        self._wishes = wishes
        self.granted: dict[str, Any] = {}
        """What was asked for, and what the answer was."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """The wish where it is a choice, else the first choice."""
        return self._grant(name, Options(tuple(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The wish moved into the range, else a rate known to be good, else the middle."""
        return float(self._grant(name, Range(low, high, log)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """The wish moved into the range, else the middle."""
        return int(self._grant(name, Range(low, high, log)))

    def _grant(self, name: str, domain: Domain) -> Any:
        wish = self._wishes.get(name, self._wishes.get(name.rpartition(".")[2]))  # sgd.learning_rate, learning_rate
        self.granted[name] = domain.nearest(self._good_rate(name) if wish is None else wish)
        return self.granted[name]

    def _good_rate(self, name: str) -> Value:
        rate = GOOD_RATES.get(name.removesuffix(".learning_rate"))
        return 10 * rate if rate and self._wishes.get("strategy") == "linear_probe" else rate


def space_for(
    backbones: Sequence[str], epochs: int, strategies: Sequence[str] = (), edits: Mapping[str, str] | None = None
) -> Space:
    """The space that a user asked for.

    Args:
        backbones: timm's names.
        epochs: how long each run is.
        strategies: those to compete; the five of the default space unless given.
        edits: axes with other values than usual, as on the command line: `{"learning_rate": "1e-4..1e-2"}`.

    Raises:
        ValueError: an unknown axis or value, one that does not apply, or one beyond reason.
    """
    axes: dict[str, Domain] = {"backbone": Options(tuple(backbones)), **AXES}
    own, rates = dict(PARAMETERS), dict[str, Domain](LEARNING_RATES)
    edits = {**(edits or {}), **({"strategy": ",".join(strategies)} if strategies else {})}
    if "strategy" not in edits and epochs < 2:
        known = tuple(name for name in values_of(AXES["strategy"]) if name != "freeze_then_unfreeze")
        axes["strategy"] = Options(known)  # nothing would be left to train once everything is free
    for axis, text in edits.items():
        if axis == "learning_rate":
            rates = dict.fromkeys(rates, domain_from(axis, text))
        elif axis in own:
            own[axis] = domain_from(axis, text)
        elif axis in axes and axis != "backbone":
            axes[axis] = domain_from(axis, text)
        else:
            raise ValueError(unknown("axis", axis, [*AXES, *PARAMETERS, "learning_rate"]))
    for axis in edits:
        owners = [(kind, name) for kind, table in TABLES.items() for name in table if axis in parameters(table[name])]
        if axis in own and not any(name in values_of(axes[kind]) for kind, name in owners):
            names = " and ".join(name for _, name in owners)
            raise ValueError(f"{axis} belongs to {names}, which this sweep does not try")
        for kind, name in owners:
            for value in values_of(own[axis]):
                TABLES[kind][name](**{axis: value})  # an entry knows best which values make no sense
    space = Space(axes, own, rates, epochs)
    for strategy in space.strategies():
        space.suggest(Wishes({"strategy": strategy}))
    freezing = own["freeze_epochs"] if "freeze_epochs" in edits else space.parameter("freeze_epochs")
    if "freeze_then_unfreeze" in values_of(axes["strategy"]) and max(numbers_in(freezing)) >= epochs:
        raise ValueError(
            f"freeze_then_unfreeze needs an epoch after it unfreezes: with {epochs} epochs, freeze_epochs can be at "
            f"most {epochs - 1}"
        )
    return space


def recipe_data(config: Config) -> dict[str, Any]:
    """The searched part of a recipe as plain data: table entries with their parameters, numbers as they are."""
    plain: dict[str, Any] = {}
    for kind, table in TABLES.items():
        name = str(config[kind])
        own = {parameter: config[parameter] for parameter in parameters(table[name])}
        plain[kind] = choose(kind, table, name, **own).as_dict()
    return {**plain, **{name: config[name] for name in config if name in ("backbone", *LIMITS)}}


def _preset(clip_norm: float | None, domain: Domain) -> Domain:
    """What is left of the clip norms where a strategy is a preset that stands for one of them."""
    if clip_norm is None or isinstance(domain, Range):
        return domain
    clipping = tuple(value for value in domain.values if value is not None)
    if not clipping:
        raise ValueError("clip_norm=none takes from strategy clip what it is: name the others with --strategies")
    return Options((clip_norm,) if clip_norm in clipping else clipping)


def _suggest(asked: Asked, name: str, domain: Domain) -> Value:
    if isinstance(domain, Options):
        value: Value = domain.values[0]
        return value if len(domain.values) == 1 else asked.suggest_categorical(name, domain.values)
    if domain.low == domain.high:
        return domain.low
    if domain.whole:
        return asked.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return asked.suggest_float(name, domain.low, domain.high, log=domain.log)
