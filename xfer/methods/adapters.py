"""Adapters: small trainable parts in a frozen network."""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankAdapter(nn.Module):
    """A weight matrix [out, in] plus a product of rank `rank`, which is 0 at the start (Hu et al. 2022).

    The product is scaled by 2, the usual alpha = 2 * rank: then a good learning rate does not depend on the rank.
    """

    SCALE = 2.0

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as torch initialises a linear layer

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the product added, [out, in]."""
        return weight + self.SCALE * (self.up @ self.down)


def add_low_rank(model: nn.Module, rank: int, head: nn.Module) -> nn.Module:
    """Put a `LowRankAdapter` on every linear layer below the head; the same network, changed.

    Raises:
        ValueError: there is no linear layer that is larger than the rank, as in a purely convolutional network.
    """
    inside = set(head.modules())
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module not in inside and min(module.weight.shape) > rank
    ]
    if not found:
        raise ValueError(
            f"lora(rank={rank}) enters linear layers, and this network has none of more than {rank} channels below its "
            f"head: take a transformer, or bitfit or train_last"
        )
    for module in found:
        parametrize.register_parametrization(module, "weight", LowRankAdapter(module.weight, rank))
    return model


def merge_adapters(model: nn.Module) -> nn.Module:
    """A copy of a network in which every product is part of its weight: the shapes that it had before it was adapted.

    A network without adapters is returned as it is.
    """
    if not any(isinstance(module, LowRankAdapter) for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            # Not torch's own removal: it changes the module's class, which a copy shares with its original.
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(module.weight.detach())
            plain.bias = module.bias
            merged.set_submodule(name, plain.train(module.training))
    return merged
