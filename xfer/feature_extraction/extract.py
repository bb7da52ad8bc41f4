"""Feature extraction: features of images from any stage of a pretrained network, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xfer.data.loader import iter_batches
from xfer.data.pack import Pack, Progress
from xfer.data.split import Indices
from xfer.measure.accuracy import Preprocess
from xfer.methods.truncation import stage_end_modules

Stage = int | Literal["late"]
"""Position of features in a network: the end of one of its stages, counted from 1 as in `xfer.methods.truncation`, or
`late`, the embedding that enters the classifier."""
Features = NDArray[np.float32]
"""Features [N, D], one row per image."""


def extract_features(
    model: Any,
    pack: Pack,
    indices: Indices,
    prepare: Preprocess,
    stages: Sequence[Stage] = ("late",),
    batch_size: int = 64,
    progress: Progress = lambda done, total: None,
) -> dict[Stage, Features]:
    """Extract features of images at several stages in one pass.

    Feature maps of a stage are averaged over all positions. Nothing is random, and the network's state does not change;
    it is left in evaluation mode.

    Args:
        model: a timm network.
        pack: the data.
        indices: which images of the pack.
        prepare: turns uint8 images into the network's inputs, on its device.
        stages: at least one.
        batch_size: affects speed and memory only.
        progress: called with the number of images done and in total.

    Returns:
        For each stage the features [len(indices), D], in the order of `indices`.

    Raises:
        ValueError: the network has no such stage, or there are no images or stages.
    """
    if not len(indices) or not stages:
        raise ValueError(f"at least one image and one stage are needed, not {len(indices)} and {len(stages)}")
    early = tuple(sorted({stage for stage in stages if stage != "late"}))
    if early:
        count = len(stage_end_modules(model))
        if early[0] < 1 or early[-1] > count:
            requested = ", ".join(map(str, early))
            raise ValueError(f"stages {requested} were requested, but this network has stages 1 to {count}, and late")
    batches: dict[Stage, list[Tensor]] = {stage: [] for stage in stages}
    done = 0
    model.eval()
    with torch.inference_mode():
        for images, _ in iter_batches(pack, indices, batch_size):
            for stage, rows in forward_stages(model, prepare(images), early, "late" in batches).items():
                batches[stage].append(rows.float().cpu())
            done += len(images)
            progress(done, len(indices))
    return {stage: torch.cat(rows).numpy() for stage, rows in batches.items()}


def earlier_stages(model: Any) -> tuple[int, ...]:
    """Return the stages that represent the early and middle part of a network, lowest first.

    For a convolutional network these are all stages but the last, for a transformer, where every block is a stage, the
    ends of its first three quarters. At most four.

    Raises:
        ValueError: timm does not say where the network's stages end, or there is only one.
    """
    count = len(stage_end_modules(model))
    if count < 2:
        raise ValueError(f"{type(model).__name__} has a single stage, so it has no earlier ones")
    return tuple(range(1, count)) if count <= 5 else tuple(round(count * quarter / 4) for quarter in (1, 2, 3))


def forward_stages(model: Any, inputs: Tensor, early: tuple[int, ...], late: bool) -> dict[Stage, Tensor]:
    """Return the features of a batch of network inputs at the given stages, lowest first, and before the classifier.

    Args:
        model: a timm network in evaluation mode.
        inputs: [B, C, H, W].
        early: stages, counted from 1, in ascending order.
        late: whether to return the embedding that enters the classifier too.
    """
    if not early:
        return {"late": model.forward_head(model.forward_features(inputs), pre_logits=True)}
    indices = [stage - 1 for stage in early]
    if late:
        last, maps = model.forward_intermediates(inputs, indices=indices, output_fmt="NCHW")
    else:
        maps = model.forward_intermediates(
            inputs, indices=indices, output_fmt="NCHW", stop_early=True, intermediates_only=True
        )
    rows: dict[Stage, Tensor] = {
        stage: feature_map.mean(dim=(2, 3)) for stage, feature_map in zip(early, maps, strict=True)
    }
    return rows | {"late": model.forward_head(last, pre_logits=True)} if late else rows
