"""Optimizers over fixed parameter groups, one for each (depth, kind).

No parameter ever leaves its group or the optimizer: freezing is a rate of 0 and no gradient, which every optimizer
here passes over. So a run can stop in any epoch and go on bit for bit, and a parameter that is freed later moves as one
whose training begins then. The rate is read from the group at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.optim import Lamb, Lion
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

from xfer.models.params import Param

ParamGroups = list[dict[str, Any]]

DECAYED_KINDS = ("weight", "adapter")
"""The kinds of parameters that are decayed."""


def build_param_groups(model: nn.Module, params: Mapping[str, Param], weight_decay: float) -> ParamGroups:
    """One group of parameters for each (depth, kind) that occurs, head first.

    Beside torch's own settings each group says its `depth`, `kind` and `height`, and its current `pace`.

    Only weights and adapters are decayed: norms and biases have little to overfit with, and decaying them pulls a
    pretrained network's scales towards 0 (He et al. 2019).
    """
    by_param: dict[Param, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_param.setdefault(params[name], []).append(parameter)
    return [
        {
            "params": by_param[param],
            "depth": param.depth,
            "kind": param.kind,
            "height": param.height,
            "pace": 1.0,
            "weight_decay": weight_decay if param.kind in DECAYED_KINDS else 0.0,
        }
        for param in sorted(by_param)
    ]


def sgd(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Stochastic gradient descent with momentum 0.9.

    With a rate that suits it, hard to beat on convolutional networks, and it keeps only one number for each parameter.
    It has one rate for all of a network: where gradients differ much between layers, as in transformers, the adaptive
    ones are easier. Polyak 1964; Sutskever et al. 2013.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return SGD(groups, lr=learning_rate, momentum=0.9)


def nesterov(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov's momentum, 0.9: it looks ahead along its own momentum.

    Corrects sooner than `sgd` where the momentum overshoots, so it bears a little more of a rate; at small rates the
    two are all but the same. Sutskever et al. 2013.

    Measured: 80.2% ± 4.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)


def adam(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Each parameter at a rate of its own, by the size of its gradients; weight decay as an L2 term of the gradient.

    Works at its usual rate almost anywhere, which is worth much where few runs can be afforded. The same division by
    the gradients' size makes its weight decay weak where gradients are large: `adamw` decays as one would expect.
    Kingma & Ba 2015.

    Measured: 85.8% ± 6.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Adam(groups, lr=learning_rate)


def adamw(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Adam with weight decay apart from the gradient: every step takes off `learning_rate` times the decay.

    The rule for transformers and ConvNeXt. The decay acts through the rate, so the two are chosen together, and it
    takes larger values than with `adam` or `sgd` before it is felt. Loshchilov & Hutter 2019.

    Measured: 84.7% ± 2.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return AdamW(groups, lr=learning_rate)


def radam(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Adam whose first steps are rectified, so that it needs no warm-up.

    While few gradients are known it moves as SGD with momentum does. Where the schedule begins with a warm-up anyway
    there is little left to gain over `adam`. Weight decay is an L2 term of the gradient. Liu et al. 2020.

    Measured: 72.2% ± 6.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return RAdam(groups, lr=learning_rate)


def ranger(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """RAdam inside Lookahead: every 6 steps half-way back to slow weights, which then stay there until the next time.

    Averages away some of the noise, so it bears higher rates than `radam` and is meant for a long flat part in the
    schedule. It keeps the weights once more, and learns more slowly where there is little noise. Wright 2019, whose
    settings these are; Zhang et al. 2019, in whose Algorithm 1 the slow weights begin where the first step does.

    Measured: 70.8% ± 5.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Ranger(groups, learning_rate)


def lamb(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Adam whose step is scaled to the norm of the weights that it changes, one tensor at a time.

    For very large batches, thousands of images, where one rate for all layers breaks down; with dozens of images there
    is little reason for it. Weights that begin at 0, as the half of an adapter does, grow only slowly. You et al. 2020.

    Biases and norms move as in Adam, as is usual: many begin at 0, and steps scaled to that lead nowhere. Clipping the
    gradient is left to the recipe.

    Measured: 84.7% ± 0.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    adapted = [{**group, "always_adapt": group["kind"] in DECAYED_KINDS} for group in groups]
    optimizer: Optimizer = Lamb(adapted, lr=learning_rate, max_grad_norm=None)
    optimizer.register_step_post_hook(_count_only_steps_taken)
    return optimizer


def lion(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Every number moves by the learning rate, up or down: the sign of a mean of past gradients.

    Keeps half of what Adam keeps. Its steps are larger, so its authors take a rate 3 to 10 times lower than AdamW's and
    a weight decay as many times higher; what it gains grows with the batch, and with small ones there may be nothing.
    Found by a search among programs: Chen et al. 2023.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    optimizer: Optimizer = Lion(groups, lr=learning_rate)
    return optimizer


class Ranger(RAdam):
    """RAdam whose weights every 6 steps go half-way back to slow ones, and the slow ones with them.

    All parameters do so at the same steps. Slow weights begin where a parameter stood before it first moved, which is
    where it stood at the first step of all. The number of steps is kept in the groups, slow weights in the state.
    """

    PERIOD, SHARE = 6, 0.5  # Lookahead's k and alpha, Wright 2019

    def __init__(self, groups: ParamGroups, learning_rate: float) -> None:
        super().__init__(groups, lr=learning_rate, betas=(0.95, 0.999), eps=1e-5)  # Wright 2019
        self.defaults["lookahead_step"] = 0
        for group in self.param_groups:
            group.setdefault("lookahead_step", 0)

    def step(self, closure: Any = None) -> Any:
        """One step over all parameters that have a gradient; the loss where there is a closure to compute it."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        first = {p: p.detach().clone() for p in moving if "slow" not in self.state[p]}
        super().step()
        for parameter, weights in first.items():
            self.state[parameter]["slow"] = weights  # not sooner: to RAdam an empty state is a new one
        for group in self.param_groups:
            group["lookahead_step"] += 1
            if group["lookahead_step"] % self.PERIOD == 0:
                self._go_back([p for p in group["params"] if p.grad is not None])
        return loss

    @torch.no_grad()
    def _go_back(self, moving: list[nn.Parameter]) -> None:
        for parameter in moving:
            slow = self.state[parameter]["slow"].lerp_(parameter, self.SHARE)
            parameter.copy_(slow)


def _count_only_steps_taken(optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
    # timm's Lamb counts on while a group is frozen, and would then take the group's first moments for old ones.
    for group in optimizer.param_groups:
        if all(parameter.grad is None for parameter in group["params"]):
            group["step"] -= 1


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    f.__name__: f for f in (sgd, nesterov, adam, adamw, radam, ranger, lamb, lion)
}
