"""Param(depth, kind, height): a parameter seen from the head, the same for a ResNet and a ViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from timm.models import group_parameters
from torch import nn

Kind = Literal["weight", "bias", "scale", "shift", "adapter"]

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True, order=True)
class Param:
    """Where a parameter stands and what it is: all that a strategy may ask of it.

    `depth` 0 is the new head; 1 is the block below it, and so on down to the stem. `kind` tells weights proper, which
    alone are decayed, from biases, from the scale and shift of a normalisation layer, and from the parts that an
    adapter has put into the network. `height` is counted from below: 0 is the lowest block, and depth + height is the
    number of blocks below the head, the same for all parameters of a network.
    """

    depth: int
    kind: Kind = "weight"
    height: int = 0

    @property
    def blocks(self) -> int:
        """How many blocks the network has below its head."""
        return self.depth + self.height


def named_params(model: Any) -> dict[str, Param]:
    """Every parameter of a timm network by its name.

    The head is what `model.get_classifier()` names, not timm's last group: in some families (ConvNeXt, MobileNetV3)
    that group also holds pretrained layers. Everything else follows timm's own order of blocks.
    """
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    kinds = _kinds(model)
    names = dict(model.named_parameters())
    blocks = [
        body
        for group in reversed(group_parameters(model, model.group_matcher(coarse=False)).values())
        if (body := [name for name in group if id(names[name]) not in head])
    ]
    depths = {name: depth for depth, block in enumerate(blocks, start=1) for name in block}
    return {name: Param(depth := depths.get(name, 0), kinds[name], len(blocks) - depth) for name in names}


def _kinds(model: nn.Module) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(prefix=module_name, recurse=False):
            kinds[name] = _kind(module, name)
    return kinds


def _kind(module: nn.Module, name: str) -> Kind:
    # torch keeps what a parametrization changes under `...parametrizations.weight`: the tensor itself as `original`,
    # the parts that change it under their number.
    if ".parametrizations." in f".{name}":
        return "weight" if name.endswith(".original") else "adapter"
    if _is_norm(module):
        return "shift" if name.endswith("bias") else "scale"
    return "bias" if name.endswith("bias") else "weight"


def _is_norm(module: nn.Module) -> bool:
    # timm's own layers (LayerNorm2d, BatchNormAct2d, ...) subclass torch's; RmsNorm and its kin carry it in their name.
    return isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
