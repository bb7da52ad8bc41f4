"""The search space: which configurations a sweep may try, and how a configuration becomes a recipe.

The space is conditional: the parameters of a table entry exist only if the entry is chosen, a preset brings its own
clip norm, the range of the learning rate belongs to the optimizer, and a backbone is never asked for what it cannot do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from sweeps.engine.search_space.constraints import (
    Feasible,
    allowed_values,
    network_traits_of,
    only_head_moves,
    takes_steps,
    value_without_steps,
)
from sweeps.engine.search_space.distributions import Config, domain_values
from sweeps.engine.search_space.known_good import rank_known_good
from sweeps.engine.search_space.suggest import NearestTrial, SuggestTrial, suggest_value
from sweeps.reporting.formatting import pluralize
from xfer.choices import Value, canonical_name, choose, default_parameters
from xfer.hyperparameters import COUNTED_IN_EPOCHS, DEFAULT_EPOCHS, Distribution, Range
from xfer.lengths import RunLength, steps_per_epoch
from xfer.methods.strategies import STRATEGIES
from xfer.models.families import FAMILIES, FamilyName, NetworkTraits
from xfer.recipe import CHOICE_TABLES, LIMITS


@dataclass(frozen=True)
class Space:
    """The configurations that a sweep may try."""

    axes: Mapping[str, Distribution]
    parameters: Mapping[str, Distribution]
    """The parameters of table entries, named as in `defaults.PARAMETER_RANGES`."""
    learning_rates: Mapping[str, Distribution]
    """The learning rates, named as in `defaults.LEARNING_RATE_RANGES`."""
    length: RunLength
    possible: Feasible = field(default_factory=dict)
    """What each backbone can do. A backbone that is absent can do everything."""
    traits: Mapping[str, NetworkTraits] = field(default_factory=dict)
    """The traits of each backbone. A backbone that is absent has the default ones."""
    edited: frozenset[str] = frozenset()
    """The axes that the user has set, to which `constraints.DEFAULT_RULES` do not apply."""

    def suggest(self, trial: SuggestTrial) -> Config:
        """Return a configuration, with every free choice made by `trial`."""
        config: Config = {}
        for axis, distribution in self.axes.items():
            allowed, because = allowed_values(self, axis, distribution, config)
            # A sampler must see other values as another parameter.
            config[axis] = suggest_value(trial, f"{because}.{axis}" if because else axis, allowed)
            if axis in CHOICE_TABLES:
                self._suggest_parameters(trial, config, axis)
        if takes_steps(config):
            # Ranges differ between optimizers, so the rate of each is a parameter of its own.
            name = self._learning_rate_name(config)
            config["learning_rate"] = suggest_value(trial, f"{name}.learning_rate", self.learning_rates[name])
            config["epochs"] = self.epochs(config)
        else:
            config |= {name: value_without_steps(name) for name in ("learning_rate", "epochs")}
        config["backbone"] = STRATEGIES[str(config["strategy"])]().backbone or config["backbone"]
        return config

    def _learning_rate_name(self, config: Config) -> str:
        """Return the name of the learning rate of a configuration, as in `defaults.LEARNING_RATE_RANGES`."""
        situation: str = network_traits_of(self, config).family
        if only_head_moves(config):
            situation = "head"
        elif not STRATEGIES[str(config["strategy"])]().pretrained:
            situation = "random weights"  # which learn at the rates of all networks
        name = f"{situation}.{config['optimizer']}"
        return name if name in self.learning_rates else str(config["optimizer"])

    def _suggest_parameters(self, trial: SuggestTrial, config: Config, kind: str) -> None:
        """Choose the parameters of the table entry that was chosen."""
        entry, backbone = str(config[kind]), str(config["backbone"])
        constrained = kind == "strategy" and backbone in self.possible
        for name in default_parameters(CHOICE_TABLES[kind][entry]):
            distribution = self.parameter(entry, name, backbone)
            allowed = self.possible[backbone][entry][name] if constrained else distribution
            shared = sum(name in default_parameters(other) for other in CHOICE_TABLES[kind].values()) > 1
            own_name = self._family_parameter(name, backbone)
            full_name = own_name if own_name in self.parameters else f"{entry}.{name}" if shared else name
            if allowed != distribution:
                full_name = f"{backbone}.{full_name}"
            config[name] = suggest_value(trial, full_name, allowed)

    def epochs(self, config: Config) -> int:
        """Return the number of epochs of a configuration, which depends on its batch size and number of images."""
        return self.length.epochs_for(*_batch_size_and_limit(config))

    @property
    def shortest(self) -> int:
        """The smallest number of epochs that a run with gradient steps can have."""
        return min(map(self.epochs, self._sizes()))

    def described_lengths(self) -> dict[str, str]:
        """Return the length of runs in words by batch size, for plan.json and the report."""
        lengths: dict[str, str] = {}
        for config in self._sizes():
            batch_size, limit = _batch_size_and_limit(config)
            name = f"batch size {batch_size}" + (f", {limit} images per class" if limit is not None else "")
            epochs, images = self.epochs(config), self.length.images(limit)
            lengths[name] = f"{pluralize(epochs, 'epoch')}, {epochs * steps_per_epoch(images, batch_size):,} steps"
        return lengths

    def _sizes(self) -> list[Config]:
        """Return the choices that the length of a run depends on, or the ends of their ranges."""
        return [
            {"batch_size": batch_size, "images_per_class": limit}
            for batch_size in domain_values(self.axes["batch_size"])
            for limit in domain_values(self.axes["images_per_class"])
        ]

    @property
    def image_sizes(self) -> tuple[Value, ...]:
        """The image sizes that compete, the one to begin with first; empty if there is only one."""
        return domain_values(self.axes["image_size"]) if "image_size" in self.axes else ()

    def strategies(self) -> tuple[str, ...]:
        """Return the names of the strategies that compete."""
        return tuple(map(str, domain_values(self.axes["strategy"])))

    def known_good(
        self, arms: Sequence[Mapping[str, Value]] = (), advised: Mapping[str, Config] = MappingProxyType({})
    ) -> list[dict[str, Any]]:
        """Return the parameters of the trials to begin with, as `configured` takes them.

        The first recipe is tried on every backbone and in every image size, the others on the first backbone that can
        do them and in the first image size, each as its family does it.

        Args:
            arms: configurations that replace the known good recipes.
            advised: strategies that come first, in this order, with the parameters of their first recipe.

        Raises:
            ValueError: an arm lies outside this space.
        """
        if arms:
            return [self._arm_params(arm) for arm in arms]
        backbones = domain_values(self.axes["backbone"])
        recipes = rank_known_good(self.strategies(), advised, self._family(backbones[0]))

        def on_backbone(recipe: Config, backbone: Value) -> Config:
            if self._family(backbone) != self._family(backbones[0]):
                (recipe, *_) = rank_known_good([str(recipe["strategy"])], advised, self._family(backbone))
            return {"backbone": backbone, **recipe}

        starts = [on_backbone(recipe, self._first_able_backbone(str(recipe["strategy"]))) for recipe in recipes]
        balanced = self._balanced_start(starts)
        starts[:1] = [
            *(on_backbone(recipes[0], backbone) for backbone in backbones),
            *({**starts[0], "image_size": size} for size in self.image_sizes[1:]),
        ]
        starts[1:1] = balanced
        starts = [self._stretched(start) for start in starts]
        params: list[dict[str, Any]] = []
        for start in starts:
            trial = NearestTrial(start)
            if self.suggest(trial)["strategy"] == start["strategy"] and trial.suggested not in params:
                params.append(trial.suggested)
        return params

    def control(self, arms: Sequence[Mapping[str, Value]] = ()) -> Config:
        """Return the configuration that others are compared with: the first known good one of the first backbone.

        Args:
            arms: configurations that replace the known good recipes; the control is then the first of them.
        """
        return self.configured(self.known_good(arms)[0])

    def configured(self, params: Mapping[str, Any]) -> Config:
        """Return the configuration that a trial's parameters stand for."""
        return self.suggest(NearestTrial(params))

    def _stretched(self, config: Config) -> Config:
        """Return a configuration for `DEFAULT_EPOCHS` epochs with what it counts in epochs as long in longer runs."""
        factor = max(1.0, self.shortest / DEFAULT_EPOCHS)
        counted = {name: config[name] for name in COUNTED_IN_EPOCHS & config.keys()}
        return {**config, **{name: round(factor * value) for name, value in counted.items() if isinstance(value, int)}}

    def _balanced_start(self, starts: Sequence[Config]) -> list[Config]:
        """Return the first start that can counteract unequal class sizes, with logit adjustment at its default.

        Returns:
            One start, or none if logit adjustment does not compete with other values of `balance`.
        """
        values = domain_values(self.axes["balance"])
        if "logit_adjustment" not in values[1:]:
            return []
        adjusted = [{**start, "balance": "logit_adjustment", "tau": 1.0} for start in starts]
        return [start for start in adjusted if self.suggest(NearestTrial(start))["balance"] == start["balance"]][:1]

    def _first_able_backbone(self, strategy: str) -> Value:
        return next(name for name in domain_values(self.axes["backbone"]) if strategy in self._strategies_of(name))

    def _strategies_of(self, backbone: Value) -> tuple[Value, ...]:
        """Return the strategies that compete on a backbone."""
        allowed, _ = allowed_values(self, "strategy", self.axes["strategy"], {"backbone": backbone})
        return domain_values(allowed)

    def _arm_params(self, arm: Mapping[str, Value]) -> dict[str, Any]:
        arm = {name: canonical_name(name, value) if isinstance(value, str) else value for name, value in arm.items()}
        trial = NearestTrial(arm)
        config = self.suggest(trial)
        for name, value in arm.items():
            if config.get(name) != value:
                raise ValueError(f"an arm has {name}={value}, which lies outside the search space")
        return trial.suggested

    def described(self) -> dict[str, str]:
        """Return every axis with its values as text, for plan.json and the report."""
        optimizers = domain_values(self.axes["optimizer"])
        prefixes = {"head"} if any(map(_trains_only_head, self.strategies())) else set()
        prefixes |= {network.family for network in self.traits.values()}
        rates = {
            f"{name}.learning_rate": str(distribution)
            for name, distribution in self.learning_rates.items()
            if name in optimizers or (name.partition(".")[0] in prefixes and name.partition(".")[2] in optimizers)
        }
        entries = [(kind, str(name)) for kind in CHOICE_TABLES for name in domain_values(self.axes[kind])]
        parameters = {
            f"{name}.{parameter}": str(self.parameter(name, parameter))
            for kind, name in entries
            for parameter in default_parameters(CHOICE_TABLES[kind][name])
        }
        tried = {name for kind, entry in entries for name in default_parameters(CHOICE_TABLES[kind][entry])}
        own = {
            f"{family}.{name}": str(distribution)
            for family in dict.fromkeys(network.family for network in self.traits.values())
            for name, distribution in self._family_ranges(family).items()
            if name in tried or name == "weight_decay"
        }
        return {**{name: str(distribution) for name, distribution in self.axes.items()}, **parameters, **rates, **own}

    def _family_ranges(self, family: FamilyName) -> dict[str, Distribution]:
        """Return the ranges that a family has of its own, apart from learning rates."""
        row = FAMILIES[family]
        ranges = {
            name: self.parameters[key] for name in row.parameters if (key := f"{family}.{name}") in self.parameters
        }
        decay = row.weight_decay if "weight_decay" not in self.edited else None
        return {**ranges, **({"weight_decay": decay} if decay else {})}

    def _family(self, backbone: Value) -> FamilyName:
        return network_traits_of(self, {"backbone": backbone}).family

    def _family_parameter(self, name: str, backbone: str) -> str:
        return f"{self._family(backbone)}.{name}"

    def parameter(self, entry: str, name: str, backbone: str = "") -> Distribution:
        """Return the distribution of a table entry's parameter on a backbone, for runs of this length."""
        names = (self._family_parameter(name, backbone), f"{entry}.{name}", name)
        distribution = next(self.parameters[key] for key in names if key in self.parameters)
        if not isinstance(distribution, Range):
            return distribution
        highest = unfreeze_ranges(self.shortest).get(name, distribution.high)
        return replace(distribution, high=max(distribution.low, min(distribution.high, highest)))


def _trains_only_head(strategy: str) -> bool:
    """Whether a strategy takes gradient steps on a head alone."""
    return takes_steps({"strategy": strategy}) and only_head_moves({"strategy": strategy})


def _batch_size_and_limit(config: Config) -> tuple[int, int | None]:
    batch_size, limit = config["batch_size"], config["images_per_class"]
    assert isinstance(batch_size, int), "batch sizes are integers"
    return batch_size, limit if isinstance(limit, int) else None


def config_to_recipe(config: Config) -> dict[str, Any]:
    """Return the searched part of a recipe as plain data: table entries with their parameters, and numbers."""
    plain: dict[str, Any] = {}
    for kind, table in CHOICE_TABLES.items():
        name = str(config[kind])
        parameters = {parameter: config[parameter] for parameter in default_parameters(table[name])}
        plain[kind] = choose(kind, table, name, **parameters).as_dict()
    return {**plain, **{name: config[name] for name in config if name in ("backbone", *LIMITS)}}


def unfreeze_ranges(epochs: int) -> dict[str, float]:
    """Return the largest value of each unfreezing parameter that leaves one epoch to train the whole network."""
    return {"freeze_epochs": epochs - 1, "until": math.floor(1000 * (epochs - 1) / epochs) / 1000}
