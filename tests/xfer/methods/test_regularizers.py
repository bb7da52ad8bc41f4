"""Regularizers: the added gradient is that of a penalty on the distance to the starting weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xfer.methods.regularizers import L2SP
from xfer.models.params import named_params

FULL_BATCH = {"optimizer": "sgd", "schedule": "constant", "batch_size": 24}


def test_the_pull_is_the_gradient_of_the_penalty():
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), ())]
    start = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
    penalty = 0.7 / 2 * sum(((p - w0) ** 2).sum() for p, w0 in zip(parameters, start, strict=True))
    expected = torch.autograd.grad(penalty, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    L2SP(0.7).add_gradient(parameters, start)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 1)


def test_there_is_no_pull_at_the_start():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 2.0)
    L2SP(5.0).add_gradient([parameter], [torch.ones(3)])
    assert torch.equal(parameter.grad, torch.full((3,), 2.0))


def test_parameters_without_a_gradient_are_skipped():
    frozen, trained = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    trained.grad = torch.zeros(3)
    L2SP(0.5).add_gradient([frozen, trained], [torch.zeros(3), torch.zeros(3)])
    assert frozen.grad is None
    assert torch.equal(trained.grad, torch.full((3,), 0.5))
    L2SP(0.5).add_gradient([frozen], [torch.zeros(3)])
    assert frozen.grad is None


def test_a_step_of_a_run_follows_the_loss_with_the_penalty(make_recipe, make_run):
    strength, rate = 0.5, 0.01
    recipe = make_recipe(
        **FULL_BATCH, strategy={"name": "l2_sp", "strength": strength}, learning_rate=rate, weight_decay=0, epochs=2
    )
    plain = make_recipe(**FULL_BATCH, strategy="naive", learning_rate=rate, weight_decay=0, epochs=2)
    regularized, unregularized = make_run(recipe), make_run(plain)
    start = dict(regularized.model.named_parameters())
    start = {name: tensor.detach().clone() for name, tensor in start.items()}
    iterators = iter(regularized), iter(unregularized)
    next(iterators[0]), next(iterators[1])
    halfway = {name: tensor.detach().clone() for name, tensor in regularized.model.named_parameters()}
    assert all(torch.equal(tensor, halfway[name]) for name, tensor in unregularized.model.named_parameters()), (
        "no pull yet"
    )
    next(iterators[0]), next(iterators[1])
    for (name, one), (_, other) in zip(
        regularized.model.named_parameters(), unregularized.model.named_parameters(), strict=True
    ):
        pull = torch.zeros_like(one) if "classifier" in name else strength * (halfway[name] - start[name])
        torch.testing.assert_close(one, other - rate * pull, atol=1e-7, rtol=1e-5)


def test_the_head_is_decayed_but_the_body_is_not(make_recipe, make_run):
    def decays(strategy):
        groups = make_run(make_recipe(strategy=strategy, weight_decay=0.3)).state_dict()["optimizer"]["param_groups"]
        return {(group["depth"] == 0, group["kind"]): group["weight_decay"] for group in groups}

    assert decays("naive")[False, "weight"] == decays("naive")[True, "weight"] == 0.3
    assert decays("l2_sp")[True, "weight"] == 0.3
    assert {decay for (head, _), decay in decays("l2_sp").items() if not head} == {0.0}


def test_a_stronger_pull_keeps_the_network_nearer_to_its_start(make_recipe, make_run):
    def distance(strategy):
        recipe = make_recipe(
            **FULL_BATCH, strategy=strategy, backbone="test_vit", learning_rate=0.02, weight_decay=0, epochs=6
        )
        return [epoch.distance for epoch in make_run(recipe)][-1]

    regularized = [distance({"name": "l2_sp", "strength": strength}) for strength in (0.5, 10.0)]
    assert distance("naive") > regularized[0] > regularized[1] > 0


def test_the_pull_is_clipped_with_the_rest_of_the_gradient(make_recipe, make_run):
    rate, clip_norm = 0.01, 0.05
    recipe = make_recipe(
        **FULL_BATCH,
        strategy={"name": "l2_sp", "strength": 100.0},
        learning_rate=rate,
        weight_decay=0,
        clip_norm=clip_norm,
    )
    run = make_run(recipe)
    state = run.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["momentum"] = 0.0
    body = [name for name, param in named_params(run.model).items() if param.depth > 0]
    moved = {name: state["model"][name] + 0.01 for name in body}  # so that the pull dominates the gradient
    run.load_state_dict({**state, "model": {**state["model"], **moved}})
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    epoch = next(iter(run))
    steps = [after.detach() - old for after, old in zip(run.model.parameters(), before, strict=True)]
    assert float(torch.cat([step.flatten() for step in steps]).double().norm()) == pytest.approx(
        rate * clip_norm, rel=1e-3
    )
    numbers = sum(tensor.numel() for tensor in moved.values())
    assert epoch.gradient_norm == pytest.approx(100 * 0.01 * numbers**0.5, rel=0.05), "must be the norm before clipping"
