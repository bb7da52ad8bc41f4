"""Activation functions, and their replacement in a network that already has its pretrained weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Activation = Callable[[bool], nn.Module] | None
"""Builds a new activation module from its `inplace` flag; None leaves the network's activations alone."""

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
"""Class names of the activations in torch and timm. Gates (sigmoids in squeeze-and-excitation) and softmax are
excluded: their outputs are weights between 0 and 1."""


def keep() -> Activation:
    """Keeps the activations that the network was pretrained with.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return None


def mish() -> Activation:
    """Mish, x * tanh(softplus(x)): smooth, and lets small negative values through.

    Part of a published recipe for Stanford Cars. The pretrained weights were not trained with it, so expect a lower
    starting accuracy. Misra 2019, arXiv:1908.08681.

    Measured: 74.7% ± 4.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return nn.Mish


def silu() -> Activation:
    """SiLU, x * sigmoid(x), also known as Swish.

    EfficientNets are pretrained with it. In a network pretrained with ReLU it lowers the starting accuracy somewhat.
    Elfwing et al. 2018, arXiv:1702.03118; Ramachandran et al. 2017, arXiv:1710.05941.

    Measured: 73.6% ± 5.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return nn.SiLU


def leaky_relu() -> Activation:
    """Leaky ReLU, x for x >= 0 and x / 100 below: no unit is ever without a gradient.

    It is so close to ReLU that a network pretrained with ReLU hardly changes. Maas et al. 2013, ICML Workshop on Deep
    Learning for Audio, Speech and Language Processing.

    Measured: 78.5% ± 7.7% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda inplace: nn.LeakyReLU(0.01, inplace)


def replace_activations(model: nn.Module, activation: Activation) -> nn.Module:
    """Replaces every activation that is a module; weights and all other modules stay the same.

    A few old networks (NASNet, Xception) also call some activations as functions; those are not replaced.

    Args:
        model: the network; changed in place.
        activation: builds the new modules; None changes nothing.

    Returns:
        `model`.

    Raises:
        ValueError: If no activation is a module of its own.
    """
    if activation is None:
        return model
    modules = model.named_modules(remove_duplicate=False)  # a shared module is replaced under both names
    replaceable = [(name, module) for name, module in modules if type(module).__name__ in REPLACEABLE_ACTIVATIONS]
    if not replaceable:
        raise ValueError(f"{type(model).__name__} has no activation modules to replace: leave activation at keep")
    for name, module in replaceable:
        model.set_submodule(name, activation(bool(getattr(module, "inplace", False))))
    return model


ACTIVATIONS: dict[str, Callable[[], Activation]] = {f.__name__: f for f in (keep, mish, silu, leaky_relu)}
