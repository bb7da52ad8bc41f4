"""Param(depth, kind, height): position and kind of a parameter, counted from the head for any architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from timm.models import group_parameters
from torch import nn

Kind = Literal["weight", "bias", "scale", "shift", "adapter"]

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True, order=True)
class Param:
    """Position and kind of a parameter, the only properties that a strategy may use."""

    depth: int
    """0 for the new head, 1 for the block below it, and so on down to the stem."""
    kind: Kind = "weight"
    """Weights (the only kind with weight decay), biases, scale and shift of a normalization layer, or an adapter."""
    height: int = 0
    """Number of blocks below: 0 for the lowest block. depth + height is the same for all parameters of a network."""

    @property
    def blocks(self) -> int:
        """Number of blocks of the network below its head."""
        return self.depth + self.height


def named_params(model: Any) -> dict[str, Param]:
    """Return every parameter of a timm network by name.

    The head is the module that `model.get_classifier()` returns, not timm's last group: in some families (ConvNeXt,
    MobileNetV3) that group has pretrained layers too. All other parameters follow timm's order of blocks.
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
    # torch names a parametrized tensor `...parametrizations.weight.original`, and the parameters of the adapters that
    # change it `...parametrizations.weight.<number>`.
    if ".parametrizations." in f".{name}":
        return "weight" if name.endswith(".original") else "adapter"
    if _is_norm(module):
        return "shift" if name.endswith("bias") else "scale"
    return "bias" if name.endswith("bias") else "weight"


def _is_norm(module: nn.Module) -> bool:
    # timm's layers (LayerNorm2d, BatchNormAct2d, ...) subclass torch's. RmsNorm and its variants do not.
    return isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
