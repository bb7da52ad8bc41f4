"""A head fitted to convergence: the same as logistic regression, and what lp_ft begins with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from xfer.linear_heads import fit_closed_form, fit_head
from xfer.methods.heads import HEADS
from xfer.models.params import named_params
from xfer.run import Run


@pytest.fixture
def examples():
    """60 embeddings of width 8 in 3 classes that overlap, as [N, D] and labels [N]."""
    chance = torch.Generator().manual_seed(3)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 8, generator=chance)
    return centres[labels] + 1.5 * torch.randn(60, 8, generator=chance), labels


def linear(seed=0, width=8, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, classes)


def penalised_gradient(head, embeddings, labels):
    """The gradient of |w|^2 / 2 plus the sum of losses, over the number of examples; biases are not penalised."""
    loss = functional.cross_entropy(head(embeddings), labels) + head.weight.square().sum() / 2 / len(labels)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, [head.weight, head.bias])])


def test_a_linear_head_becomes_the_logistic_regression_of_scikit_learn(examples):
    embeddings, labels = examples
    head = linear()
    fit_head(head, embeddings, labels)
    reference = LogisticRegression(C=1, tol=1e-8, max_iter=1000).fit(embeddings.numpy(), labels.numpy())
    np.testing.assert_allclose(head.weight.detach().numpy(), reference.coef_, atol=2e-3)
    ours, theirs = head(embeddings).softmax(1).detach().numpy(), reference.predict_proba(embeddings.numpy())
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_the_end_is_a_stationary_point_and_does_not_depend_on_the_start(examples):
    ends = []
    for seed in (0, 1):
        head = linear(seed)
        assert penalised_gradient(head, *examples).norm() > 0.1
        fit_head(head, *examples)
        assert penalised_gradient(head, *examples).norm() < 1e-3
        ends.append(head.weight.detach())
    torch.testing.assert_close(*ends, atol=2e-3, rtol=0)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_penalty_is_the_inverse_of_scikit_learns_c(examples, penalty):
    head = linear()
    fit_head(head, *examples, penalty=penalty)
    reference = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(*(each.numpy() for each in examples))
    np.testing.assert_allclose(head.weight.detach(), reference.coef_, atol=2e-3)


def test_it_says_the_cross_entropy_without_the_penalty(examples):
    head = linear()
    before = functional.cross_entropy(head(examples[0]), examples[1]).item()
    found = fit_head(head, *examples)
    assert found == pytest.approx(functional.cross_entropy(head(examples[0]), examples[1]).item())
    assert found < before


def test_separable_classes_do_not_drive_the_weights_to_infinity():
    labels = torch.arange(40) % 2
    embeddings = torch.eye(2)[labels] * 100
    head = linear(width=2, classes=2)
    assert fit_head(head, embeddings, labels) < 0.01
    assert head.weight.norm() < 1


def test_fitting_twice_gives_the_same_bits_and_draws_nothing(examples):
    heads = [linear(), linear()]
    state = torch.get_rng_state()
    for head in heads:
        fit_head(head, *examples)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)


@pytest.mark.parametrize("name", HEADS)
def test_every_kind_of_head_can_be_fitted(examples, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = HEADS[name]()(8, 3)
    before = functional.cross_entropy(head(examples[0]), examples[1]).item()
    assert fit_head(head, *examples) < before


# In a run of lp_ft


def begun(make_recipe, make_run, network="test_efficientnet", **changes):
    """A Run of lp_ft as it stands after its first epoch at a rate of all but nothing."""
    plain = {"strategy": "lp_ft", "backbone": network, "learning_rate": 1e-9, "weight_decay": 0.0}
    recipe = make_recipe(**{**plain, **changes})
    run = make_run(recipe)
    start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run._begin()
    return run, start


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet", "test_vit"])
def test_before_the_first_step_the_head_stands_where_its_gradient_vanishes_and_the_body_where_it_stood(
    make_recipe, make_run, network
):
    run, start = begun(make_recipe, make_run, network)
    head = run.model.get_classifier()
    (batch,) = run._batches(run.split.train)
    run.model.eval()
    with torch.no_grad():
        inputs = run.inputs.transform.prepare(batch[0])
        embeddings = run.model.forward_head(run.model.forward_features(inputs), pre_logits=True)
    assert penalised_gradient(head, embeddings, batch[1]).norm() < 1e-3
    reference = LogisticRegression(C=1, tol=1e-8, max_iter=5000).fit(embeddings.numpy(), batch[1].numpy())
    ours, theirs = head(embeddings).softmax(1).detach().numpy(), reference.predict_proba(embeddings.numpy())
    np.testing.assert_allclose(ours, theirs, atol=5e-3)
    params = named_params(run.model)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name, param in params.items() if param.depth == 0}


def test_the_start_accuracy_is_that_of_the_fitted_head(make_recipe, make_run):
    run, _ = begun(make_recipe, make_run)
    start = run.record().start_accuracy
    assert start == run.evaluate("val").accuracy
    plain = make_run(make_recipe(strategy="naive"))
    plain._begin()
    assert start > plain.record().start_accuracy


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_lp_ft_starts_from_the_very_head_of_the_logistic_probe_with_its_penalty(make_recipe, make_run, penalty):
    probe = make_run(make_recipe(strategy={"name": "logistic_probe", "penalty": penalty}, backbone="test_efficientnet"))
    list(probe)
    run, _ = begun(make_recipe, make_run, strategy={"name": "lp_ft", "penalty": penalty})
    assert torch.equal(run.model.classifier.weight, probe.model.classifier.weight)
    assert torch.equal(run.model.classifier.bias, probe.model.classifier.bias)
    assert run.record().start_accuracy == probe.record().val_accuracy


def test_a_head_of_several_layers_is_fitted_from_where_it_stands(make_recipe, make_run):
    run, start = begun(make_recipe, make_run, head="mlp")
    before = run.model.get_classifier()
    assert not torch.equal(before[0].weight, start["classifier.0.weight"])
    assert run.record().start_accuracy > 1 / 3


def test_only_strategies_that_say_so_fit_their_head(make_recipe, make_run):
    run = make_run(make_recipe(strategy="naive"))
    before = run.model.classifier.weight.detach().clone()
    run._begin()
    assert torch.equal(run.model.classifier.weight, before)


@pytest.mark.parametrize("strategy", ["lp_ft", "logistic_probe", "ridge_probe"])
def test_a_head_is_fitted_on_training_images_alone_and_on_no_more_than_the_recipe_allows(
    make_recipe, make_run, monkeypatch, strategy
):
    asked = []
    monkeypatch.setattr(
        "xfer.training.learner.fit_closed_form",
        lambda how, *given: asked.append(given[1]) or fit_closed_form(how, *given),
    )
    list(make_run(make_recipe(strategy=strategy, images_per_class=2)))
    assert [sorted(labels.tolist()) for labels in asked] == [[0, 0, 1, 1, 2, 2]]


def test_a_head_is_fitted_to_the_images_as_they_are_whatever_is_done_to_them_in_training(make_recipe, make_run):
    heads = []
    for changes in ({}, {"augmentation": "randaugment", "mixing": "cutmix", "backbone_args": {"drop_rate": 0.5}}):
        run, _ = begun(make_recipe, make_run, **changes)
        heads.append(run.model.classifier.weight.detach().clone())
    assert torch.equal(*heads)


def test_a_resumed_run_does_not_fit_its_head_again(make_recipe, make_run, tmp_path, monkeypatch):
    recipe = make_recipe(strategy="lp_ft")
    next(iter(make_run(recipe, tmp_path)))
    monkeypatch.setattr("xfer.training.learner.fit_closed_form", None)
    resumed = make_run(recipe, tmp_path)
    assert isinstance(resumed, Run)
    assert [epoch.epoch for epoch in resumed] == [2]
