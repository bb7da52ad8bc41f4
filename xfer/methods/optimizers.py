"""Optimizers over fixed parameter groups, one for each (depth, kind).

No parameter ever leaves its group or the optimizer: a frozen parameter has a learning rate of 0 and no gradient, and
every optimizer here skips it. So a run can stop after any epoch and resume bit for bit, and a parameter that is
unfrozen later moves as if its training began then. The rate is read from the group at every step.
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
"""Kinds of parameters that weight decay applies to."""


def build_param_groups(model: nn.Module, params: Mapping[str, Param], weight_decay: float) -> ParamGroups:
    """Builds one parameter group for each (depth, kind) that occurs, head first.

    Only weights and adapters are decayed: norms and biases hardly overfit, and decaying them pulls a pretrained
    network's scales towards 0 (He et al. 2019, arXiv:1812.01187).

    Args:
        model: the network.
        params: depth, kind and height of each parameter, by name.
        weight_decay: of the kinds in `DECAYED_KINDS`; the others get 0.

    Returns:
        Groups for a torch optimizer, with `depth`, `kind`, `height` and the current `pace` as additional keys.
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

    With a suitable rate it is hard to beat on convolutional networks, and it stores only one number per parameter. It
    has one rate for the whole network: where gradients differ a lot between layers, as in transformers, adaptive
    optimizers are easier to use. Polyak 1964, USSR Computational Mathematics and Mathematical Physics; Sutskever et al.
    2013, ICML.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return SGD(groups, lr=learning_rate, momentum=0.9)


def nesterov(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum 0.9: it looks ahead along its own momentum.

    Corrects sooner than `sgd` where the momentum overshoots, so it tolerates a slightly higher rate; at small rates the
    two are nearly the same. Sutskever et al. 2013, ICML.

    Measured: 80.2% ± 4.2% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)


def adam(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Adapts the rate of each parameter to the size of its gradients; weight decay is an L2 term of the gradient.

    Works at its usual rate almost everywhere, which is valuable where few runs are affordable. The division by the
    gradients' size weakens its weight decay where gradients are large: `adamw` decays as expected. Kingma & Ba 2015,
    arXiv:1412.6980.

    Measured: 85.8% ± 6.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Adam(groups, lr=learning_rate)


def adamw(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Adam with decoupled weight decay: every step subtracts `learning_rate` times the decay.

    The default for transformers and ConvNeXt. The decay acts through the rate, so the two are tuned together, and it
    needs larger values than with `adam` or `sgd` to have an effect. Loshchilov & Hutter 2019, arXiv:1711.05101.

    Measured: 84.7% ± 2.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return AdamW(groups, lr=learning_rate)


def radam(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Adam with rectified first steps, so that it needs no warm-up.

    While few gradients are known it moves like SGD with momentum. Where the schedule already has a warm-up it gains
    little over `adam`. Weight decay is an L2 term of the gradient. Liu et al. 2020, arXiv:1908.03265.

    Measured: 72.2% ± 6.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return RAdam(groups, lr=learning_rate)


def ranger(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """RAdam inside Lookahead: every 6 steps the weights move halfway back to slow weights, which then stay there.

    Averages out some of the noise, so it tolerates higher rates than `radam` and is designed for a long flat part in
    the schedule. It stores a second copy of the weights, and learns more slowly where there is little noise. Wright
    2019, https://github.com/lessw2020/Ranger-Deep-Learning-Optimizer, whose settings these are; Zhang et al. 2019,
    arXiv:1907.08610, in whose Algorithm 1 the slow weights start at the initial weights.

    Measured: 70.8% ± 5.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return Ranger(groups, learning_rate)


def lamb(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Adam whose step is scaled to the norm of the weights that it changes, one tensor at a time.

    For very large batches, thousands of images, where one rate for all layers fails; with dozens of images there is
    little reason for it. Weights that start at 0, such as half of an adapter, grow only slowly. You et al. 2020,
    arXiv:1904.00962.

    Biases and norms move as in Adam, as is usual: many start at 0, where scaled steps make no progress. Gradient
    clipping is left to the recipe.

    Measured: 84.7% ± 0.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    lamb_groups = [{**group, "always_adapt": group["kind"] in DECAYED_KINDS} for group in groups]
    optimizer: Optimizer = Lamb(lamb_groups, lr=learning_rate, max_grad_norm=None)
    optimizer.register_step_post_hook(_skip_frozen_steps)
    return optimizer


def lion(groups: ParamGroups, learning_rate: float) -> Optimizer:
    """Moves every parameter by the learning rate, up or down: the sign of a mean of past gradients.

    Stores half as much as Adam. Its steps are larger, so its authors use a rate 3 to 10 times lower than AdamW's and a
    weight decay higher by the same factor; the gain grows with the batch size and may vanish for small batches. Found
    by program search: Chen et al. 2023, arXiv:2302.06675.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    optimizer: Optimizer = Lion(groups, lr=learning_rate)
    return optimizer


class Ranger(RAdam):
    """RAdam with Lookahead: every 6 steps weights and slow weights meet halfway.

    All parameters do so at the same steps. A parameter's slow weights start at its value before its first update, which
    is its initial value. The step count is stored in the groups, the slow weights in the state.
    """

    PERIOD, SLOW_STEP = 6, 0.5  # Lookahead's k and alpha, Wright 2019

    def __init__(self, groups: ParamGroups, learning_rate: float) -> None:
        super().__init__(groups, lr=learning_rate, betas=(0.95, 0.999), eps=1e-5)  # Wright 2019
        self.defaults["lookahead_step"] = 0
        for group in self.param_groups:
            group.setdefault("lookahead_step", 0)

    def step(self, closure: Any = None) -> Any:
        """Updates all parameters that have a gradient; returns the loss if a closure computes it."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        initial = {p: p.detach().clone() for p in trained if "slow" not in self.state[p]}
        super().step()
        for parameter, weights in initial.items():
            self.state[parameter]["slow"] = weights  # after the step: RAdam initialises a state only if it is empty
        for group in self.param_groups:
            group["lookahead_step"] += 1
            if group["lookahead_step"] % self.PERIOD == 0:
                self._synchronize_slow([p for p in group["params"] if p.grad is not None])
        return loss

    @torch.no_grad()
    def _synchronize_slow(self, trained: list[nn.Parameter]) -> None:
        for parameter in trained:
            slow = self.state[parameter]["slow"].lerp_(parameter, self.SLOW_STEP)
            parameter.copy_(slow)


def _skip_frozen_steps(optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
    # timm's Lamb also counts steps while a group is frozen, which would spoil the bias correction of its first moments.
    for group in optimizer.param_groups:
        if all(parameter.grad is None for parameter in group["params"]):
            group["step"] -= 1


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    f.__name__: f for f in (sgd, nesterov, adam, adamw, radam, ranger, lamb, lion)
}
