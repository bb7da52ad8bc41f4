"""Low-rank adapters: small trainable matrices added to the weights of a frozen network."""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankAdapter(nn.Module):
    """Adds a trainable product of rank `rank` to a weight matrix [out, in]; the product starts at 0.

    The product is scaled by 2, the common choice alpha = 2 * rank, so that the best learning rate does not depend on
    the rank. Hu et al. 2022 (LoRA), arXiv:2106.09685.

    Args:
        weight: the matrix [out, in] to adapt; gives shape, device and dtype.
        rank: the inner dimension of the product, at least 1.
    """

    SCALE = 2.0

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as torch initialises a linear layer

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight [out, in] plus the scaled product."""
        return weight + self.SCALE * (self.up @ self.down)


def add_low_rank(model: nn.Module, rank: int, head: nn.Module) -> nn.Module:
    """Adds a `LowRankAdapter` to every linear layer below the head whose sides both exceed the rank.

    Args:
        model: the network; changed in place.
        rank: the rank of each adapter.
        head: the classifier; its layers get no adapter.

    Returns:
        `model`.

    Raises:
        ValueError: If no linear layer is larger than the rank, as in a purely convolutional network.
    """
    head_modules = set(head.modules())
    adaptable = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module not in head_modules and min(module.weight.shape) > rank
    ]
    if not adaptable:
        raise ValueError(
            f"lora(rank={rank}) adapts linear layers, but this network has none with more than {rank} channels below "
            f"its head: use a transformer, or strategy bitfit or train_last"
        )
    for module in adaptable:
        parametrize.register_parametrization(module, "weight", LowRankAdapter(module.weight, rank))
    return model


def merge_adapters(model: nn.Module) -> nn.Module:
    """Returns a copy of the network in which each adapter is added into its weight.

    The copy has the shapes and names of the network before `add_low_rank`. A network without adapters is returned as it
    is.
    """
    if not any(isinstance(module, LowRankAdapter) for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            # torch's remove_parametrizations changes the module's class, which the copy shares with the original.
            linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            linear.weight = nn.Parameter(module.weight.detach())
            linear.bias = module.bias
            merged.set_submodule(name, linear.train(module.training))
    return merged
