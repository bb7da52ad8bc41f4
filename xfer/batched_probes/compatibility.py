"""Compatibility: which recipes can be trained together as a batch of probes, and with which heads they start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from xfer.batched_probes.heads import BATCHED_STEPS, Head
from xfer.choices import Choice
from xfer.measure.cost import count_flops, count_parameters
from xfer.methods.adapters import merge_adapters
from xfer.methods.batch_norm import BATCH_NORM_MODES
from xfer.methods.freezing import HeadFirst
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models.params import named_params
from xfer.recipe import Recipe
from xfer.seeding import derive_seed
from xfer.training.learner import set_train_mode
from xfer.training.networks import build_network

PER_PROBE_FIELDS = (
    "learning_rate",
    "weight_decay",
    "clip_norm",
    "clip_value",
    "loss",
    "schedule",
    "augmentation",
    "views",
    "seed",
)
"""Recipe fields that may differ within a batch of probes. The last three determine the data order and the views."""

IRRELEVANT_FIELDS: dict[str, Any] = {
    "data": "",
    "optimizer": Choice("sgd"),
    "schedule": Choice("constant"),
    "augmentation": Choice("none"),
    "loss": Choice("cross_entropy"),
    "balance": Choice("none"),
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "batch_size": 2,
    "epochs": 1,
    "clip_norm": None,
    "clip_value": None,
    "images_per_class": None,
    "views": None,
    "split_seed": 0,
    "draw": 0,
}
"""Recipe fields that do not affect the initial network, with a fixed value for each, so that recipes with the same
network share one cache entry."""


@dataclass(frozen=True, eq=False)
class HeadInit:
    """Initial head of a linear probe, and what a Record says about its network."""

    head: Head
    parameters: int
    """Number of the network's parameters."""
    flops: int
    """Floating point operations per image."""


def can_batch(recipe: Recipe) -> bool:
    """Return whether a recipe gives the same result in a batch of probes, on embeddings that are computed once.

    Only a linear head may move. Images come as they are or as a fixed number of views, unmixed, in one size, and all
    classes alike. No batch norm follows them, no dropout precedes the head, and the optimizer is one that can be
    batched.
    """
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    return (
        recipe.eval_size is None
        and strategy.pace == HeadFirst(freeze_epochs=None)
        and strategy.regularizer is None
        and recipe.head.name == "linear"
        and recipe.mixing.name == recipe.balance.name == recipe.embedding_loss.name == "none"
        and recipe.batch_norm.name != "always"
        and recipe.optimizer.name in BATCHED_STEPS
        and (recipe.augmentation.name == "none" or recipe.views is not None)
        and _embeds_deterministically(network_key(recipe))
    )


def group_recipes(recipes: Sequence[Recipe], largest: int = 256) -> list[tuple[int, ...]]:
    """Group recipes into batches of probes. Recipes that cannot be batched are left out.

    Args:
        recipes: in any order.
        largest: maximum size of a group. Memory is proportional to it, and to the size of a head.

    Returns:
        For each group the indices of its recipes, in ascending order.
    """
    groups: dict[Any, list[int]] = {}
    for index, recipe in enumerate(recipes):
        if can_batch(recipe):
            groups.setdefault(group_key(recipe), []).append(index)
    return [
        tuple(indices[start : start + largest])
        for indices in groups.values()
        for start in range(0, len(indices), largest)
    ]


def head_inits(recipes: Sequence[Recipe], weights: Path | None) -> list[HeadInit]:
    """Return the initial heads of recipes, the same as in a `Run`. Each distinct network is built once.

    The head's random numbers are drawn after those of the backbone, so the backbone has to be built. Torch's random
    state does not change.
    """
    networks = [_initial_network(recipe) for recipe in recipes]
    inits = {network: _head_init(network, weights) for network in dict.fromkeys(networks)}
    return [inits[network] for network in networks]


def network_key(recipe: Recipe) -> Recipe:
    """Return a key that recipes share if and only if their networks differ at most in the seed."""
    return dataclasses.replace(_initial_network(recipe), seed=0)


def data_order_key(recipe: Recipe) -> Any:
    """Return a key that recipes of a group share if they see the same images in the same order."""
    return recipe.seed, None if recipe.augmentation.name == "none" else (recipe.augmentation, recipe.views)


def group_key(recipe: Recipe) -> tuple[Any, ...]:
    """Return a key that recipes share if they can form a group.

    It holds all fields but `PER_PROBE_FIELDS`, and the penalty of heads in closed form.
    """
    closed_form = {} if recipe.uses_gradient_steps else {"strategy": recipe.strategy.name}
    fields = [field.name for field in dataclasses.fields(recipe) if field.name not in PER_PROBE_FIELDS]
    return tuple(closed_form.get(name, getattr(recipe, name)) for name in fields)


def _initial_network(recipe: Recipe) -> Recipe:
    """The recipe with all fields replaced that do not affect its initial network."""
    strategy: dict[str, Any] = {} if recipe.uses_gradient_steps else {"strategy": Choice("linear_probe")}
    return dataclasses.replace(recipe, **IRRELEVANT_FIELDS, **strategy)


@lru_cache(maxsize=64)
def _head_init(recipe: Recipe, weights: Path | None) -> HeadInit:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        model = build_network(recipe, weights if recipe.weights else None)
    head = model.get_classifier()
    channels = recipe.colour.build(INPUT_CHANNELS).channels
    flops = count_flops(merge_adapters(model), recipe.image_size, channels)
    return HeadInit(Head(head.weight.detach(), head.bias.detach()), count_parameters(model), flops)


@lru_cache(maxsize=4096)
def _embeds_deterministically(recipe: Recipe) -> bool:
    """Whether the network, in the mode in which it trains, draws no random numbers and ends in one linear layer."""
    channels = recipe.colour.build(INPUT_CHANNELS).channels
    try:
        detector = _RandomnessDetector()  # type: ignore[no-untyped-call]
        with torch.device("meta"), torch.no_grad(), detector:  # shapes only: no memory, no arithmetic
            model = build_network(recipe, None)
            head = model.get_classifier()
            params = named_params(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(params[name].depth == 0)
            set_train_mode(model, True, recipe.batch_norm.build(BATCH_NORM_MODES))
            detector.detected = False  # initial weights are random
            model(torch.zeros(2, channels, recipe.image_size, recipe.image_size))
    except (ValueError, RuntimeError, AssertionError):
        return False  # a Run fails too, and its message says why
    return type(head) is nn.Linear and head.bias is not None and not detector.detected


class _RandomnessDetector(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Detects operations that draw random numbers."""

    detected = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.detected |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
