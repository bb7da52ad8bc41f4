"""Closed-form heads, fitted heads and lp_ft, compared with scikit-learn and with the conditions that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from torch import nn
from torch.nn import functional

from xfer.data.loader import iter_batches
from xfer.linear_heads import fit_closed_form, fit_head, logistic_path, ridge_path
from xfer.methods.heads import HEADS
from xfer.models.params import named_params
from xfer.training.networks import build_preprocessor

PENALTIES = (1e-3, 0.1, 1.0, 30.0, 1e4)
SHAPES = {"more images than features": (60, 8), "more features than images": (20, 50), "as many": (24, 24)}


each_fit = pytest.mark.parametrize(
    "fit",
    [lambda *args: ridge_path(*args, [1.0])[0], lambda *args: logistic_path(*args, [1.0])[0]],
    ids=["ridge", "logistic"],
)


def examples(images, width, classes=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + torch.randn(images, width, generator=generator) + 2.0, labels


def one_hot(labels, classes=3):
    return functional.one_hot(labels, classes).double().numpy()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_head_of_a_ridge_path_equals_scikit_learns(shape):
    features, labels = examples(*shape)
    for penalty, (weight, bias) in zip(PENALTIES, ridge_path(features, labels, 3, PENALTIES), strict=True):
        reference = Ridge(alpha=penalty, solver="svd").fit(features.double().numpy(), one_hot(labels))
        np.testing.assert_allclose(weight, reference.coef_, atol=1e-6, rtol=1e-6)
        np.testing.assert_allclose(bias, reference.intercept_, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_ridge_head_predicts_like_scikit_learns_classifier(shape):
    features, labels = examples(*shape)
    others, _ = examples(shape[0] + 30, shape[1])
    for penalty, (weight, bias) in zip(PENALTIES, ridge_path(features, labels, 3, PENALTIES), strict=True):
        reference = RidgeClassifier(alpha=penalty, solver="svd").fit(features.double().numpy(), labels.numpy())
        predicted = functional.linear(others, weight, bias).argmax(dim=1)
        assert predicted.tolist() == reference.predict(others.double().numpy()).tolist()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_a_logistic_head_equals_scikit_learns(shape, penalty):
    features, labels = examples(*shape)
    [(weight, bias)] = logistic_path(features, labels, 3, [penalty])
    reference = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=20_000)
    reference.fit(features.double().numpy(), labels.numpy())
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-4)
    # Only differences between biases matter, and biases are not penalised.
    np.testing.assert_allclose(bias - bias.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-3)


def test_the_bias_is_not_penalised():
    features, labels = examples(60, 8)
    (_, bias), (weight, _) = ridge_path(features, labels, 3, [1e12])[0], ridge_path(features, labels, 3, [1e12])[0]
    assert weight.abs().max() < 1e-6
    np.testing.assert_allclose(bias, [1 / 3] * 3, atol=1e-6)


@each_fit
def test_a_class_without_images_is_never_predicted(fit):
    features, labels = examples(30, 8)
    weight, bias = fit(features, labels, 5)
    assert (weight.shape, bias.shape) == ((5, 8), (5,))
    assert weight.dtype == bias.dtype == torch.float32
    assert functional.linear(features, weight, bias).argmax(dim=1).max() < 3


@each_fit
def test_fitting_draws_no_random_numbers_and_does_not_modify_its_input(fit):
    features, labels = examples(30, 40)
    before, state = features.clone(), torch.get_rng_state()
    first, second = fit(features, labels, 3), fit(features, labels, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(features, before)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_not_positive_and_finite_is_refused(penalty):
    features, labels = examples(30, 8)
    with pytest.raises(ValueError, match=f"penalty must be above 0 and finite, got {penalty}"):
        ridge_path(features, labels, 3, [1.0, penalty])
    with pytest.raises(ValueError, match=f"penalty must be above 0 and finite, got {penalty}"):
        logistic_path(features, labels, 3, [1.0, penalty])


@pytest.mark.parametrize("how", ["ridge", "logistic"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_head_does_not_depend_on_the_other_penalties(how, shape):
    features, labels = examples(*shape)
    for penalty, head in zip(PENALTIES, fit_closed_form(how, features, labels, 3, PENALTIES), strict=True):
        [alone] = fit_closed_form(how, features, labels, 3, [penalty])
        assert all(torch.equal(one, other) for one, other in zip(head, alone, strict=True))


def test_badly_scaled_constant_and_duplicate_features_are_fitted_without_a_warning(caplog):
    features, labels = examples(200, 30)
    features = torch.cat([features * 10.0 ** torch.linspace(-2, 1, 30), torch.ones(200, 2), features[:, :3]], dim=1)
    [(weight, bias)] = logistic_path(features, labels, 3, [1.0])
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=50_000).fit(features.double().numpy(), labels.numpy())
    ours = functional.linear(features, weight, bias).softmax(dim=1)
    np.testing.assert_allclose(ours, reference.predict_proba(features.double().numpy()), atol=1e-3)
    assert caplog.text == ""


def test_a_fit_that_does_not_converge_logs_a_warning(monkeypatch, caplog):
    monkeypatch.setattr("xfer.linear_heads.MAX_STEPS", 3)
    logistic_path(*examples(60, 8), 3, [0.01])
    assert "a logistic head has not converged after 3 iterations" in caplog.text


# fit_head


@pytest.fixture
def overlapping():
    """60 embeddings of width 8 in 3 overlapping classes, as [N, D] and labels [N]."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 8, generator=generator)
    return centres[labels] + 1.5 * torch.randn(60, 8, generator=generator), labels


def linear(seed=0, width=8, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, classes)


def penalised_gradient(head, embeddings, labels):
    """Gradient of |w|^2 / 2 plus the sum of losses, divided by the number of examples; biases are not penalised."""
    loss = functional.cross_entropy(head(embeddings), labels) + head.weight.square().sum() / 2 / len(labels)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, [head.weight, head.bias])])


def test_a_fitted_linear_head_equals_scikit_learns_logistic_regression(overlapping):
    embeddings, labels = overlapping
    head = linear()
    fit_head(head, embeddings, labels)
    reference = LogisticRegression(C=1, tol=1e-8, max_iter=1000).fit(embeddings.numpy(), labels.numpy())
    np.testing.assert_allclose(head.weight.detach().numpy(), reference.coef_, atol=2e-3)
    ours, theirs = head(embeddings).softmax(1).detach().numpy(), reference.predict_proba(embeddings.numpy())
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_the_result_is_stationary_and_does_not_depend_on_the_initial_weights(overlapping):
    results = []
    for seed in (0, 1):
        head = linear(seed)
        assert penalised_gradient(head, *overlapping).norm() > 0.1
        fit_head(head, *overlapping)
        assert penalised_gradient(head, *overlapping).norm() < 1e-3
        results.append(head.weight.detach())
    torch.testing.assert_close(*results, atol=2e-3, rtol=0)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_penalty_is_the_inverse_of_scikit_learns_c(overlapping, penalty):
    head = linear()
    fit_head(head, *overlapping, penalty=penalty)
    reference = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(
        *(tensor.numpy() for tensor in overlapping)
    )
    np.testing.assert_allclose(head.weight.detach(), reference.coef_, atol=2e-3)


def test_fit_head_returns_the_cross_entropy_without_the_penalty(overlapping):
    head = linear()
    before = functional.cross_entropy(head(overlapping[0]), overlapping[1]).item()
    loss = fit_head(head, *overlapping)
    assert loss == pytest.approx(functional.cross_entropy(head(overlapping[0]), overlapping[1]).item())
    assert loss < before


def test_separable_classes_do_not_drive_the_weights_to_infinity():
    labels = torch.arange(40) % 2
    embeddings = torch.eye(2)[labels] * 100
    head = linear(width=2, classes=2)
    assert fit_head(head, embeddings, labels) < 0.01
    assert head.weight.norm() < 1


def test_fitting_a_head_twice_gives_the_same_bits_and_draws_no_random_numbers(overlapping):
    heads = [linear(), linear()]
    state = torch.get_rng_state()
    for head in heads:
        fit_head(head, *overlapping)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)


@pytest.mark.parametrize("name", HEADS)
def test_every_kind_of_head_can_be_fitted(overlapping, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = HEADS[name]()(8, 3)
    before = functional.cross_entropy(head(overlapping[0]), overlapping[1]).item()
    assert fit_head(head, *overlapping) < before


# Runs of lp_ft


def after_fit(make_recipe, make_run, network="test_efficientnet", **changes):
    """Returns a Run of lp_ft after one epoch whose only step has a learning rate of 0, and its state before.

    Batch norm is frozen, so that nothing but the fitted head can have changed.
    """
    # A warm-up starts at 0, and the batch holds all 24 training images.
    one_step = {"schedule": "cosine_warmup", "batch_size": 24, "batch_norm": "frozen"}
    run = make_run(make_recipe(**{"strategy": "lp_ft", "backbone": network, **one_step, **changes}))
    start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    next(iter(run))
    return run, start


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet", "test_vit"])
def test_lp_ft_starts_with_a_stationary_head_and_an_unchanged_body(make_recipe, make_run, network):
    run, start = after_fit(make_recipe, make_run, network)
    head = run.model.get_classifier()
    ((images, labels),) = iter_batches(run.pack, run.split.train, 24)
    run.model.eval()
    with torch.no_grad():
        inputs = build_preprocessor(run.recipe, run.model, torch.device("cpu"))(images)
        embeddings = run.model.forward_head(run.model.forward_features(inputs), pre_logits=True)
    assert penalised_gradient(head, embeddings, labels).norm() < 1e-3
    reference = LogisticRegression(C=1, tol=1e-8, max_iter=5000).fit(embeddings.numpy(), labels.numpy())
    ours, theirs = head(embeddings).softmax(1).detach().numpy(), reference.predict_proba(embeddings.numpy())
    np.testing.assert_allclose(ours, theirs, atol=5e-3)
    params = named_params(run.model)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name, param in params.items() if param.depth == 0}


def test_the_start_accuracy_is_that_of_the_fitted_head(make_recipe, make_run):
    run, _ = after_fit(make_recipe, make_run)
    start = run.record().start_accuracy
    assert start == run.evaluate("val").accuracy
    naive, _ = after_fit(make_recipe, make_run, strategy="naive")
    assert start > naive.record().start_accuracy


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_lp_ft_starts_from_exactly_the_head_of_the_logistic_probe(make_recipe, make_run, penalty):
    probe = make_run(make_recipe(strategy={"name": "logistic_probe", "penalty": penalty}, backbone="test_efficientnet"))
    list(probe)
    run, _ = after_fit(make_recipe, make_run, strategy={"name": "lp_ft", "penalty": penalty})
    assert torch.equal(run.model.classifier.weight, probe.model.classifier.weight)
    assert torch.equal(run.model.classifier.bias, probe.model.classifier.bias)
    assert run.record().start_accuracy == probe.record().val_accuracy


def test_a_head_of_several_layers_is_fitted_from_its_initial_weights(make_recipe, make_run):
    run, start = after_fit(make_recipe, make_run, head="mlp")
    assert not torch.equal(run.model.get_classifier()[0].weight, start["classifier.0.weight"])
    assert run.record().start_accuracy > 1 / 3


def test_naive_does_not_fit_its_head(make_recipe, make_run):
    run, start = after_fit(make_recipe, make_run, strategy="naive")
    assert torch.equal(run.model.classifier.weight, start["classifier.weight"])


@pytest.mark.parametrize("strategy", ["lp_ft", "logistic_probe", "ridge_probe"])
def test_a_head_is_fitted_on_the_recipes_training_images_only(make_recipe, make_run, monkeypatch, strategy):
    fitted_labels = []
    monkeypatch.setattr(
        "xfer.training.learner.fit_closed_form",
        lambda how, *args: fitted_labels.append(args[1]) or fit_closed_form(how, *args),
    )
    list(make_run(make_recipe(strategy=strategy, images_per_class=2)))
    assert [sorted(labels.tolist()) for labels in fitted_labels] == [[0, 0, 1, 1, 2, 2]]


def test_a_head_is_fitted_without_augmentation_mixing_and_dropout(make_recipe, make_run):
    heads = []
    for changes in ({}, {"augmentation": "randaugment", "mixing": "cutmix", "backbone_args": {"drop_rate": 0.5}}):
        run, _ = after_fit(make_recipe, make_run, **changes)
        heads.append(run.model.classifier.weight.detach().clone())
    assert torch.equal(*heads)


def test_a_resumed_run_does_not_fit_its_head_again(make_recipe, make_run, tmp_path, monkeypatch):
    recipe = make_recipe(strategy="lp_ft")
    next(iter(make_run(recipe, tmp_path)))
    monkeypatch.setattr("xfer.training.learner.fit_closed_form", None)
    assert [epoch.epoch for epoch in make_run(recipe, tmp_path)] == [2]
