"""Staying near the starting weights: the pull is the gradient of a penalty, in the place of weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xfer.methods.regularizers import L2SP

WITHOUT_CHANCE = {"optimizer": "sgd", "schedule": "constant", "batch_size": 24}


def test_the_pull_is_the_gradient_of_the_penalty():
    chance = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=chance)) for shape in ((3, 4), (5,), ())]
    start = [torch.randn(parameter.shape, generator=chance) for parameter in parameters]
    penalty = 0.7 / 2 * sum(((p - w0) ** 2).sum() for p, w0 in zip(parameters, start, strict=True))
    expected = torch.autograd.grad(penalty, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    L2SP(0.7).add_gradient(parameters, start)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 1)


def test_at_the_start_there_is_nothing_to_pull():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 2.0)
    L2SP(5.0).add_gradient([parameter], [torch.ones(3)])
    assert torch.equal(parameter.grad, torch.full((3,), 2.0))


def test_parameters_without_a_gradient_are_passed_over():
    frozen, moving = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    moving.grad = torch.zeros(3)
    L2SP(0.5).add_gradient([frozen, moving], [torch.zeros(3), torch.zeros(3)])
    assert frozen.grad is None
    assert torch.equal(moving.grad, torch.full((3,), 0.5))
    L2SP(0.5).add_gradient([frozen], [torch.zeros(3)])
    assert frozen.grad is None


def test_a_step_of_a_run_is_that_of_the_loss_with_the_penalty(make_recipe, make_run):
    strength, rate = 0.5, 0.01
    recipe = make_recipe(
        **WITHOUT_CHANCE, strategy={"name": "l2_sp", "strength": strength}, learning_rate=rate, weight_decay=0, epochs=2
    )
    plain = make_recipe(**WITHOUT_CHANCE, strategy="naive", learning_rate=rate, weight_decay=0, epochs=2)
    anchored, free = make_run(recipe), make_run(plain)
    start = dict(anchored.model.named_parameters())
    start = {name: tensor.detach().clone() for name, tensor in start.items()}
    trained = iter(anchored), iter(free)
    next(trained[0]), next(trained[1])
    halfway = {name: tensor.detach().clone() for name, tensor in anchored.model.named_parameters()}
    assert all(torch.equal(tensor, halfway[name]) for name, tensor in free.model.named_parameters()), "no pull yet"
    next(trained[0]), next(trained[1])
    for (name, one), (_, other) in zip(anchored.model.named_parameters(), free.model.named_parameters(), strict=True):
        pull = torch.zeros_like(one) if "classifier" in name else strength * (halfway[name] - start[name])
        torch.testing.assert_close(one, other - rate * pull, atol=1e-7, rtol=1e-5)


def test_the_body_is_not_decayed_beside_and_the_head_is(make_recipe, make_run):
    def decays(strategy):
        groups = make_run(make_recipe(strategy=strategy, weight_decay=0.3)).state_dict()["optimizer"]["param_groups"]
        return {(group["depth"] == 0, group["kind"]): group["weight_decay"] for group in groups}

    assert decays("naive")[False, "weight"] == decays("naive")[True, "weight"] == 0.3
    assert decays("l2_sp")[True, "weight"] == 0.3
    assert {decay for (head, _), decay in decays("l2_sp").items() if not head} == {0.0}


def test_the_stronger_the_anchor_the_nearer_the_network_stays(make_recipe, make_run):
    def distance(strategy):
        recipe = make_recipe(
            **WITHOUT_CHANCE, strategy=strategy, backbone="test_vit", learning_rate=0.02, weight_decay=0, epochs=6
        )
        return [epoch.distance for epoch in make_run(recipe)][-1]

    anchored = [distance({"name": "l2_sp", "strength": strength}) for strength in (0.5, 10.0)]
    assert distance("naive") > anchored[0] > anchored[1] > 0


def test_the_pull_is_clipped_with_the_rest_of_the_gradient(make_recipe, make_run):
    rate, clip_norm = 0.01, 0.05
    recipe = make_recipe(
        **WITHOUT_CHANCE,
        strategy={"name": "l2_sp", "strength": 100.0},
        learning_rate=rate,
        weight_decay=0,
        clip_norm=clip_norm,
    )
    run = make_run(recipe)
    for group in run.learner.optimizer.param_groups:
        group["momentum"] = 0.0
    for parameter, start in zip(run.learner.body_tensors(), run.learner.initial_body, strict=True):
        parameter.data.copy_(start + 0.01)  # so that the pull is by far the most of the gradient
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    epoch = next(iter(run))
    steps = [after.detach() - old for after, old in zip(run.model.parameters(), before, strict=True)]
    assert float(torch.cat([step.flatten() for step in steps]).double().norm()) == pytest.approx(
        rate * clip_norm, rel=1e-3
    )
    numbers = sum(start.numel() for start in run.learner.initial_body)
    assert epoch.gradient_norm == pytest.approx(100 * 0.01 * numbers**0.5, rel=0.05), "as it was before clipping"
