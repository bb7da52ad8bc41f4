"""Gradient clipping, by norm or by value, composes with every strategy."""

from __future__ import annotations

import pytest
import torch

from xfer.methods.strategies import STRATEGIES

RATE = 0.01
ONE_STEP = {"batch_size": 24, "epochs": 4, "weight_decay": 0.0, "optimizer": "sgd", "schedule": "constant"}

STEPPING = [name for name in STRATEGIES if name not in ("ridge_probe", "logistic_probe")]

each_strategy = pytest.mark.parametrize("strategy", STEPPING)


def one_step(make_recipe, make_run, strategy, **changes):
    """The first step of plain SGD divided by each parameter's learning rate, and the gradient norm of the Epoch."""
    network = (
        {"backbone": "test_vit"} if strategy in ("lora", "drop_early") else {}
    )  # the default backbone does not support them
    run = make_run(make_recipe(**ONE_STEP, strategy=strategy, learning_rate=RATE, **network, **changes))
    before = {}
    original_step = run.learner.step

    def recorded_step(*args):
        before.update({parameter: parameter.detach().clone() for parameter in run.model.parameters()})
        return original_step(*args)

    run.learner.step = recorded_step
    epoch = next(iter(run))
    step = [
        (parameter.detach() - before[parameter]).flatten().double() / group["lr"]
        for group in run.learner.optimizer.param_groups
        for parameter in group["params"]
        if group["lr"]
    ]
    return torch.cat(step), epoch.gradient_norm


# By norm


@each_strategy
@pytest.mark.parametrize("clip_norm", [0.01, 0.04])
def test_no_step_is_longer_than_the_clip_norm(make_recipe, make_run, strategy, clip_norm):
    step, reported = one_step(make_recipe, make_run, strategy, clip_norm=clip_norm)
    assert float(step.norm()) == pytest.approx(clip_norm, rel=2e-3)
    assert reported > clip_norm, "the norm is reported as it was before clipping"


@each_strategy
def test_a_norm_within_the_limit_is_unchanged(make_recipe, make_run, strategy):
    step, reported = one_step(make_recipe, make_run, strategy, clip_norm=1e3)
    assert float(step.norm()) == pytest.approx(reported, rel=1e-3)


@pytest.mark.parametrize("strategy", sorted(set(STEPPING) - {"clip"}))
def test_without_clipping_the_gradient_is_unchanged(make_recipe, make_run, strategy):
    step, reported = one_step(make_recipe, make_run, strategy)
    assert float(step.norm()) == pytest.approx(reported, rel=1e-3)
    for limit in ({"clip_norm": 1e6}, {"clip_value": 1e6}):
        loose, norm = one_step(make_recipe, make_run, strategy, **limit)
        assert torch.equal(step, loose)
        assert reported == norm


def test_the_reported_norm_does_not_depend_on_clipping(make_recipe, make_run):
    limits = ({}, {"clip_norm": 0.01}, {"clip_norm": 1.0}, {"clip_value": 1e-4})
    assert len({one_step(make_recipe, make_run, "naive", **limit)[1] for limit in limits}) == 1


def test_clip_is_naive_with_a_norm_of_one(make_recipe, make_run):
    assert STRATEGIES["clip"]().clip_norm == 1.0
    runs = [make_run(make_recipe(strategy=strategy, clip_norm=1.0, epochs=3)) for strategy in ("clip", "naive")]
    for run in runs:
        list(run)
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_frozen_body_does_not_contribute_to_the_norm(make_recipe, make_run):
    _, probe = one_step(make_recipe, make_run, "linear_probe")
    run = make_run(make_recipe(**ONE_STEP, strategy="linear_probe", learning_rate=RATE))
    next(iter(run))
    head = [parameter.grad for parameter in run.model.get_classifier().parameters()]
    assert probe == pytest.approx(float(torch.cat([gradient.flatten() for gradient in head]).norm()), rel=1e-5)


# By value


@pytest.mark.parametrize("strategy", sorted(set(STEPPING) - {"clip"}))
def test_clipping_by_value_limits_large_entries_and_leaves_small_ones(make_recipe, make_run, strategy):
    unclipped, _ = one_step(make_recipe, make_run, strategy)
    limit = float(unclipped.abs().max()) / 4
    clipped, reported = one_step(make_recipe, make_run, strategy, clip_value=limit)
    torch.testing.assert_close(clipped, unclipped.clamp(-limit, limit), atol=1e-4 * limit, rtol=1e-3)
    assert not torch.equal(clipped, unclipped)
    assert reported == pytest.approx(float(unclipped.norm()), rel=1e-3), (
        "the norm is reported as it was before clipping"
    )


def test_clipping_by_norm_and_by_value_exclude_each_other(make_recipe):
    with pytest.raises(ValueError, match=r"clip_norm and clip_value cannot be combined, got 1 and 0\.5"):
        make_recipe(clip_norm=1.0, clip_value=0.5)
    with pytest.raises(ValueError, match=r"clip_norm and clip_value cannot be combined, got 1 and 0\.5"):
        make_recipe(strategy="clip", clip_value=0.5)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_an_invalid_limit_is_an_error(make_recipe, value):
    with pytest.raises(ValueError, match=f"clip_value must be between 1e-09 and 1e\\+06, got {value}"):
        make_recipe(clip_value=value)
