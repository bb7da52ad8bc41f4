"""Spaces: for every table in xfer.methods the settings worth trying, and how a configuration becomes a recipe.

The space is conditional: a table entry's own parameters exist only where it is chosen, a preset brings its own clip
norm, the range of the learning rate belongs to the optimizer, and what a network cannot do is never proposed for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sweeps.engine.search_space.constraints import allowed_values, takes_steps, value_without_steps
from sweeps.engine.search_space.distributions import Categorical, Distribution, Range, domain_values
from xfer.choices import Value, choose, default_parameters
from xfer.methods.freezing import HeadFirst
from xfer.methods.strategies import STRATEGIES
from xfer.recipe import CHOICE_TABLES, LIMITS

Config = dict[str, Value]
"""One point of a space: a value for every axis that exists there, under the axis' name."""


AXES: dict[str, Distribution] = {
    "strategy": Categorical(("clip", "freeze_then_unfreeze", "naive", "linear_probe", "scratch")),
    "clip_norm": Categorical((None, 0.5, 1.0, 5.0)),
    "clip_value": Categorical((None,)),
    "optimizer": Categorical(("sgd", "adam", "radam", "ranger")),
    "schedule": Categorical(("onecycle", "cosine")),
    "augmentation": Categorical(("flip", "none", "randaugment")),
    "embedding_loss": Categorical(("none",)),
    "mixing": Categorical(("none", "cutmix")),
    "views": Categorical((4,)),
    "loss": Categorical(("cross_entropy", "label_smoothing")),
    "head": Categorical(("linear",)),
    "activation": Categorical(("keep",)),
    "batch_norm": Categorical(("with_weights",)),
    "colour": Categorical(("rgb",)),
    "weight_decay": Range(1e-6, 1e-2, log=True),
    "batch_size": Categorical((16, 32, 64)),
    "body_rate": Categorical((1.0,)),
    "images_per_class": Categorical((None,)),
}
"""What every sweep searches unless told otherwise. Where nothing is known, the first value is the one to begin with.

A few choices of each kind, those that the sources compare: everything else in the tables is reached by name."""

PARAMETER_RANGES: dict[str, Distribution] = {
    "ridge_probe.penalty": Range(1.0, 1e4, log=True),  # of squared errors, where the others' are of log-likelihoods
    "logistic_probe.penalty": Range(1e-2, 1e2, log=True),
    "lp_ft.penalty": Range(1e-2, 1e2, log=True),
    "freeze_epochs": Range(1, 3),
    "patience": Range(1, 3),
    "blocks": Range(1, 8),
    "stage": Range(1, 4),
    "block": Range(1, 4),
    "until": Range(0.25, 0.75),
    "decay": Range(0.5, 0.95),
    "rank": Categorical((8, 4, 16)),
    "strength": Range(1e-4, 1e-1, log=True),
    "num_ops": Categorical((2,)),  # RandAugment's published setting for ImageNet
    "magnitude": Categorical((9,)),
    "min_area": Range(0.25, 0.9),
    "cutout_size": Range(0.2, 0.6),
    "erasing_probability": Range(0.1, 0.5),
    "grey_probability": Range(0.1, 0.5),
    "jitter": Range(0.1, 0.5),
    "cutmix.alpha": Categorical((1.0,)),  # as published: any share of the image is as likely as any other
    "mixup.alpha": Categorical((0.2,)),  # as published for ImageNet
    "smoothing": Categorical((0.1,)),
    "gamma": Range(0.5, 3.0),
    "weight": Range(0.1, 2.0, log=True),
    "pair_margin": Range(0.5, 1.5),
    "triplet_margin": Range(0.05, 0.5),
    "angular_margin": Range(0.1, 0.6),
    "scale": Range(16.0, 64.0),
    "hidden": Categorical((512, 256, 1024)),
    "cosine_scale": Range(8.0, 32.0),
    "warmup": Range(0.05, 0.3),
    "flat": Range(0.5, 0.9),
    "drop_every": Range(0.3, 0.7),
    "drop_to": Categorical((0.1,)),
}
"""The parameters of table entries. Names are unique across tables, so `--fix freeze_epochs=2` says enough; where two
entries of a table share one and want other ranges, the entry stands before it."""

LEARNING_RATE_RANGES: dict[str, Range] = {
    "sgd": Range(1e-3, 1e-1, log=True),
    "nesterov": Range(1e-3, 1e-1, log=True),
    "adam": Range(3e-5, 1e-2, log=True),
    "adamw": Range(3e-5, 1e-2, log=True),
    "radam": Range(3e-5, 1e-2, log=True),
    "ranger": Range(1e-4, 3e-2, log=True),
    "lamb": Range(3e-4, 3e-2, log=True),
    "lion": Range(3e-6, 1e-3, log=True),
}

DEFAULT_LEARNING_RATES: dict[str, float] = {
    "sgd": 1e-2,
    "nesterov": 1e-2,
    "adam": 5e-4,
    "adamw": 5e-4,
    "radam": 5e-4,
    "ranger": 1e-3,
    "lamb": 3e-3,
    "lion": 5e-5,
}
"""Where to begin when everything is trained; a head alone takes ten times as much."""

KNOWN_GOOD: tuple[Config, ...] = (
    # The sources' own advice: start with everything trained from the first step and the gradient norm clipped at 1.0.
    {"strategy": "clip", "clip_norm": 1.0, "optimizer": "ranger", "ranger.learning_rate": 3e-3},
    {"strategy": "freeze_then_unfreeze", "freeze_epochs": 2, "clip_norm": 1.0, "optimizer": "adam"},
    {"strategy": "linear_probe", "optimizer": "adam", "adam.learning_rate": 1e-2, "batch_size": 32},
    # With nothing to bound the head's first gradients, SGD at a rate of 1e-2 throws MobileNetV2 back to guessing.
    {"strategy": "naive", "sgd.learning_rate": 1e-3},
    # The yardstick: what the same network reaches without transfer.
    {"strategy": "scratch", "optimizer": "adam"},
    # Only where they are asked for, and not compared: each with a clipped norm, or, where little more than the head
    # moves, with the probe's optimizer.
    {"strategy": "ridge_probe", "penalty": 100.0},
    {"strategy": "logistic_probe", "penalty": 1.0},
    {"strategy": "small_cnn", "optimizer": "adam"},
    {"strategy": "freeze_until_converged", "patience": 1, "clip_norm": 1.0},
    {"strategy": "freeze_first", "blocks": 3, "clip_norm": 1.0},
    {"strategy": "train_last", "blocks": 3, "clip_norm": 1.0},
    # A classifier on few features takes the highest rate that there is.
    {"strategy": "early_cut", "stage": 3, "optimizer": "adam", "adam.learning_rate": 1e-2, "batch_size": 32},
    {"strategy": "drop_early", "stage": 1, "optimizer": "adam", "batch_size": 32},
    {"strategy": "gradual_unfreeze", "blocks": 3, "until": 0.5, "clip_norm": 1.0},
    {"strategy": "layer_decay", "decay": 0.75, "clip_norm": 1.0},
    {"strategy": "lp_ft", "penalty": 1.0, "clip_norm": 1.0},
    {"strategy": "bitfit", "optimizer": "adam", "clip_norm": 1.0},
    {"strategy": "lora", "rank": 8, "optimizer": "adam", "clip_norm": 1.0},
    {"strategy": "l2_sp", "strength": 0.01, "clip_norm": 1.0},
    {"strategy": "surgical", "block": 1, "clip_norm": 1.0},
    # Second ones. The recipe search on Stanford Cars: Ranger, label smoothing, RandAugment.
    {
        "strategy": "clip",
        "optimizer": "ranger",
        "ranger.learning_rate": 3e-3,
        "loss": "label_smoothing",
        "augmentation": "randaugment",
    },
)
"""What is tried first, best bet first. Axes that are not named take their first value, rates those of `DEFAULT_LEARNING_RATES`.

Optimizers and rates of `clip`, `freeze_then_unfreeze` and `linear_probe` were chosen by their mean regret on validation
parts of four data sets, with one network: benchmarks/RECIPES.md. `naive` and `scratch` keep their earlier ones, for
there what was chosen without a data set did no better on it. The rest of each recipe was not compared."""

Feasible = Mapping[str, Mapping[str, Mapping[str, Distribution]]]
"""By backbone and strategy: what is left of the strategy's parameters. One that is absent is impossible there."""


class SuggestTrial(Protocol):
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

    axes: Mapping[str, Distribution]
    parameters: Mapping[str, Distribution]
    learning_rates: Mapping[str, Distribution]
    epochs: int
    possible: Feasible = field(default_factory=dict)
    """For backbones that are not in it everything is."""

    def suggest(self, asked: SuggestTrial) -> Config:
        """A configuration, every free choice of it made by `asked`."""
        config: Config = {}
        for axis, domain in self.axes.items():
            left, because = allowed_values(self, axis, domain, config)
            # To the sampler other options are another parameter.
            config[axis] = _suggest(asked, f"{because}.{axis}" if because else axis, left)
            if axis in CHOICE_TABLES:
                self._suggest_own(asked, config, axis)
        optimizer = str(config["optimizer"])
        if takes_steps(config):
            # Ranges differ between optimizers, so each is a parameter of its own to the sampler.
            rates = self.learning_rates[optimizer]
            config["learning_rate"] = _suggest(asked, f"{optimizer}.learning_rate", rates)
            config["epochs"] = self.epochs
        else:
            config |= {name: value_without_steps(name) for name in ("learning_rate", "epochs")}
        config["backbone"] = STRATEGIES[str(config["strategy"])]().backbone or config["backbone"]
        return config

    def _suggest_own(self, asked: SuggestTrial, config: Config, kind: str) -> None:
        """Choose the parameters of the entry that was chosen from a table."""
        entry, backbone = str(config[kind]), str(config["backbone"])
        for name in default_parameters(CHOICE_TABLES[kind][entry]):
            domain = self.parameter(entry, name)
            left = self.possible[backbone][entry][name] if kind == "strategy" and backbone in self.possible else domain
            shared = sum(name in default_parameters(other) for other in CHOICE_TABLES[kind].values()) > 1
            place = f"{entry}.{name}" if shared else name
            config[name] = _suggest(asked, place if left == domain else f"{backbone}.{place}", left)

    def strategies(self) -> tuple[str, ...]:
        """The names of those that compete."""
        return tuple(map(str, domain_values(self.axes["strategy"])))

    def known_good(self, arms: Sequence[Mapping[str, Value]] = (), advised: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The free choices to begin with, for `configured`: one recipe of each strategy before a second of any.

        Args:
            arms: configurations to take instead of `KNOWN_GOOD`, each as it is.
            advised: strategies that come first, in this order.

        Raises:
            ValueError: an arm lies outside this space.
        """
        if arms:
            return [self._arm(arm) for arm in arms]
        backbones = domain_values(self.axes["backbone"])
        places = {strategy: place for place, strategy in enumerate(advised)}
        before: Counter[str] = Counter()
        ranked: list[tuple[int, int, Config]] = []
        for wish in KNOWN_GOOD:
            strategy = str(wish["strategy"])
            if strategy in self.strategies():
                ranked.append((before[strategy], places.get(strategy, len(places)), wish))
                before[strategy] += 1
        good = [wish for *_, wish in sorted(ranked, key=lambda each: each[:2])]
        wishes: list[Config] = [{"backbone": self._first_that_can(str(wish["strategy"])), **wish} for wish in good]
        wishes[:1] = [{**good[0], "backbone": backbone} for backbone in backbones]
        found: list[dict[str, Any]] = []
        for wish in wishes:
            asked = NearestTrial(wish)
            if self.suggest(asked)["strategy"] == wish["strategy"] and asked.suggested not in found:
                found.append(asked.suggested)
        return found

    def configured(self, params: Mapping[str, Any]) -> Config:
        """The configuration that free choices stand for."""
        return self.suggest(NearestTrial(params))

    def _first_that_can(self, strategy: str) -> Value:
        backbones = domain_values(self.axes["backbone"])
        return next(name for name in backbones if strategy in self.possible.get(str(name), {strategy: {}}))

    def _arm(self, arm: Mapping[str, Value]) -> dict[str, Any]:
        asked = NearestTrial(arm)
        config = self.suggest(asked)
        for name, value in arm.items():
            if config.get(name) != value:
                raise ValueError(f"an arm wants {name}={value}, which this space does not have")
        return asked.suggested

    def described(self) -> dict[str, str]:
        """Every axis with what it ranges over, for plan.json and the report."""
        rates = {
            f"{name}.learning_rate": str(self.learning_rates[name])
            for name in map(str, domain_values(self.axes["optimizer"]))
        }
        entries = [(kind, str(name)) for kind in CHOICE_TABLES for name in domain_values(self.axes[kind])]
        own = {
            f"{name}.{parameter}": str(self.parameter(name, parameter))
            for kind, name in entries
            for parameter in default_parameters(CHOICE_TABLES[kind][name])
        }
        return {**{name: str(domain) for name, domain in self.axes.items()}, **own, **rates}

    def parameter(self, entry: str, name: str) -> Distribution:
        """What a table entry's parameter ranges over in runs of this length."""
        domain = _of_entry(self.parameters, entry, name)
        if not isinstance(domain, Range):
            return domain
        most = unfreeze_ranges(self.epochs).get(name, domain.high)
        return replace(domain, high=max(domain.low, min(domain.high, most)))


class NearestTrial:
    """Answers a space with wishes, moved into its domains: an `SuggestTrial` that leaves nothing to chance."""

    def __init__(self, wishes: Mapping[str, Value]) -> None:
        self._wishes = wishes
        self.suggested: dict[str, Any] = {}
        """What was asked for, and what the answer was."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """The wish where it is a choice, else the first choice."""
        return self._grant(name, Categorical(tuple(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The wish moved into the range, else a rate known to be good, else the middle."""
        return float(self._grant(name, Range(low, high, log)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """The wish moved into the range, else the middle."""
        return int(self._grant(name, Range(low, high, log)))

    def _grant(self, name: str, domain: Distribution) -> Any:
        wish = self._wishes.get(name, self._wishes.get(name.rpartition(".")[2]))  # sgd.learning_rate, learning_rate
        self.suggested[name] = domain.nearest(self._good_rate(name) if wish is None else wish)
        return self.suggested[name]

    def _good_rate(self, name: str) -> Value:
        rate = DEFAULT_LEARNING_RATES.get(name.removesuffix(".learning_rate"))
        strategy = STRATEGIES.get(str(self._wishes.get("strategy")))
        return 10 * rate if rate and strategy and strategy().pace == HeadFirst(freeze_epochs=None) else rate


def config_to_recipe(config: Config) -> dict[str, Any]:
    """The searched part of a recipe as plain data: table entries with their parameters, numbers as they are."""
    plain: dict[str, Any] = {}
    for kind, table in CHOICE_TABLES.items():
        name = str(config[kind])
        own = {parameter: config[parameter] for parameter in default_parameters(table[name])}
        plain[kind] = choose(kind, table, name, **own).as_dict()
    return {**plain, **{name: config[name] for name in config if name in ("backbone", *LIMITS)}}


def unfreeze_ranges(epochs: int) -> dict[str, float]:
    """The parameters that say when everything is free, each with its last value that leaves an epoch to train it."""
    return {"freeze_epochs": epochs - 1, "until": math.floor(1000 * (epochs - 1) / epochs) / 1000}


def _of_entry(domains: Mapping[str, Distribution], entry: str, parameter: str) -> Distribution:
    return domains.get(f"{entry}.{parameter}") or domains[parameter]


def _suggest(asked: SuggestTrial, name: str, domain: Distribution) -> Value:
    if isinstance(domain, Categorical):
        value: Value = domain.values[0]
        return value if len(domain.values) == 1 else asked.suggest_categorical(name, domain.values)
    if domain.low == domain.high:
        return domain.low
    if domain.is_integer:
        return asked.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return asked.suggest_float(name, domain.low, domain.high, log=domain.log)
