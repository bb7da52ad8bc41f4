"""Known good recipes: what a sweep tries before its sampler proposes anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sweeps.engine.search_space.distributions import Config
from xfer.hyperparameters import CHOICES

RESEARCHED: tuple[Config, ...] = (
    # The advice of the literature: train everything from the first step, with the gradient norm clipped at 1.0.
    {"strategy": "clip", "clip_norm": 1.0, "optimizer": "ranger", "ranger.learning_rate": 3e-3},
    {"strategy": "freeze_then_unfreeze", "freeze_epochs": 2, "clip_norm": 1.0, "optimizer": "adam"},
    {"strategy": "linear_probe", "optimizer": "adam", "adam.learning_rate": 1e-2, "batch_size": 32},
    # Without a bound on the head's first gradients, SGD at a rate of 1e-2 throws MobileNetV2 back to guessing.
    {"strategy": "naive", "sgd.learning_rate": 1e-3},
    # The baseline: what the same network reaches without transfer.
    {"strategy": "scratch", "optimizer": "adam"},
    # Only tried on request, and not compared: each with a clipped norm, or with the probe's optimizer if little more
    # than the head moves.
    {"strategy": "ridge_probe", "penalty": 100.0},
    {"strategy": "logistic_probe", "penalty": 1.0},
    {"strategy": "small_cnn", "optimizer": "adam"},
    {"strategy": "freeze_until_converged", "patience": 1, "clip_norm": 1.0},
    {"strategy": "freeze_first", "blocks": 3, "clip_norm": 1.0},
    {"strategy": "train_last", "blocks": 3, "clip_norm": 1.0},
    # A classifier on few features tolerates the highest rate of the range.
    {"strategy": "early_cut", "stage": 3, "optimizer": "adam", "adam.learning_rate": 1e-2, "batch_size": 32},
    {"strategy": "drop_early", "stage": 1, "optimizer": "adam", "batch_size": 32},
    {"strategy": "gradual_unfreeze", "blocks": 3, "until": 0.5, "clip_norm": 1.0},
    {"strategy": "layer_decay", "decay": 0.75, "clip_norm": 1.0},
    {"strategy": "lp_ft", "penalty": 1.0, "clip_norm": 1.0},
    {"strategy": "bitfit", "optimizer": "adam", "clip_norm": 1.0},
    {"strategy": "lora", "rank": 8, "optimizer": "adam", "clip_norm": 1.0},
    {"strategy": "l2_sp", "strength": 0.01, "clip_norm": 1.0},
    {"strategy": "surgical", "block": 1, "clip_norm": 1.0},
    # Second recipes. The recipe search on Stanford Cars: Ranger, label smoothing, RandAugment.
    {
        "strategy": "clip",
        "optimizer": "ranger",
        "ranger.learning_rate": 3e-3,
        "loss": "label_smoothing",
        "augmentation": "randaugment",
    },
)
"""Recipes with a reason, best bet first. Axes that are not named take their first value, learning rates the default of
the optimizer.

Optimizers and rates of `clip`, `freeze_then_unfreeze` and `linear_probe` were chosen by their mean regret on validation
parts of four data sets, with one network: benchmarks/RECIPES.md. `naive` and `scratch` keep their earlier ones, because
the choice made without a data set did no better on it. The rest of each recipe was not compared."""

_OTHERS: list[Config] = [
    {"strategy": name} for name in CHOICES["strategy"].entries if all(name != row["strategy"] for row in RESEARCHED)
]

KNOWN_GOOD: tuple[Config, ...] = (*RESEARCHED, *_OTHERS)
"""At least one recipe for every strategy: `RESEARCHED`, and the defaults for strategies that are not among them."""


def rank_known_good(strategies: Sequence[str], advised: Mapping[str, Config] = MappingProxyType({})) -> list[Config]:
    """Return the known good recipes of some strategies: one recipe of each strategy before a second of any.

    Args:
        strategies: the strategies that compete.
        advised: strategies that come first, in this order, with the parameters of their first recipe.
    """
    position = {strategy: index for index, strategy in enumerate(advised)}
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, Config]] = []
    for recipe in KNOWN_GOOD:
        strategy = str(recipe["strategy"])
        if strategy in strategies:
            parameters = {} if seen[strategy] else advised.get(strategy, {})
            ranked.append((seen[strategy], position.get(strategy, len(position)), {**recipe, **parameters}))
            seen[strategy] += 1
    return [recipe for *_, recipe in sorted(ranked, key=lambda entry: entry[:2])]
