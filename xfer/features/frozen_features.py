"""Frozen: what the frozen half of a run's network makes of its images, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from xfer.data.loader import batches
from xfer.data.pack import Pack
from xfer.data.split import Indices, Split
from xfer.devices.microbatching import Fit
from xfer.features.augmented_views import version_of
from xfer.features.feature_cache import FeatureStore, Rows
from xfer.features.model_split import EMBEDDINGS, Halves
from xfer.measure.accuracy import Prepare
from xfer.measure.cost import flops_of
from xfer.methods.input_channels import COLOURS
from xfer.methods.strategies import STRATEGIES, Strategy, as_it_is
from xfer.recipe import Recipe

FORMAT = 1
"""Part of every array's identity: raised when the same network would make other rows of the same images."""

BATCH = 64
"""How many images go through the lower half at once, always: rows are then the same bit for bit, whoever computes."""

LEAST_SHARE = 0.1
"""Of a network's arithmetic: with less of it frozen, reading takes about as long as computing."""
MOST_BYTES = 8 * 2**30
"""Of one array. Early layers make more of an image than they take; what does not fit is computed as it is needed."""


class Frozen:
    """The frozen half of a network, asked for what it makes of images as they are, or of their augmented versions.

    Args:
        halves: the network in two.
        recipe: whose network it is.
        pack: where the images are.
        split: how they are divided: features are kept of all that is not tested on, so that another draw of the
            validation part finds them too; augmented versions, where there is no other draw, of what is trained on.
        prepare: from a pack's pixels to what the network takes, on its device.
        store: where rows are kept.
    """

    def __init__(
        self, halves: Halves, recipe: Recipe, pack: Pack, split: Split, prepare: Prepare, store: FeatureStore
    ) -> None:
        self.halves = halves
        self._recipe = recipe
        self._pack = pack
        self._split = split
        self._prepare = prepare
        self._store = store
        self._arrays: dict[int | None, tuple[Indices, Rows]] = {}

    def rows(self, wanted: Indices, version: int | None = None) -> Tensor:
        """Features [B, ...] of the images at `wanted`, on the CPU, in that order.

        Args:
            wanted: none of the test part; of versions, where the split is not drawn anew, those that are trained on.
            version: which version of them under the recipe's augmentation; None for the images as they are.
        """
        if self._recipe.augmentation.name == "none":
            version = None
        if version not in self._arrays:  # what it follows from is hashed here, and not in every step
            self._arrays[version] = self._kept(version)
        places, array = self._arrays[version]
        found = torch.from_numpy(array[np.searchsorted(places, wanted)])
        return found.permute(0, 3, 1, 2) if found.ndim == 4 else found

    def _kept(self, version: int | None) -> tuple[Indices, Rows]:
        split = self._split
        places = split.train if version is not None and not split.redrawable else split.untested
        what = {
            **self._identity,
            "places": hashlib.sha256(places.tobytes()).hexdigest(),
            "version": None if version is None else [str(self._recipe.augmentation), version],
        }
        return places, self._store.array(what, len(places), lambda: self._compute(places, version))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        recipe = self._recipe
        strategy: Strategy = recipe.strategy.build(STRATEGIES)
        content = hashlib.sha256()
        for tensor in self.halves.frozen:
            content.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
        return {
            "format": FORMAT,
            "data": self._pack.hash,
            "backbone": [recipe.backbone, dict(recipe.backbone_args), str(recipe.activation), str(recipe.colour)],
            "reshaped": None if strategy.reshape is as_it_is else str(recipe.strategy),
            "cut": hashlib.sha256(self.halves.place.encode()).hexdigest(),
            "weights": content.hexdigest(),
            "made_by": [torch.__version__, timm.__version__, self.halves.frozen[0].device.type],
        }

    def _compute(self, all_places: Indices, version: int | None) -> Iterator[Rows]:
        lower = self.halves.lower
        modes = [(module, module.training) for module in lower.modules()]
        lower.eval()
        fit = Fit()
        try:
            with torch.inference_mode():
                for start in range(0, len(all_places), BATCH):
                    places = all_places[start : start + BATCH]
                    [(images, _)] = batches(self._pack, places, BATCH)
                    if version is not None:
                        images = version_of(images, places, self._recipe.augmentation, version)
                    rows = fit.fitting(len(images), partial(self._rows_of, images))
                    # In the order in which a convolution takes them, so that nothing is moved when they are read.
                    yield (rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows).cpu().numpy()
        finally:
            for module, training in modes:
                module.training = training

    def _rows_of(self, images: Tensor, parts: list[slice]) -> Tensor:
        """Asked for in parts: only where the memory does not suffice otherwise, for their last bits may differ."""
        return torch.cat([self.halves.lower(self._prepare(images[part])).float() for part in parts])


def is_worth_keeping(halves: Halves, model: Any, recipe: Recipe, images: int) -> bool:
    """Whether keeping what the lower half makes of so many images saves more than it costs."""
    if halves.place == EMBEDDINGS:
        return True
    channels = COLOURS[recipe.colour.name]().channels
    size, device = recipe.image_size, halves.frozen[0].device
    with torch.no_grad():
        numbers = halves.lower(torch.zeros(1, channels, size, size, device=device)).numel()
    share = flops_of(halves.lower, size, channels) / max(flops_of(model, size, channels), 1)
    return share >= LEAST_SHARE and 4 * numbers * images <= MOST_BYTES
