"""Frozen features: what a network makes of images while nothing of it is trained, from any of its stages."""

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
"""Where features are taken: at the end of one of the network's stages, counted from 1 as in methods/cuts.py, or `late`,
the embedding that the classifier is asked with."""
Features = NDArray[np.float32]
"""[N, D]: a row per image, in the order that was asked for."""


def extract_features(
    model: Any,
    pack: Pack,
    places: Indices,
    prepare: Preprocess,
    stages: Sequence[Stage] = ("late",),
    batch_size: int = 64,
    progress: Progress = lambda done, total: None,
) -> dict[Stage, Features]:
    """The features of some images at some stages, in one pass over the images.

    A stage's feature maps are averaged over the picture. The features follow from weights, pixels and places alone: no
    draw is made, and the network, which is left in evaluation mode, does not change.

    Args:
        model: a timm network.
        pack: where the images are.
        places: which of them.
        prepare: from a pack's pixels to what the network takes, on its device.
        stages: where features are taken.
        batch_size: how many images at once; decides nothing but speed and memory.
        progress: told how far it is.

    Raises:
        ValueError: the network has no such stage, or no images or stages were asked for.
    """
    if not len(places) or not stages:
        raise ValueError(f"features of {len(places)} images at {len(stages)} stages were asked for: there are none")
    early = tuple(sorted({stage for stage in stages if stage != "late"}))
    if early:
        count = len(stage_end_modules(model))
        if early[0] < 1 or early[-1] > count:
            asked = ", ".join(map(str, early))
            raise ValueError(f"features of stages {asked} were asked for; this network has 1 to {count}, and late")
    found: dict[Stage, list[Tensor]] = {stage: [] for stage in stages}
    done = 0
    model.eval()
    with torch.inference_mode():
        for images, _ in iter_batches(pack, places, batch_size):
            for stage, rows in _forward(model, prepare(images), early, "late" in found).items():
                found[stage].append(rows.float().cpu())
            done += len(images)
            progress(done, len(places))
    return {stage: torch.cat(rows).numpy() for stage, rows in found.items()}


def earlier_stages(model: Any) -> tuple[int, ...]:
    """Which stages stand for the early and middle part of a network, lowest first: at most four, never the last.

    All but the last of a convolutional network; of a transformer, where every block is a stage, the ends of its first
    three quarters.

    Raises:
        ValueError: timm does not say where its stages end, or there is one only.
    """
    count = len(stage_end_modules(model))
    if count < 2:
        raise ValueError(f"{type(model).__name__} has a single stage: there is nothing early in it")
    return tuple(range(1, count)) if count <= 5 else tuple(round(count * quarter / 4) for quarter in (1, 2, 3))


def _forward(model: Any, inputs: Tensor, early: tuple[int, ...], late: bool) -> dict[Stage, Tensor]:
    if not early:
        return {"late": model.forward_head(model.forward_features(inputs), pre_logits=True)}
    indices = [stage - 1 for stage in early]
    if late:
        last, maps = model.forward_intermediates(inputs, indices=indices, output_fmt="NCHW")
    else:
        maps = model.forward_intermediates(
            inputs, indices=indices, output_fmt="NCHW", stop_early=True, intermediates_only=True
        )
    rows: dict[Stage, Tensor] = {stage: each.mean(dim=(2, 3)) for stage, each in zip(early, maps, strict=True)}
    return rows | {"late": model.forward_head(last, pre_logits=True)} if late else rows
