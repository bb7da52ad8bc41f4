"""Frozen features: what the frozen half of a run's network computes from its images, cached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import timm
import torch
from torch import Tensor, nn

from xfer.data.loader import iter_batches
from xfer.data.pack import Pack
from xfer.data.split import Indices, Split
from xfer.devices.microbatching import MicroBatcher
from xfer.feature_extraction.augmented_views import augmented_view
from xfer.feature_extraction.feature_cache import FeatureCache, Rows
from xfer.feature_extraction.model_split import EMBEDDINGS, Embedder, SplitModel
from xfer.measure.accuracy import Preprocess
from xfer.measure.cost import count_flops
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.strategies import STRATEGIES, Strategy, keep_model
from xfer.recipe import Recipe

FORMAT_VERSION = 1
"""Version of the computation, part of every array's description. Raise it when the same network gives other rows."""

BATCH_SIZE = 64
"""Batch size of the lower half. Fixed, so that rows are the same bit for bit whichever recipe computes them."""

MIN_FLOPS_FRACTION = 0.1
"""Minimum fraction of the network's FLOPs below the cut. Below it, reading takes about as long as computing."""
MAX_BYTES = 8 * 2**30
"""Maximum size of one array. Feature maps of early layers are larger than the images; beyond the limit they are not
cached."""

ArrayName = int | Literal["test"] | None
"""Number of an augmented view, the test part, or None for training and validation part as they are."""


class FrozenFeatures:
    """Features of the images of a run, as they are or as augmented views, from the frozen half of its network.

    Args:
        split_model: the network in two halves.
        recipe: what is trained.
        pack: the data.
        split: its parts. Features of the training and validation part are cached together, so that another draw of
            the validation part finds them too; where there is no other draw, views only of the training part. Features
            of the test part are computed when they are first asked for.
        prepare: turns uint8 images into the network's inputs, on its device.
        cache: where features are stored.
    """

    def __init__(
        self,
        split_model: SplitModel,
        recipe: Recipe,
        pack: Pack,
        split: Split,
        prepare: Preprocess,
        cache: FeatureCache,
    ) -> None:
        self.split_model = split_model
        self._recipe = recipe
        self.pack = pack
        self._split = split
        self.prepare = prepare
        self._cache = cache
        self._arrays: dict[ArrayName, tuple[Indices, Rows]] = {}

    @property
    def cached_indices(self) -> Indices:
        """Images whose features are cached together: the training and validation part, sorted."""
        return self._split.train_and_val

    @property
    def network(self) -> nn.Module:
        """The network, if it is cut below its classifier."""
        embedder = self.split_model.lower
        assert isinstance(embedder, Embedder), f"the network is cut at {self.split_model.cut_point}"
        network: nn.Module = embedder.model
        return network

    def with_lower(self, lower: nn.Module) -> FrozenFeatures:
        """Return the same features, computed by another module, which must return the same rows."""
        split_model = replace(self.split_model, lower=lower)
        return FrozenFeatures(split_model, self._recipe, self.pack, self._split, self.prepare, self._cache)

    def rows(self, indices: Indices, view: int | None = None) -> Tensor:
        """Return the features of images.

        Args:
            indices: of the images in the pack; for views none of the test part, and only of the training part where
                the split cannot be redrawn. Images of the test part only without others.
            view: number of the augmented view; None for the images as they are.

        Returns:
            [len(indices), ...] on the CPU, in the order of `indices`.
        """
        if self._recipe.augmentation.name == "none":
            view = None
        of_test = view is None and bool(np.isin(indices[:1], self._split.test).any())
        array_name: ArrayName = "test" if of_test else view
        if array_name not in self._arrays:  # the description is hashed once, not in every step
            self._arrays[array_name] = self._get_or_compute(array_name)
        cached_indices, array = self._arrays[array_name]
        rows = torch.from_numpy(array[np.searchsorted(cached_indices, indices)])
        return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows

    def _get_or_compute(self, array_name: ArrayName) -> tuple[Indices, Rows]:
        split = self._split
        view = None if array_name == "test" else array_name
        indices = split.train if view is not None and not split.can_redraw else split.train_and_val
        indices = split.test if array_name == "test" else indices
        description = {
            **self.identity,
            "places": hashlib.sha256(indices.tobytes()).hexdigest(),
            "version": None if view is None else [str(self._recipe.augmentation), view],
        }
        return indices, self._cache.get_or_compute(description, len(indices), lambda: self.compute(indices, view))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the features of an image depend on, as plain data."""
        recipe = self._recipe
        strategy: Strategy = recipe.strategy.build(STRATEGIES)
        weights = hashlib.sha256()
        for tensor in self.split_model.frozen:
            weights.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
        return {
            "format": FORMAT_VERSION,
            "data": self.pack.hash,
            "backbone": [recipe.backbone, dict(recipe.backbone_args), str(recipe.activation), str(recipe.colour)],
            "reshaped": None if strategy.transform_model is keep_model else str(recipe.strategy),
            "cut": hashlib.sha256(self.split_model.cut_point.encode()).hexdigest(),
            "weights": weights.hexdigest(),
            "made_by": [torch.__version__, timm.__version__, self.split_model.frozen[0].device.type],
        }

    def compute(self, indices: Indices, view: int | None) -> Iterator[Rows]:
        """Compute features of images, see `rows`; yields them in chunks."""
        lower = self.split_model.lower
        modes = [(module, module.training) for module in lower.modules()]
        lower.eval()
        microbatcher = MicroBatcher()
        try:
            with torch.inference_mode():
                for start in range(0, len(indices), BATCH_SIZE):
                    batch = indices[start : start + BATCH_SIZE]
                    [(images, _)] = iter_batches(self.pack, batch, BATCH_SIZE)
                    if view is not None:
                        images = augmented_view(images, batch, self._recipe.augmentation, view)
                    rows = microbatcher.run_split(len(images), partial(self._forward_split, images))
                    # Stored in channels_last order, as a convolution takes them, so reading moves nothing.
                    yield (rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows).cpu().numpy()
        finally:
            for module, training in modes:
                module.training = training

    def _forward_split(self, images: Tensor, parts: list[slice]) -> Tensor:
        """Features of a batch. Split only when memory runs out, because the last bits of the result may differ."""
        return torch.cat([self.split_model.lower(self.prepare(images[part])).float() for part in parts])


def is_worth_caching(split_model: SplitModel, model: Any, recipe: Recipe, images: int) -> bool:
    """Return whether caching the features of the lower half saves more than it costs.

    Args:
        split_model: the network in two halves.
        model: the network.
        recipe: what is trained.
        images: number of images.
    """
    if split_model.cut_point == EMBEDDINGS:
        return True
    channels = INPUT_CHANNELS[recipe.colour.name]().channels
    size, device = recipe.image_size, split_model.frozen[0].device
    with torch.no_grad():
        features = split_model.lower(torch.zeros(1, channels, size, size, device=device)).numel()
    flops_fraction = count_flops(split_model.lower, size, channels) / max(count_flops(model, size, channels), 1)
    return flops_fraction >= MIN_FLOPS_FRACTION and 4 * features * images <= MAX_BYTES
