"""Packing: how large a share of a GPU a trial needs, and what follows from it.

Trials share a card where they fit side by side. What decides how much memory a step takes is its `StepShape`, which few
trials do not have in common; one recipe of each is probed before the sweep begins (probing.py), and a trial gets its
share from the smallest probe that is at least as large as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from xfer.measure.cost import count_parameters
from xfer.methods.freezing import TrainingProgress
from xfer.methods.input_channels import INPUT_CHANNELS, InputChannels
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models.params import named_params
from xfer.recipe import Recipe, recipe_from_dict
from xfer.training.networks import build_network

GPU_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Few, because Ray keeps a trial's process for the next one only where both asked for the same."""

MEMORY_MARGIN = 0.15
"""How much more than two steps took a trial may take: other kernels are chosen for the smaller last batch of an epoch,
and what is freed leaves gaps. An assumption; what exceeds it goes on in smaller parts."""

CUDA_CONTEXT_BYTES = 600 * 2**20
"""What a process holds on a card beside torch's allocator, at least: CUDA's context and its libraries' kernels. An
assumption, on the large side of what is usually seen; where a probe sees more, that counts."""


COMPILE_SAVING = 0.2
"""Which share of a step's time torch.compile saves, cautiously: Ansel et al. (2024) report training 1.41 times as fast
on an A100, a saving of 0.29, as the geometric mean over some 180 networks."""

COMPILE_SECONDS = 120
"""What compiling takes, cautiously: from seconds to minutes, and even with all of it cached a process traces anew."""


def worth_compiling(recipe: Recipe, steps: int, seconds_per_step: float) -> bool:
    """Whether a trial is long enough for torch.compile to save twice what it costs.

    Only where the same parameters move from the first epoch to the last: each change would compile anew.

    Args:
        recipe: the trial's.
        steps: of the whole run.
        seconds_per_step: without compiling.
    """
    return recipe.last_unfreeze_epoch == 0 and steps * seconds_per_step * COMPILE_SAVING > 2 * COMPILE_SECONDS


def gpu_fraction(bytes_needed: int, gpu_bytes: int) -> float:
    """The smallest of `GPU_FRACTIONS` in which so much fits with `MEMORY_MARGIN` to spare; a whole card where it does not fit at all.

    >>> [gpu_fraction(gigabytes * 2**30, 80 * 2**30) for gigabytes in (1, 8, 9, 17, 35, 200)]
    [0.125, 0.125, 0.25, 0.25, 1.0, 1.0]

    Raises:
        ValueError: no card, or less than nothing.
    """
    if gpu_bytes <= 0 or bytes_needed < 0:
        raise ValueError(f"{bytes_needed} bytes of a card of {gpu_bytes}: there is no such share")
    fitting = (share for share in GPU_FRACTIONS if bytes_needed * (1 + MEMORY_MARGIN) <= share * gpu_bytes)
    return next(fitting, GPU_FRACTIONS[-1])


def memory_fraction(gpus: float, gpu_bytes: int) -> float:
    """Which fraction of a card torch's allocator may take in a process of this share, in (0, 1].

    The share, without what the process holds beside the allocator; never less than half of the share.

    >>> memory_fraction(1.0, 80 * 2**30), round(memory_fraction(0.125, 80 * 2**30), 3)
    (1.0, 0.118)
    """
    return 1.0 if gpus >= 1 else max(gpus - CUDA_CONTEXT_BYTES / gpu_bytes, gpus / 2)


@dataclass(frozen=True)
class StepShape:
    """What decides how much memory a training step takes, and how long: trials of one shape are probed once."""

    backbone: str
    args: str
    """Its further arguments, as text."""
    activation: str
    """What was put into the place of its own activations, as text: some keep more for the way back than others."""
    image_size: int
    channels: int
    batch_size: int
    frozen_blocks: int
    """How many blocks from the stem upwards never move: through them nothing goes back."""
    parameters: int
    """How many numbers the network holds, with its head, its adapters and without what was cut off."""
    moving: int
    """How many of them move at the same time, at most: each has a gradient, and what the optimizer remembers."""

    def dominates(self, other: StepShape) -> bool:
        """Whether a step of the other shape takes no more memory than one of this."""
        same = ("backbone", "args", "activation", "image_size", "channels")
        least = ("batch_size", "parameters", "moving")
        return (
            all(getattr(self, name) == getattr(other, name) for name in same)
            and all(getattr(self, name) >= getattr(other, name) for name in least)
            and self.frozen_blocks <= other.frozen_blocks
        )


def step_shape(recipe: Recipe) -> StepShape:
    """The shape of a recipe's step, from its network without weights and without memory."""
    # What has no say in it is set to one value, so that trials which differ only in that are built once.
    return _shape_of(dataclasses.replace(canonical_recipe(recipe), data="", weights=recipe.weights and "some"))


def canonical_recipe(recipe: Recipe) -> Recipe:
    """The recipe with everything at one value that hardly matters to the memory, or at the one that needs the most.

    That is Ranger among the optimizers: it keeps three numbers for each that moves. A head in closed form is one that
    is trained: there is nothing else on the card that grows with the network.
    """
    plain = recipe.as_dict()
    if not recipe.uses_gradient_steps:
        plain["strategy"] = {"name": "linear_probe"}
    settings = {kind: {"name": "none"} for kind in ("augmentation", "mixing", "embedding_loss")}
    settings |= {"optimizer": {"name": "ranger"}, "schedule": {"name": "constant"}, "loss": {"name": "cross_entropy"}}
    numbers = {"learning_rate": 1e-6, "weight_decay": 0.0, "seed": 0, "draw": 0, "split_seed": 0}
    return recipe_from_dict({**plain, **settings, **numbers, "images_per_class": None, "views": None})


@lru_cache(maxsize=4096)
def _shape_of(recipe: Recipe) -> StepShape:
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    colour: InputChannels = recipe.colour.build(INPUT_CHANNELS)
    with torch.device("meta"):
        model = build_network(recipe, None)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    params = named_params(model)
    moment = last_epoch_moment(recipe)
    moves = [name for name, param in params.items() if strategy.pace(param, moment) > 0]
    below = [params[name].height for name in moves]
    return StepShape(
        backbone=recipe.backbone,
        args=repr(recipe.backbone_args),
        activation=str(recipe.activation),
        image_size=recipe.image_size,
        channels=colour.channels,
        batch_size=recipe.batch_size,
        frozen_blocks=min(below, default=0),
        parameters=count_parameters(model),
        moving=sum(sizes[name] for name in moves),
    )


def last_epoch_moment(recipe: Recipe) -> TrainingProgress:
    """The last epoch: what has been freed by then stays free, under every pace that there is."""
    return TrainingProgress(recipe.epochs - 1, recipe.epochs)


@dataclass(frozen=True)
class MemoryProbe:
    """What two steps of a shape came to on one kind of card."""

    shape: StepShape
    bytes: int
    """The most that the process held."""
    seconds: float
    """What the second step took; the first one chooses its kernels."""


@dataclass(frozen=True)
class GpuAllocation:
    """Which share of a card each trial gets."""

    probes: Sequence[MemoryProbe]
    gpu_bytes: int

    def of(self, recipe: Mapping[str, Any]) -> float:
        """What the smallest probe that holds the recipe's shape came to; a whole card where none does."""
        shape = step_shape(recipe_from_dict(recipe))
        needs = [probe.bytes for probe in self.probes if probe.shape.dominates(shape)]
        return gpu_fraction(min(needs), self.gpu_bytes) if needs else GPU_FRACTIONS[-1]

    def compiled(self, recipe: Mapping[str, Any], images: int) -> bool:
        """Whether a trial on so many training images is worth compiling; never without a probe of its very shape."""
        built = recipe_from_dict(recipe)
        shape = step_shape(built)
        seconds = [probe.seconds for probe in self.probes if probe.shape == shape]
        steps = built.epochs * -(-images // built.batch_size)
        return bool(seconds) and worth_compiling(built, steps, min(seconds))

    def smallest_fraction(self) -> float:
        """The smallest share that any of the probed gets; a whole card where nothing was probed."""
        return min((gpu_fraction(probe.bytes, self.gpu_bytes) for probe in self.probes), default=GPU_FRACTIONS[-1])
