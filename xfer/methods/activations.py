"""Activations: what stands between the layers of a network, swapped for another after its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Activation = Callable[[bool], nn.Module] | None
"""What makes a new activation, given whether it works in place; None keeps those of pretraining."""

REPLACEABLE_ACTIVATIONS = frozenset(
    (
        *(
            "ReLU",
            "ReLU6",
            "LeakyReLU",
            "PReLU",
            "ELU",
            "CELU",
            "SELU",
            "GELU",
            "SiLU",
            "Mish",
            "Softplus",
            "Hardswish",
        ),
        *("GELUTanh", "QuickGELU", "Swish", "HardSwish", "HardMish", "MishMe", "SwishMe", "HardSwishMe", "HardMishMe"),
    )
)
"""Names of torch's and timm's activations. Gates (sigmoids in squeeze-and-excitation) and softmax are none: their
values are weights between 0 and 1."""


def keep() -> Activation:
    """The activations that the network was pretrained with.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return None


def mish() -> Activation:
    """Mish, x * tanh(softplus(x)) (Misra 2019): smooth, and lets small negative values through.

    Part of a published recipe for Stanford Cars. The pretrained weights have never met it, so expect a lower start.

    Measured: 74.7% ± 4.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return nn.Mish


def silu() -> Activation:
    """SiLU, x * sigmoid(x), also known as Swish (Elfwing et al. 2018; Ramachandran et al. 2017).

    What EfficientNets are pretrained with; in a network pretrained with ReLU it costs some of the start.

    Measured: 73.6% ± 5.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return nn.SiLU


def leaky_relu() -> Activation:
    """Leaky ReLU, x or below 0 x / 100 (Maas et al. 2013): no unit is ever without a gradient.

    So near to ReLU that a network pretrained with ReLU hardly notices.

    Measured: 78.5% ± 7.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda inplace: nn.LeakyReLU(0.01, inplace)


def replace_activations(model: nn.Module, activation: Activation) -> nn.Module:
    """The same network with every activation replaced that is a module; weights and everything else as they were.

    A few old networks (NASNet, Xception) also call one as a function here and there, and it stays.

    Raises:
        ValueError: it has no activation as a module of its own.
    """
    if activation is None:
        return model
    modules = model.named_modules(remove_duplicate=False)  # one that stands in two places is replaced in both
    found = [(name, module) for name, module in modules if type(module).__name__ in REPLACEABLE_ACTIVATIONS]
    if not found:
        raise ValueError(f"{type(model).__name__} has no activations that can be swapped: leave activation at keep")
    for name, module in found:
        model.set_submodule(name, activation(bool(getattr(module, "inplace", False))))
    return model


ACTIVATIONS: dict[str, Callable[[], Activation]] = {f.__name__: f for f in (keep, mish, silu, leaky_relu)}
