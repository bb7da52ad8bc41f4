"""Truncation: networks with some of their stages removed. Stages are timm's feature stages, counted from 1.

A convolutional network has about five, each at half the resolution of the one before; a transformer has one per block.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional


class TruncatedModel(nn.Module):
    """A network up to the end of one of its stages, with pooled output and a linear classifier on top.

    The pooled features are normalised (without learned parameters): a network's last features have a scale that suits
    its classifier, but early ones can have any scale.

    Args:
        model: a timm network; changed in place.
        stage: the last stage to keep, from 1 to the number of stages minus 1.

    Raises:
        ValueError: If the network has no such stage, or it is the last one.
    """

    def __init__(self, model: Any, stage: int) -> None:
        super().__init__()
        stages = stage_end_modules(model)
        if not 1 <= stage < len(stages):
            raise ValueError(
                f"early_cut(stage={stage}): this network has {len(stages)} stages, so stage must be from 1 to "
                f"{len(stages) - 1}; for a classifier on the last stage use strategy linear_probe"
            )
        classes = model.num_classes
        model.prune_intermediate_layers([stage - 1], prune_norm=True, prune_head=True)
        self.body = model
        self.stage = stage
        self.pretrained_cfg = model.pretrained_cfg
        self.num_features = int(model.feature_info[stage - 1]["num_chs"])
        self.classifier = nn.Linear(self.num_features, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the last stage's output [N, D, h, w] for images [N, C, H, W]."""
        features: Tensor = self.body.forward_intermediates(images, indices=[self.stage - 1], intermediates_only=True)[0]
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns logits [N, C], or the classifier's inputs [N, D] if `pre_logits`."""
        pooled = features.mean(dim=(2, 3))
        embeddings = functional.layer_norm(pooled, pooled.shape[1:])
        logits: Tensor = embeddings if pre_logits else self.classifier(embeddings)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [N, C] for images [N, C, H, W]."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Returns the layer that maps embeddings to logits."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> Any:
        """Returns the body's own order of blocks, with the classifier above them."""
        blocks = group_parameters(self.body, self.body.group_matcher(coarse), reverse=True)
        return lambda name: blocks.get(name.removeprefix("body."), len(blocks))


def drop_stages(model: Any, stage: int, image_size: int) -> Any:
    """Removes everything from the stem to the end of a stage.

    Args:
        model: a timm network; changed in place.
        stage: the last stage to remove, from 1 to the number of stages minus 1.
        image_size: side of the images, in pixels, for the test whether the rest fits together.

    Returns:
        `model`.

    Raises:
        ValueError: If the remaining stages do not fit together, as in most convolutional networks, whose stages differ
            in width.
    """
    stages = stage_end_modules(model)
    prefix = f"drop_early(stage={stage})"
    if not 1 <= stage < len(stages):
        raise ValueError(
            f"{prefix}: this network has {len(stages)} stages, so stage must be from 1 to {len(stages) - 1}"
        )
    parent_name, _, name = stages[stage - 1].rpartition(".")
    family = re.compile(re.escape(name.rstrip("0123456789")) + r"(\d+)")
    number, last = family.fullmatch(name), family.fullmatch(stages[-1].rpartition(".")[2])
    parent = model.get_submodule(parent_name)
    if not number or not last or all(parameter.ndim < 2 for parameter in parent.get_submodule(name).parameters()):
        raise ValueError(f"{prefix}: that stage is part of this network's stem, which cannot be removed")
    for sibling, _ in list(parent.named_children()):
        match = family.fullmatch(sibling)
        if match and int(match[1]) <= int(number[1]):
            parent.set_submodule(sibling, nn.Identity())
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(stem.weight.new_zeros(1, stem.in_channels, image_size, image_size))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{prefix}: the stages above do not accept the stem's output ({str(error).splitlines()[0]}). Use a network "
            f"whose stages all have the same width, such as a ViT, or strategy early_cut"
        ) from error
    return model.train(training)


def stage_end_modules(model: Any) -> list[str]:
    """Returns the names of the modules at which a network's stages end, lowest first.

    Raises:
        ValueError: If timm does not define stages for the network.
    """
    if not hasattr(model, "prune_intermediate_layers") or not getattr(model, "feature_info", None):
        raise ValueError(
            f"timm does not define the stages of {type(model).__name__}, so it cannot be cut: use another backbone"
        )
    return [str(stage["module"]) for stage in model.feature_info]
