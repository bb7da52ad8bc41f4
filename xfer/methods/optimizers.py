"""Optimizers over fixed parameter groups, one for each (depth, kind).

No parameter ever leaves its group or the optimizer: freezing is a rate of 0 and no gradient, which every optimizer
here passes over. So a run can stop in any epoch and go on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.optim import Lookahead
from torch import nn
from torch.optim import SGD, Adam, Optimizer, RAdam

from xfer.params import Kind, Param

Groups = list[dict[str, Any]]


def groups_of(model: nn.Module, params: Mapping[str, Param], weight_decay: float) -> Groups:
    """One group of parameters for each (depth, kind) that occurs, head first.

    Beside torch's own settings each group says its `depth`, its `kind` and its current `pace`.

    Only weights are decayed: norms and biases have little to overfit with, and decaying them pulls a pretrained
    network's scales towards 0 (He et al. 2019).
    """
    by_param: dict[Param, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_param.setdefault(params[name], []).append(parameter)
    decay: dict[Kind, float] = {"weight": weight_decay, "bias": 0.0, "norm": 0.0}
    return [
        {
            "params": by_param[param],
            "depth": param.depth,
            "kind": param.kind,
            "pace": 1.0,
            "weight_decay": decay[param.kind],
        }
        for param in sorted(by_param)
    ]


def sgd(groups: Groups, learning_rate: float) -> Optimizer:
    """Stochastic gradient descent with momentum 0.9."""
    return SGD(groups, lr=learning_rate, momentum=0.9)


def adam(groups: Groups, learning_rate: float) -> Optimizer:
    """Adam (Kingma & Ba 2015), weight decay as an L2 term of the gradient."""
    return Adam(groups, lr=learning_rate)


def radam(groups: Groups, learning_rate: float) -> Optimizer:
    """Adam whose first steps are rectified (Liu et al. 2020), so that it needs no warm-up."""
    return RAdam(groups, lr=learning_rate)


def ranger(groups: Groups, learning_rate: float) -> Optimizer:
    """RAdam inside Lookahead (Wright 2019; Zhang et al. 2019): every 6 steps half-way back to the slow weights."""
    # The inner optimizer's settings are those of Wright's Ranger.
    inner = RAdam(groups, lr=learning_rate, betas=(0.95, 0.999), eps=1e-5)
    outer: Optimizer = Lookahead(inner, alpha=0.5, k=6)
    return outer


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {f.__name__: f for f in (sgd, adam, radam, ranger)}
