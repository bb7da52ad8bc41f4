"""Known good recipes: what a sweep tries before its sampler proposes anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sweeps.engine.search_space.distributions import Config
from xfer.hyperparameters import CHOICES
from xfer.models.families import FamilyName

ALL: tuple[FamilyName, ...] = ()
BATCH_NORM: tuple[FamilyName, ...] = ("batch_norm",)
LAYER_NORM: tuple[FamilyName, ...] = ("vit", "convnext")

_ADAMW: Config = {
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "schedule": "cosine_warmup",
    "augmentation": "random_resized_crop",
}
"""What experts fine-tune transformers and ConvNeXt with: deit#120, dino#171 and dinov2#252 on GitHub."""

RESEARCHED: tuple[tuple[tuple[FamilyName, ...], Config], ...] = (
    # Train everything from the first step, with the gradient norm clipped at 1.0. On batches of 16, frozen batch norms
    # were 0.8 points better at 300 steps, and random_resized_crop added 0.9.
    (
        BATCH_NORM,
        {
            "strategy": "clip",
            "clip_norm": 1.0,
            "optimizer": "ranger",
            "ranger.learning_rate": 3e-3,
            "batch_norm": "frozen",
            "augmentation": "random_resized_crop",
        },
    ),
    (LAYER_NORM, {"strategy": "clip", "clip_norm": 1.0, "adamw.learning_rate": 5e-5, **_ADAMW}),
    # Batch statistics of 16 images destroy the fitted head's features: frozen ones were 1.7 points better at 300 steps.
    (BATCH_NORM, {"strategy": "lp_ft", "penalty": 1.0, "clip_norm": 1.0, "batch_norm": "frozen"}),
    (LAYER_NORM, {"strategy": "lp_ft", "penalty": 1.0, "clip_norm": 1.0, "adamw.learning_rate": 3e-5, **_ADAMW}),
    # With frozen batch norms this recipe ends in guessing, at 100 steps: Adam's first steps have the full length of its
    # rate, and the body, which is unfrozen later, gets no warm-up. Normalization by the batch tolerates them.
    (
        BATCH_NORM,
        {
            "strategy": "freeze_then_unfreeze",
            "freeze_epochs": 2,
            "clip_norm": 1.0,
            "optimizer": "adam",
            "adam.learning_rate": 5e-4,
            "batch_norm": "with_weights",
            "augmentation": "random_resized_crop",
        },
    ),
    (
        LAYER_NORM,
        {
            "strategy": "freeze_then_unfreeze",
            "freeze_epochs": 2,
            "clip_norm": 1.0,
            "adamw.learning_rate": 1e-4,
            **_ADAMW,
        },
    ),
    # AutoGluon MultiModal takes this rate and decay for every network.
    (
        BATCH_NORM,
        {"strategy": "layer_decay", "decay": 0.9, "clip_norm": 1.0, "optimizer": "adamw", "adamw.learning_rate": 5e-4},
    ),
    (LAYER_NORM, {"strategy": "layer_decay", "decay": 0.9, "clip_norm": 1.0, "adamw.learning_rate": 1e-4, **_ADAMW}),
    # The stem frozen, the rest by SGD (Kumar et al. 2024, arXiv 2211.09359).
    (
        ("vit",),
        {"strategy": "freeze_first", "blocks": 1, "clip_norm": 1.0, "optimizer": "sgd", "sgd.learning_rate": 3e-3},
    ),
    (BATCH_NORM, {"strategy": "linear_probe", "optimizer": "adam", "adam.learning_rate": 3e-3}),
    (LAYER_NORM, {"strategy": "linear_probe", "optimizer": "adamw", "adamw.learning_rate": 3e-3}),
    (ALL, {"strategy": "logistic_probe"}),  # with the penalty of the screening, if there is one
    # Without a bound on the head's first gradients, SGD at a rate of 1e-2 throws MobileNetV2 back to guessing.
    (BATCH_NORM, {"strategy": "naive", "optimizer": "sgd", "sgd.learning_rate": 1e-3}),
    (LAYER_NORM, {"strategy": "naive", "adamw.learning_rate": 5e-5, **_ADAMW}),
    # The baseline: what the same network reaches without transfer.
    (BATCH_NORM, {"strategy": "scratch", "optimizer": "sgd", "sgd.learning_rate": 3e-2}),
    (LAYER_NORM, {"strategy": "scratch", "clip_norm": 1.0, **_ADAMW, "weight_decay": 1e-2}),
    # Only tried on request, and not compared: each with a clipped norm, or with the probe's optimizer if little more
    # than the head moves.
    (ALL, {"strategy": "ridge_probe", "penalty": 100.0}),
    (ALL, {"strategy": "small_cnn", "optimizer": "adam"}),
    (ALL, {"strategy": "freeze_until_converged", "patience": 1, "clip_norm": 1.0}),
    (ALL, {"strategy": "freeze_first", "blocks": 3, "clip_norm": 1.0}),
    (ALL, {"strategy": "train_last", "blocks": 3, "clip_norm": 1.0}),
    # A classifier on few features tolerates a high rate.
    (ALL, {"strategy": "early_cut", "stage": 3, "optimizer": "adam", "adam.learning_rate": 1e-2}),
    (ALL, {"strategy": "drop_early", "stage": 1, "optimizer": "adam"}),
    (ALL, {"strategy": "gradual_unfreeze", "blocks": 3, "until": 0.5, "clip_norm": 1.0}),
    (ALL, {"strategy": "bitfit", "optimizer": "adam", "clip_norm": 1.0}),
    (ALL, {"strategy": "lora", "rank": 8, "optimizer": "adam", "clip_norm": 1.0}),
    (ALL, {"strategy": "l2_sp", "strength": 0.01, "clip_norm": 1.0}),
    (ALL, {"strategy": "surgical", "block": 1, "clip_norm": 1.0}),
    # Second recipes. The recipe search on Stanford Cars: Ranger, label smoothing, RandAugment.
    (
        BATCH_NORM,
        {
            "strategy": "clip",
            "optimizer": "ranger",
            "ranger.learning_rate": 3e-3,
            "loss": "label_smoothing",
            "augmentation": "randaugment",
        },
    ),
)
"""Recipes with a reason, best bet first, and the families that they are for. Axes that are not named take their first
value, learning rates the optimizer's default, or the middle of the family's range.

For batch-norm networks: optimizers and rates of `clip`, `freeze_then_unfreeze` and `scratch` have a small mean regret
on validation parts of four data sets (benchmarks/RECIPES.md, 5 epochs); batch norm and augmentation of `clip` and
`lp_ft` were compared at 300 steps on 240 photos, those of `freeze_then_unfreeze` at 100 steps on two data sets
(benchmarks/steps.json); `linear_probe` at 300 steps on three. The recipes of the other families are those of their
sources, and have not been measured here."""


def known_good_recipes(family: FamilyName = "batch_norm") -> tuple[Config, ...]:
    """Return the recipes for a family, best bet first: at least one for every strategy.

    A strategy without a recipe for the family has that for all families, or its defaults.
    """
    own = [recipe for families, recipe in RESEARCHED if family in families]
    covered = {recipe["strategy"] for recipe in own}
    rows = [
        recipe
        for families, recipe in RESEARCHED
        if family in families or (not families and recipe["strategy"] not in covered)
    ]
    named = {recipe["strategy"] for recipe in rows}
    others: list[Config] = [{"strategy": name} for name in CHOICES["strategy"].entries if name not in named]
    return (*rows, *others)


def rank_known_good(
    strategies: Sequence[str],
    advised: Mapping[str, Config] = MappingProxyType({}),
    family: FamilyName = "batch_norm",
) -> list[Config]:
    """Return the known good recipes of some strategies: one recipe of each strategy before a second of any.

    Args:
        strategies: the strategies that compete.
        advised: strategies that come first, in this order, with the parameters of their first recipe.
        family: of the network.
    """
    position = {strategy: index for index, strategy in enumerate(advised)}
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, Config]] = []
    for recipe in known_good_recipes(family):
        strategy = str(recipe["strategy"])
        if strategy in strategies:
            parameters = {} if seen[strategy] else advised.get(strategy, {})
            ranked.append((seen[strategy], position.get(strategy, len(position)), {**recipe, **parameters}))
            seen[strategy] += 1
    return [recipe for *_, recipe in sorted(ranked, key=lambda entry: entry[:2])]
