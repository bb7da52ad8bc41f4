"""Inputs of a run's network: batches of images, augmented and mixed, or cached features of the frozen part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from xfer.data.loader import Batch, iter_batches, to_device
from xfer.data.pack import Pack, check_same_images
from xfer.data.split import Indices, Split
from xfer.devices import heartbeat
from xfer.feature_extraction.augmented_views import augmented_view
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.feature_extraction.model_split import SplitModel, split_at_classifier
from xfer.methods.augmentations import AUGMENTATIONS, GPU_AUGMENTATIONS, Augmentation
from xfer.methods.mixing import MIXINGS, Mixing
from xfer.recipe import Recipe
from xfer.seeding import derive_seed
from xfer.training.averaging import STATISTICS_IMAGES
from xfer.training.networks import build_preprocessor

MIN_EVALUATION_BATCH = 64
"""Minimum evaluation batch size; evaluation stores no activations, so it can exceed the training batch."""


class BatchTransform:
    """Turns a batch of a pack into inputs and targets of a training step, as a recipe says.

    Args:
        recipe: what is trained.
        model: its network, for the statistics by which inputs are normalized.
        device: where the network is.
    """

    def __init__(self, recipe: Recipe, model: Any, device: torch.device) -> None:
        self.prepare = build_preprocessor(recipe, model, device)
        """uint8 images [B, 3, H, W] to the network's inputs, on its device."""
        self._classes = recipe.classes
        self._augment: Augmentation = recipe.augmentation.build(AUGMENTATIONS)
        self._mix: Mixing = recipe.mixing.build(MIXINGS)
        self.can_augment_on_device = recipe.augmentation.name in GPU_AUGMENTATIONS
        """Whether images may be on the device before they are augmented."""

    def soft_targets(self, labels: Tensor) -> Tensor:
        """Return target probabilities [B, C] of labels [B]."""
        # Unlike one_hot, this does not check the labels, for which it would have to wait for a GPU.
        return torch.zeros(len(labels), self._classes, device=labels.device).scatter_(1, labels[:, None], 1.0)

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Augment and mix a batch. Called once per batch, into whatever micro-batches a step splits it.

        Args:
            images: uint8 [B, 3, H, W], in main memory, or on the device if `can_augment_on_device`.
            labels: int64 [B], in the same memory.
            generator: source of randomness.

        Returns:
            The network's inputs [B, C, H, W] and target probabilities [B, classes].
        """
        images, targets = self._mix(self._augment(images, generator), self.soft_targets(labels), generator)
        return self.prepare(images), targets


def check_packs(recipe: Recipe, pack: Pack, eval_pack: Pack) -> None:
    """Raise a ValueError if packs are not those that a recipe names.

    Args:
        recipe: what is trained.
        pack: the images in the size of training.
        eval_pack: the same images in the size of evaluation.
    """
    if pack.hash != recipe.data:
        raise ValueError(f"the recipe was made for data {recipe.data[:12]}, this pack is {pack.hash[:12]}")
    if eval_pack.image_size != (size := recipe.eval_size or pack.image_size):
        raise ValueError(
            f"the recipe evaluates images of {size} px, got images of {eval_pack.image_size} px: pass eval_pack, a "
            f"pack of the same images in {size} px, if and only if the recipe has an eval_size"
        )
    check_same_images(pack, eval_pack)


class RunInputs:
    """All inputs of a run: batches for training and evaluation, and cached features of the frozen part.

    Args:
        recipe: what is trained.
        pack: the data.
        eval_pack: the same images in the size of evaluation; `pack` itself if that is the size of training.
        split: their training, validation and test part.
        transform: for training batches.
        device: where the network is.
        cache: where features are stored.
    """

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        eval_pack: Pack,
        split: Split,
        transform: BatchTransform,
        device: torch.device,
        cache: FeatureCache,
    ) -> None:
        self._recipe = recipe
        self._pack = pack
        self._eval_pack = eval_pack
        self._split = split
        self.transform = transform
        self._device = device
        self._cache = cache
        self.features: FrozenFeatures | None = None
        """Features that replace images, except those of the test part; None if the network takes images."""
        self.eval_features: FrozenFeatures | None = None
        """Those of the images in the size of evaluation; `features` if that is the size of training."""
        self._evaluation_batch_size = max(MIN_EVALUATION_BATCH, recipe.batch_size)

    @property
    def repeats_images(self) -> bool:
        """Whether the same images come again in later epochs, so that their features can be cached."""
        fixed = self._recipe.views is not None or self._recipe.augmentation.name == "none"
        return fixed and self._recipe.mixing.name == "none"

    def use_features(self, split_model: SplitModel | None) -> None:
        """Replace images by the features that the lower half of a network computes; None goes back to images."""
        self.features = self.eval_features = None
        if split_model is not None:
            self.features = self.eval_features = self.frozen_features(split_model)
            if self._eval_pack is not self._pack:
                self.eval_features = self._features_of(self._eval_pack, split_model)

    def frozen_features(self, split_model: SplitModel) -> FrozenFeatures:
        """Return the features of this run's images that the lower half of a network computes."""
        return self._features_of(self._pack, split_model)

    def train_embeddings(self, model: Any) -> tuple[Tensor, Tensor]:
        """Return embeddings [N, D] of the unaugmented training part, and labels [N]."""
        train = self._split.train
        return self.frozen_features(split_at_classifier(model)).rows(train), self._labels(train)

    def evaluation_batches(self, indices: Indices) -> Iterator[Batch]:
        """Yield the images at `indices` in the size of evaluation, in main memory, where noise is added."""
        batches = iter_batches(self._eval_pack, indices, batch_size=self._evaluation_batch_size)
        return to_device(batches, self._device, copy_to_gpu=False)

    def statistics_images(self) -> Tensor:
        """Return unaugmented training images for `estimate_statistics`: a random sample, the same for every run."""
        train = self._split.train
        sample = np.random.default_rng(0).permutation(train)[:STATISTICS_IMAGES]
        [(images, _)] = iter_batches(self._pack, sample, len(sample))
        return images

    def feature_batches(self, features: FrozenFeatures, indices: Indices) -> Iterator[Batch]:
        """Yield features and labels of the images at `indices`, in batches for evaluation."""
        size = self._evaluation_batch_size
        for start in range(0, len(indices), size):
            heartbeat.beat()
            batch = indices[start : start + size]
            yield features.rows(batch), self._labels(batch)

    def training_batches(self, order: Indices, epoch: int, fixed_views: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of an epoch's steps.

        Args:
            order: indices of the images, in the order in which they are seen.
            epoch: counted from 0.
            fixed_views: whether to take one of a fixed number of augmented views, if the recipe has any, instead of
                drawing a new augmentation.
        """
        recipe, transform = self._recipe, self.transform
        generator = Generator().manual_seed(derive_seed(recipe.seed, "augmentation", epoch))
        view = epoch % recipe.views if recipe.views is not None and fixed_views else None
        if self.features is not None:
            for start in range(0, len(order), recipe.batch_size):
                batch = order[start : start + recipe.batch_size]
                yield self.features.rows(batch, view), transform.soft_targets(self._labels(batch))
            return
        copy_first = view is None and transform.can_augment_on_device
        batches = to_device(iter_batches(self._pack, order, recipe.batch_size), self._device, copy_first)
        for step, (images, labels) in enumerate(batches):
            if view is None:
                yield transform(images, labels, generator)
            else:
                batch = order[step * recipe.batch_size :][: recipe.batch_size]
                augmented = augmented_view(images, batch, recipe.augmentation, view)
                yield transform.prepare(augmented), transform.soft_targets(labels)

    def _features_of(self, pack: Pack, split_model: SplitModel) -> FrozenFeatures:
        return FrozenFeatures(split_model, self._recipe, pack, self._split, self.transform.prepare, self._cache)

    def _labels(self, indices: Indices) -> Tensor:
        return torch.from_numpy(self._pack.labels[indices])
