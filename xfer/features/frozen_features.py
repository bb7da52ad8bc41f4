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

from xfer.data.loader import iter_batches
from xfer.data.pack import Pack
from xfer.data.split import Indices, Split
from xfer.devices.microbatching import MicroBatcher
from xfer.features.augmented_views import augmented_view
from xfer.features.feature_cache import FeatureCache, Rows
from xfer.features.model_split import EMBEDDINGS, SplitModel
from xfer.measure.accuracy import Preprocess
from xfer.measure.cost import count_flops
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.strategies import STRATEGIES, Strategy, keep_model
from xfer.recipe import Recipe

FORMAT_VERSION = 1
"""Part of every array's identity: raised when the same network would make other rows of the same images."""

BATCH_SIZE = 64
"""How many images go through the lower half at once, always: rows are then the same bit for bit, whoever computes."""

MIN_FLOPS_FRACTION = 0.1
"""Of a network's arithmetic: with less of it frozen, reading takes about as long as computing."""
MAX_BYTES = 8 * 2**30
"""Of one array. Early layers make more of an image than they take; what does not fit is computed as it is needed."""


class FrozenFeatures:
    """The frozen half of a network, asked for what it makes of images as they are, or of their augmented versions.

    Args:
        split_model: the network in two.
        recipe: whose network it is.
        pack: where the images are.
        split: how they are divided: features are kept of all that is not tested on, so that another draw of the
            validation part finds them too; augmented versions, where there is no other draw, of what is trained on.
        prepare: from a pack's pixels to what the network takes, on its device.
        store: where rows are kept.
    """

    def __init__(
        self,
        split_model: SplitModel,
        recipe: Recipe,
        pack: Pack,
        split: Split,
        prepare: Preprocess,
        store: FeatureCache,
    ) -> None:
        self.split_model = split_model
        self._recipe = recipe
        self._pack = pack
        self._split = split
        self._prepare = prepare
        self._store = store
        self._arrays: dict[int | None, tuple[Indices, Rows]] = {}

    def rows(self, indices: Indices, view: int | None = None) -> Tensor:
        """Features [B, ...] of the images at `wanted`, on the CPU, in that order.

        Args:
            indices: none of the test part; of versions, where the split is not drawn anew, those that are trained on.
            view: which version of them under the recipe's augmentation; None for the images as they are.
        """
        if self._recipe.augmentation.name == "none":
            view = None
        if view not in self._arrays:  # what it follows from is hashed here, and not in every step
            self._arrays[view] = self._kept(view)
        places, array = self._arrays[view]
        found = torch.from_numpy(array[np.searchsorted(places, indices)])
        return found.permute(0, 3, 1, 2) if found.ndim == 4 else found

    def _kept(self, view: int | None) -> tuple[Indices, Rows]:
        split = self._split
        places = split.train if view is not None and not split.can_redraw else split.train_and_val
        what = {
            **self._identity,
            "places": hashlib.sha256(places.tobytes()).hexdigest(),
            "version": None if view is None else [str(self._recipe.augmentation), view],
        }
        return places, self._store.get_or_compute(what, len(places), lambda: self._compute(places, view))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        recipe = self._recipe
        strategy: Strategy = recipe.strategy.build(STRATEGIES)
        content = hashlib.sha256()
        for tensor in self.split_model.frozen:
            content.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
        return {
            "format": FORMAT_VERSION,
            "data": self._pack.hash,
            "backbone": [recipe.backbone, dict(recipe.backbone_args), str(recipe.activation), str(recipe.colour)],
            "reshaped": None if strategy.transform_model is keep_model else str(recipe.strategy),
            "cut": hashlib.sha256(self.split_model.place.encode()).hexdigest(),
            "weights": content.hexdigest(),
            "made_by": [torch.__version__, timm.__version__, self.split_model.frozen[0].device.type],
        }

    def _compute(self, all_places: Indices, view: int | None) -> Iterator[Rows]:
        lower = self.split_model.lower
        modes = [(module, module.training) for module in lower.modules()]
        lower.eval()
        fit = MicroBatcher()
        try:
            with torch.inference_mode():
                for start in range(0, len(all_places), BATCH_SIZE):
                    places = all_places[start : start + BATCH_SIZE]
                    [(images, _)] = iter_batches(self._pack, places, BATCH_SIZE)
                    if view is not None:
                        images = augmented_view(images, places, self._recipe.augmentation, view)
                    rows = fit.run_split(len(images), partial(self._rows_of, images))
                    # In the order in which a convolution takes them, so that nothing is moved when they are read.
                    yield (rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows).cpu().numpy()
        finally:
            for module, training in modes:
                module.training = training

    def _rows_of(self, images: Tensor, parts: list[slice]) -> Tensor:
        """Asked for in parts: only where the memory does not suffice otherwise, for their last bits may differ."""
        return torch.cat([self.split_model.lower(self._prepare(images[part])).float() for part in parts])


def is_worth_caching(split_model: SplitModel, model: Any, recipe: Recipe, images: int) -> bool:
    """Whether keeping what the lower half makes of so many images saves more than it costs."""
    if split_model.place == EMBEDDINGS:
        return True
    channels = INPUT_CHANNELS[recipe.colour.name]().channels
    size, device = recipe.image_size, split_model.frozen[0].device
    with torch.no_grad():
        numbers = split_model.lower(torch.zeros(1, channels, size, size, device=device)).numel()
    share = count_flops(split_model.lower, size, channels) / max(count_flops(model, size, channels), 1)
    return share >= MIN_FLOPS_FRACTION and 4 * numbers * images <= MAX_BYTES
