"""The clip norm is an axis of its own: it composes with every strategy."""

from __future__ import annotations

import pytest
import torch

from xfer.methods.strategies import STRATEGIES

RATE = 0.01
ONE_STEP = {"batch_size": 24, "epochs": 1, "weight_decay": 0.0, "optimizer": "sgd", "learning_rate": RATE}


def one_step(make_recipe, make_run, strategy, clip_norm, **changes):
    """The length of a single step of plain gradient descent over its rate, and what the Epoch says."""
    if strategy == "freeze_then_unfreeze":
        changes = {"epochs": 2, "strategy": {"name": strategy, "freeze_epochs": 1}, **changes}
    run = make_run(make_recipe(**{**ONE_STEP, "strategy": strategy, "clip_norm": clip_norm, **changes}))
    run._schedule = lambda progress: 1.0
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    epoch = next(iter(run))
    steps = [(parameter.detach() - old) for parameter, old in zip(run.model.parameters(), before, strict=True)]
    return float(torch.cat([step.flatten() for step in steps]).double().norm()) / RATE, epoch.gradient_norm


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("clip_norm", [0.01, 0.04])
def test_no_step_is_longer_than_the_clip_norm_allows(make_recipe, make_run, strategy, clip_norm):
    length, reported = one_step(make_recipe, make_run, strategy, clip_norm)
    assert length == pytest.approx(clip_norm, rel=1e-3)
    assert reported > clip_norm, "the norm is reported as it was before clipping"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_norm_within_the_limit_is_left_alone(make_recipe, make_run, strategy):
    length, reported = one_step(make_recipe, make_run, strategy, clip_norm=1e3)
    assert length == pytest.approx(reported, rel=1e-3)


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"clip"}))
def test_without_a_clip_norm_the_gradient_is_taken_as_it_is(make_recipe, make_run, strategy):
    length, reported = one_step(make_recipe, make_run, strategy, clip_norm=None)
    assert length == pytest.approx(reported, rel=1e-3)
    assert (length, reported) == one_step(make_recipe, make_run, strategy, clip_norm=1e6)


def test_the_reported_norm_does_not_depend_on_clipping(make_recipe, make_run):
    norms = {one_step(make_recipe, make_run, "naive", clip_norm)[1] for clip_norm in (None, 0.01, 1.0)}
    assert len(norms) == 1


def test_clip_is_naive_with_a_norm_of_one(make_recipe, make_run):
    assert STRATEGIES["clip"]().clip_norm == 1.0
    runs = [make_run(make_recipe(strategy=strategy, clip_norm=1.0, epochs=3)) for strategy in ("clip", "naive")]
    for run in runs:
        list(run)
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_frozen_body_has_no_part_in_the_norm(make_recipe, make_run):
    _, probe = one_step(make_recipe, make_run, "linear_probe", clip_norm=None)
    run = make_run(make_recipe(**{**ONE_STEP, "strategy": "linear_probe"}))
    list(run)
    head = [parameter.grad for parameter in run.model.get_classifier().parameters()]
    assert probe == pytest.approx(float(torch.cat([each.flatten() for each in head]).norm()), rel=1e-5)
