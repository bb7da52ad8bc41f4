"""Companions: which recipes can be trained side by side on embeddings, and where each of them begins."""

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
"""In what the members of a group may differ. The last three decide which images a step sees, the others what of it."""

IRRELEVANT_FIELDS: dict[str, Any] = {
    "data": "",
    "optimizer": Choice("sgd"),
    "schedule": Choice("constant"),
    "augmentation": Choice("none"),
    "loss": Choice("cross_entropy"),
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
"""What has no say in the network that a recipe starts from, set to one value: each network is looked at once."""


@dataclass(frozen=True, eq=False)
class HeadInit:
    """Where a recipe that trains nothing but its head begins, and what is known of its network."""

    head: Head
    parameters: int
    flops: int


def can_batch(recipe: Recipe) -> bool:
    """Whether this recipe comes to the same on embeddings that are computed once, in a group.

    Only a linear head moves; images come as they are or in a fixed number of versions, unmixed; no batch norm follows
    them and no dropout stands before the head; and the optimizer is one that can be run on many heads at once.
    """
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    return (
        strategy.pace == HeadFirst(freeze_epochs=None)
        and strategy.regularizer is None
        and recipe.head.name == "linear"
        and recipe.mixing.name == recipe.embedding_loss.name == "none"
        and recipe.batch_norm.name != "always"
        and recipe.optimizer.name in BATCHED_STEPS
        and (recipe.augmentation.name == "none" or recipe.views is not None)
        and _embeds_without_chance(recipe)
    )


def group_recipes(recipes: Sequence[Recipe], largest: int = 256) -> list[tuple[int, ...]]:
    """Which of some recipes are trained side by side: their places, a tuple for each group, in ascending order.

    Recipes that cannot be trained together are left out.

    Args:
        recipes: in any order.
        largest: at most so many in a group. Memory goes with the number of members times the size of a head.
    """
    groups: dict[Any, list[int]] = {}
    for place, recipe in enumerate(recipes):
        if can_batch(recipe):
            groups.setdefault(group_key(recipe), []).append(place)
    return [
        tuple(places[start : start + largest]) for places in groups.values() for start in range(0, len(places), largest)
    ]


def head_inits(recipes: Sequence[Recipe], weights: Path | None) -> list[HeadInit]:
    """Where each recipe begins: with the head that `Run` gives it. Each network is built once.

    The head is drawn after whatever building the backbone draws, so it takes the backbone to know it. Torch's random
    state stays as it is.
    """
    networks = [_untrained(recipe) for recipe in recipes]
    known = {network: _beginning(network, weights) for network in dict.fromkeys(networks)}
    return [known[network] for network in networks]


def network_key(recipe: Recipe) -> Recipe:
    """What recipes of one network have in common, whatever else they say: a recipe that says nothing else."""
    return dataclasses.replace(_untrained(recipe), seed=0)


def data_order_key(recipe: Recipe) -> Any:
    """What recipes of a group have in common that see the same images in the same order."""
    return recipe.seed, None if recipe.augmentation.name == "none" else (recipe.augmentation, recipe.views)


def group_key(recipe: Recipe) -> tuple[Any, ...]:
    """What the members of a group have in common: everything but `PER_PROBE_FIELDS`, and the penalty of heads in closed form."""
    fitted = {} if recipe.uses_gradient_steps else {"strategy": recipe.strategy.name}
    fields = [field.name for field in dataclasses.fields(recipe) if field.name not in PER_PROBE_FIELDS]
    return tuple(fitted.get(name, getattr(recipe, name)) for name in fields)


def _untrained(recipe: Recipe) -> Recipe:
    """A recipe whose network begins as this one's, and that is the same for all of which that can be said."""
    same_network: dict[str, Any] = {} if recipe.uses_gradient_steps else {"strategy": Choice("linear_probe")}
    return dataclasses.replace(recipe, **IRRELEVANT_FIELDS, **same_network)


@lru_cache(maxsize=64)
def _beginning(recipe: Recipe, weights: Path | None) -> HeadInit:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        model = build_network(recipe, weights if recipe.weights else None)
    head = model.get_classifier()
    channels = recipe.colour.build(INPUT_CHANNELS).channels
    flops = count_flops(merge_adapters(model), recipe.image_size, channels)
    return HeadInit(Head(head.weight.detach(), head.bias.detach()), count_parameters(model), flops)


def _embeds_without_chance(recipe: Recipe) -> bool:
    """Whether the network, in the mode that it is trained in, draws nothing and ends in one linear layer."""
    return _network_embeds_without_chance(network_key(recipe))


@lru_cache(maxsize=4096)
def _network_embeds_without_chance(recipe: Recipe) -> bool:
    channels = recipe.colour.build(INPUT_CHANNELS).channels
    try:
        draws = _Draws()  # type: ignore[no-untyped-call]
        with torch.device("meta"), torch.no_grad(), draws:  # shapes alone: no memory, no arithmetic
            model = build_network(recipe, None)
            head = model.get_classifier()
            params = named_params(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(params[name].depth == 0)
            set_train_mode(model, True, recipe.batch_norm.build(BATCH_NORM_MODES))
            draws.seen = False  # the weights were
            model(torch.zeros(2, channels, recipe.image_size, recipe.image_size))
    except (ValueError, RuntimeError, AssertionError):
        return False  # it cannot be trained alone either, and there the message says why
    return type(head) is nn.Linear and head.bias is not None and not draws.seen


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything that was done drew a random number."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
