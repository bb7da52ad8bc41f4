"""Cuts: networks of which a part is left out. Stages are timm's feature stages, counted from 1.

A convolutional network has about five of them, each at half the resolution of the one before; a transformer has one
for each block.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional


class TruncatedModel(nn.Module):
    """A network up to the end of one of its stages, its output pooled, and a linear classifier on that.

    The pooled features are normalised, without parameters of their own: unlike last features, which every network
    brings to a size that suits its classifier, early ones have any.

    Raises:
        ValueError: the network has no such stage, or it is the last one.
    """

    def __init__(self, model: Any, stage: int) -> None:
        super().__init__()
        stages = stage_end_modules(model)
        if not 1 <= stage < len(stages):
            raise ValueError(
                f"early_cut(stage={stage}): this network has {len(stages)} stages, so stage can be 1 to "
                f"{len(stages) - 1}; its last one is where linear_probe has its classifier"
            )
        classes = model.num_classes
        model.prune_intermediate_layers([stage - 1], prune_norm=True, prune_head=True)
        self.body = model
        self.stage = stage
        self.pretrained_cfg = model.pretrained_cfg
        self.num_features = int(model.feature_info[stage - 1]["num_chs"])
        self.classifier = nn.Linear(self.num_features, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's output for images [N, C, H, W]: [N, D, h, w]."""
        features: Tensor = self.body.forward_intermediates(images, indices=[self.stage - 1], intermediates_only=True)[0]
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [N, C], or the embeddings [N, D] that the classifier is asked with."""
        pooled = features.mean(dim=(2, 3))
        embeddings = functional.layer_norm(pooled, pooled.shape[1:])
        logits: Tensor = embeddings if pre_logits else self.classifier(embeddings)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] for images [N, C, H, W]."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits of embeddings."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> Any:
        """The body's own order of blocks; the classifier above all of them."""
        blocks = group_parameters(self.body, self.body.group_matcher(coarse), reverse=True)
        return lambda name: blocks.get(name.removeprefix("body."), len(blocks))


def drop_stages(model: Any, stage: int, image_size: int) -> Any:
    """The same network with everything from the stem to the end of a stage left out.

    Raises:
        ValueError: what is left does not fit together, as in most convolutional networks, whose stages differ in width.
    """
    stages = stage_end_modules(model)
    refusal = f"drop_early(stage={stage})"
    if not 1 <= stage < len(stages):
        raise ValueError(f"{refusal}: this network has {len(stages)} stages, and the last one must stay")
    place, _, name = stages[stage - 1].rpartition(".")
    family = re.compile(re.escape(name.rstrip("0123456789")) + r"(\d+)")
    number, last = family.fullmatch(name), family.fullmatch(stages[-1].rpartition(".")[2])
    parent = model.get_submodule(place)
    if not number or not last or all(each.ndim < 2 for each in parent.get_submodule(name).parameters()):
        raise ValueError(f"{refusal}: that stage is part of this network's stem, without which no image gets in")
    for sibling, _ in list(parent.named_children()):
        found = family.fullmatch(sibling)
        if found and int(found[1]) <= int(number[1]):
            parent.set_submodule(sibling, nn.Identity())
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(stem.weight.new_zeros(1, stem.in_channels, image_size, image_size))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{refusal}: the stages above expect what the removed ones made ({str(error).splitlines()[0]}). Only "
            f"networks whose stages are of one width can do it, such as a ViT; early_cut is its sensible counterpart"
        ) from error
    return model.train(training)


def stage_end_modules(model: Any) -> list[str]:
    """The module at which each of a network's stages ends, lowest first.

    Raises:
        ValueError: timm does not say.
    """
    if not hasattr(model, "prune_intermediate_layers") or not getattr(model, "feature_info", None):
        raise ValueError(f"timm does not say where the stages of {type(model).__name__} end, so it cannot be cut")
    return [str(stage["module"]) for stage in model.feature_info]
