"""Prepared: a plan whose data are packed, whose weights are found and whose search space is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.engine.plan import Plan
from sweeps.engine.search_space.distributions import Config, domain_values
from sweeps.engine.search_space.space import Space, config_to_recipe
from xfer.data.pack import Pack
from xfer.data.split import Split, split_pack
from xfer.lengths import RunLength
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.recipe import Recipe, recipe_from_dict

RESPLIT_BELOW = 2_000
"""Number of training images below which each seed of a finalist draws its own validation part: one small part is too
little evidence for a ranking."""


@dataclass(frozen=True)
class Backbone:
    """A network and the weights it starts from."""

    name: str
    args: Mapping[str, Any]
    file: Path | None
    """File of the pretrained weights; None if every competing strategy starts from random weights."""
    sha256: str
    """Hash of that file; empty without one."""


def run_length(plan: Plan, pack: Pack | None = None) -> RunLength:
    """Return how long the runs of a plan are.

    Args:
        plan: the plan.
        pack: the images; None if they have not been read yet. The size of their training part does not depend on the
            draw of the validation part, except for a few images if copies stay together.
    """
    sizes: tuple[int, ...] = ()
    if pack is not None:
        labels = pack.labels[split_pack(pack, plan.seed).train]
        sizes = tuple(np.bincount(labels, minlength=len(pack.classes)).tolist())
    return RunLength(plan.epochs, plan.steps, sizes)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan, and everything that `prepare` has resolved for it."""

    plan: Plan
    space: Space
    pack: Pack
    """The images in the size to begin with, in which the data are measured and backbones are compared."""
    split: Split
    image_size: int
    """Side length in pixels; of the size to begin with if several compete."""
    backbones: tuple[Backbone, ...]
    notes: tuple[str, ...]
    """Remarks on the data for the reader of the report."""
    source: str
    """Name of the data set."""
    panel: Mapping[str, Any] = field(default_factory=dict)
    """The networks that `--backbone auto` stands for, as plan.json stores them (`planning.panel`); empty without it."""
    panel_name: str = ""
    """Default name of a sweep with `--backbone auto`; empty without it."""

    other_packs: tuple[Pack, ...] = ()
    """The same images in the other sizes that compete."""

    @property
    def packs(self) -> tuple[Pack, ...]:
        """The images in every size that competes, the one to begin with first."""
        return self.pack, *self.other_packs

    def pack_of(self, recipe: Mapping[str, Any]) -> Pack:
        """Return the pack that a recipe, as plain data, names."""
        return next(pack for pack in self.packs if pack.hash == recipe["data"])

    @property
    def redraws(self) -> bool:
        """Whether each seed of a finalist draws its own validation part."""
        return self.split.can_redraw and len(self.split.train) < RESPLIT_BELOW

    def recipe(self, config: Config) -> Recipe:
        """Return the recipe of a configuration, with the seed of the plan."""
        strategy: Strategy = STRATEGIES[str(config["strategy"])]()
        backbone = None if strategy.backbone else self.backbone(str(config["backbone"]))
        size = config.get("image_size")
        pack = self.pack if size is None else next(pack for pack in self.packs if pack.image_size == size)
        return recipe_from_dict(
            {
                **config_to_recipe(config),
                "data": pack.hash,
                "classes": len(pack.classes),
                "image_size": self.image_size if size is None else size,
                "weights": backbone.sha256 if backbone and strategy.pretrained else "",
                "backbone_args": dict(backbone.args) if backbone else {},
                "split_seed": self.plan.seed,
                "seed": self.plan.seed,
            }
        )

    def backbone(self, name: str) -> Backbone:
        """Return the backbone of this name."""
        return next(backbone for backbone in self.backbones if backbone.name == name)


def common_images_per_class(space: Space) -> int | None:
    """Return the number of training images per class if it is the same for all recipes of a space.

    Returns:
        The number; None if recipes differ in it, or train on all images.
    """
    numbers = domain_values(space.axes["images_per_class"])
    return int(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], int) else None
