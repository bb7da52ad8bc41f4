"""Features of several stages of a frozen network, of which those of the last stage are shared with a cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from xfer.data.pack import Progress
from xfer.data.split import Indices
from xfer.feature_extraction.extract import Features, Stage, extract_features, forward_stages
from xfer.feature_extraction.frozen_features import FrozenFeatures


def can_share(features: FrozenFeatures, indices: Indices, max_images: int) -> bool:
    """Whether `shared_stage_features` saves time: the cached images include `indices` and are at most `max_images`."""
    cached = features.cached_indices
    return len(cached) <= max_images and bool(np.isin(indices, cached).all())


def shared_stage_features(
    features: FrozenFeatures,
    indices: Indices,
    stages: tuple[int, ...],
    progress: Progress = lambda done, total: None,
) -> dict[Stage, Features]:
    """Extract features of images at earlier stages and below the classifier, and cache the latter for later heads.

    If the cache has no features of the training and validation part yet, one pass over both yields everything.
    Otherwise only the earlier stages are computed, and only for `indices`.

    Args:
        features: those below the classifier of a network.
        indices: images of the training and validation part.
        stages: the earlier stages, lowest first.
        progress: called with the number of images done and in total.

    Returns:
        For each stage, and for `late`, the features [len(indices), D], in the order of `indices`.
    """
    model, cached = features.network, features.cached_indices
    recorder = _Recorder(model, stages, lambda done: progress(min(done, len(cached)), len(cached)))
    late = features.with_lower(recorder).rows(indices).numpy()
    if recorder.count == len(cached):
        rows = np.searchsorted(cached, indices)
        return {**{stage: recorder.rows(stage)[rows] for stage in stages}, "late": late}
    # Read from the cache, or computed a second time in smaller batches because memory ran out.
    early = extract_features(model, features.pack, indices, features.prepare, stages, progress=progress)
    return {**early, "late": late}


class _Recorder(nn.Module):
    """Embedder that records the features of earlier stages of all images that it is called with."""

    def __init__(self, model: nn.Module, stages: tuple[int, ...], on_batch: Callable[[int], None]) -> None:
        super().__init__()
        self.model = model
        self._stages = stages
        self._on_batch = on_batch
        self._batches: dict[Stage, list[Tensor]] = {stage: [] for stage in stages}
        self.count = 0
        """Number of images so far."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's inputs."""
        features = forward_stages(self.model, images, self._stages, late=True)
        for stage, batches in self._batches.items():
            batches.append(features[stage].float().cpu())
        self.count += len(images)
        self._on_batch(self.count)
        return features["late"]

    def rows(self, stage: Stage) -> Features:
        """Return the features of a stage, in the order of the images."""
        return torch.cat(self._batches[stage]).numpy()
