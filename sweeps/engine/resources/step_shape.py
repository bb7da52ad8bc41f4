"""The shape of a training step: everything that determines its memory and duration.

Trials with the same shape need the same memory, so only one of them is measured.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import torch

from xfer.measure.cost import count_parameters
from xfer.methods.freezing import TrainingProgress
from xfer.methods.input_channels import INPUT_CHANNELS, InputChannels
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models.params import named_params
from xfer.recipe import Recipe, recipe_from_dict
from xfer.training.networks import build_network


@dataclass(frozen=True)
class StepShape:
    """Everything that determines the memory and duration of a training step."""

    backbone: str
    args: str
    """Further arguments of the backbone, as text."""
    activation: str
    """Replacement of the backbone's activations, as text; some store more for the backward pass than others."""
    image_size: int
    channels: int
    batch_size: int
    frozen_blocks: int
    """Number of blocks, from the stem up, that are never trained and need no backward pass."""
    parameters: int
    """Number of parameters of the network, with head and adapters and without removed blocks."""
    moving: int
    """Largest number of parameters trained at the same time; each has a gradient and optimizer state."""

    def dominates(self, other: StepShape) -> bool:
        """Return whether a step of this shape needs at least as much memory as one of the other shape."""
        same = ("backbone", "args", "activation", "image_size", "channels")
        at_least = ("batch_size", "parameters", "moving")
        return (
            all(getattr(self, name) == getattr(other, name) for name in same)
            and all(getattr(self, name) >= getattr(other, name) for name in at_least)
            and self.frozen_blocks <= other.frozen_blocks
        )


def step_shape(recipe: Recipe) -> StepShape:
    """Return the shape of a recipe's training step, computed without weights or memory."""
    # Fields without influence are set to one value, so that recipes which differ only in them share a cache entry.
    return _cached_shape(dataclasses.replace(canonical_recipe(recipe), data="", weights=recipe.weights and "some"))


def canonical_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with every setting that hardly affects memory at one value, or at the most demanding one.

    The most demanding optimizer is Ranger, which stores three numbers per trained parameter. A closed-form head is
    replaced by a trained one: nothing else that it needs on the GPU grows with the network.
    """
    fields = recipe.as_dict()
    if not recipe.uses_gradient_steps:
        fields["strategy"] = {"name": "linear_probe"}
    settings = {kind: {"name": "none"} for kind in ("augmentation", "mixing", "embedding_loss")}
    settings |= {"optimizer": {"name": "ranger"}, "schedule": {"name": "constant"}, "loss": {"name": "cross_entropy"}}
    numbers = {"learning_rate": 1e-6, "weight_decay": 0.0, "seed": 0, "draw": 0, "split_seed": 0}
    return recipe_from_dict({**fields, **settings, **numbers, "images_per_class": None, "views": None})


@lru_cache(maxsize=4096)
def _cached_shape(recipe: Recipe) -> StepShape:
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    colour: InputChannels = recipe.colour.build(INPUT_CHANNELS)
    with torch.device("meta"):
        model = build_network(recipe, None)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    params = named_params(model)
    moment = last_epoch_moment(recipe)
    trained = [name for name, param in params.items() if strategy.pace(param, moment) > 0]
    return StepShape(
        backbone=recipe.backbone,
        args=repr(recipe.backbone_args),
        activation=str(recipe.activation),
        image_size=recipe.image_size,
        channels=colour.channels,
        batch_size=recipe.batch_size,
        frozen_blocks=min((params[name].height for name in trained), default=0),
        parameters=count_parameters(model),
        moving=sum(sizes[name] for name in trained),
    )


def last_epoch_moment(recipe: Recipe) -> TrainingProgress:
    """Return the progress at the last epoch, when most parameters are trained: no pace freezes one again."""
    return TrainingProgress(recipe.epochs - 1, recipe.epochs)
