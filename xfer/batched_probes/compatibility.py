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

from xfer.batched_probes.heads import WAYS, Head
from xfer.choices import Choice
from xfer.measure.cost import count_parameters, flops_of
from xfer.methods.adapters import plain_copy
from xfer.methods.batch_norm import BATCH_NORMS
from xfer.methods.freezing import HeadFirst
from xfer.methods.input_channels import COLOURS
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models.params import params_of
from xfer.recipe import Recipe
from xfer.seeding import seed_for
from xfer.training.learner import set_mode
from xfer.training.networks import network_of

OWN = ("learning_rate", "weight_decay", "clip_norm", "clip_value", "loss", "schedule", "augmentation", "views", "seed")
"""In what the members of a group may differ. The last three decide which images a step sees, the others what of it."""

ONE_TRAINING: dict[str, Any] = {
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
class Beginning:
    """Where a recipe that trains nothing but its head begins, and what is known of its network."""

    head: Head
    parameters: int
    flops: int


def can_train_together(recipe: Recipe) -> bool:
    """Whether this recipe comes to the same on embeddings that are computed once, in a group.

    Only a linear head moves; images come as they are or in a fixed number of versions, unmixed; no batch norm follows
    them and no dropout stands before the head; and the optimizer is one that can be run on many heads at once.
    """
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    return (
        strategy.pace == HeadFirst(freeze_epochs=None)
        and strategy.anchor is None
        and recipe.head.name == "linear"
        and recipe.mixing.name == recipe.embedding_loss.name == "none"
        and recipe.batch_norm.name != "always"
        and recipe.optimizer.name in WAYS
        and (recipe.augmentation.name == "none" or recipe.views is not None)
        and _embeds_without_chance(recipe)
    )


def groups_of(recipes: Sequence[Recipe], largest: int = 256) -> list[tuple[int, ...]]:
    """Which of some recipes are trained side by side: their places, a tuple for each group, in ascending order.

    Recipes that cannot be trained together are left out.

    Args:
        recipes: in any order.
        largest: at most so many in a group. Memory goes with the number of members times the size of a head.
    """
    groups: dict[Any, list[int]] = {}
    for place, recipe in enumerate(recipes):
        if can_train_together(recipe):
            groups.setdefault(same_steps(recipe), []).append(place)
    return [
        tuple(places[start : start + largest]) for places in groups.values() for start in range(0, len(places), largest)
    ]


def beginnings(recipes: Sequence[Recipe], weights: Path | None) -> list[Beginning]:
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


def stream_of(recipe: Recipe) -> Any:
    """What recipes of a group have in common that see the same images in the same order."""
    return recipe.seed, None if recipe.augmentation.name == "none" else (recipe.augmentation, recipe.views)


def same_steps(recipe: Recipe) -> tuple[Any, ...]:
    """What the members of a group have in common: everything but `OWN`, and the penalty of heads in closed form."""
    fitted = {} if recipe.takes_steps else {"strategy": recipe.strategy.name}
    fields = [field.name for field in dataclasses.fields(recipe) if field.name not in OWN]
    return tuple(fitted.get(name, getattr(recipe, name)) for name in fields)


def _untrained(recipe: Recipe) -> Recipe:
    """A recipe whose network begins as this one's, and that is the same for all of which that can be said."""
    same_network: dict[str, Any] = {} if recipe.takes_steps else {"strategy": Choice("linear_probe")}
    return dataclasses.replace(recipe, **ONE_TRAINING, **same_network)


@lru_cache(maxsize=64)
def _beginning(recipe: Recipe, weights: Path | None) -> Beginning:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        model = network_of(recipe, weights if recipe.weights else None)
    head = model.get_classifier()
    channels = recipe.colour.build(COLOURS).channels
    flops = flops_of(plain_copy(model), recipe.image_size, channels)
    return Beginning(Head(head.weight.detach(), head.bias.detach()), count_parameters(model), flops)


def _embeds_without_chance(recipe: Recipe) -> bool:
    """Whether the network, in the mode that it is trained in, draws nothing and ends in one linear layer."""
    return _network_embeds_without_chance(network_key(recipe))


@lru_cache(maxsize=4096)
def _network_embeds_without_chance(recipe: Recipe) -> bool:
    channels = recipe.colour.build(COLOURS).channels
    try:
        draws = _Draws()  # type: ignore[no-untyped-call]
        with torch.device("meta"), torch.no_grad(), draws:  # shapes alone: no memory, no arithmetic
            model = network_of(recipe, None)
            head = model.get_classifier()
            params = params_of(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(params[name].depth == 0)
            set_mode(model, True, recipe.batch_norm.build(BATCH_NORMS))
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
