"""Heads in closed form against scikit-learn's, and against the conditions that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from torch.nn import functional

from xfer.linear_heads import fit_closed_form, logistic_path, ridge_path

PENALTIES = (1e-3, 0.1, 1.0, 30.0, 1e4)
SHAPES = {"more images than features": (60, 8), "more features than images": (20, 50), "as many": (24, 24)}


def examples(images, width, classes=3):
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, width, generator=chance)
    return centres[labels] + torch.randn(images, width, generator=chance) + 2.0, labels


def one_hot(labels, classes=3):
    return functional.one_hot(labels, classes).double().numpy()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_head_of_a_ridge_path_is_scikit_learns_for_its_penalty(shape):
    features, labels = examples(*shape)
    for penalty, (weight, bias) in zip(PENALTIES, ridge_path(features, labels, 3, PENALTIES), strict=True):
        reference = Ridge(alpha=penalty, solver="svd").fit(features.double().numpy(), one_hot(labels))
        np.testing.assert_allclose(weight, reference.coef_, atol=1e-6, rtol=1e-6)
        np.testing.assert_allclose(bias, reference.intercept_, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_ridge_head_names_the_classes_that_scikit_learns_classifier_names(shape):
    features, labels = examples(*shape)
    others, _ = examples(shape[0] + 30, shape[1])
    for penalty, (weight, bias) in zip(PENALTIES, ridge_path(features, labels, 3, PENALTIES), strict=True):
        reference = RidgeClassifier(alpha=penalty, solver="svd").fit(features.double().numpy(), labels.numpy())
        said = functional.linear(others, weight, bias).argmax(dim=1)
        assert said.tolist() == reference.predict(others.double().numpy()).tolist()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_a_logistic_head_is_scikit_learns(shape, penalty):
    features, labels = examples(*shape)
    [(weight, bias)] = logistic_path(features, labels, 3, [penalty])
    reference = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=20_000)
    reference.fit(features.double().numpy(), labels.numpy())
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-4)
    # A shift of all biases changes nothing, and is not penalised.
    np.testing.assert_allclose(bias - bias.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-3)


def test_the_bias_is_not_penalised():
    features, labels = examples(60, 8)
    (_, bias), (weight, _) = ridge_path(features, labels, 3, [1e12])[0], ridge_path(features, labels, 3, [1e12])[0]
    assert weight.abs().max() < 1e-6
    np.testing.assert_allclose(bias, [1 / 3] * 3, atol=1e-6)


@pytest.mark.parametrize(
    "fit",
    [lambda *args: ridge_path(*args, [1.0])[0], lambda *args: logistic_path(*args, [1.0])[0]],
    ids=["ridge", "logistic"],
)
def test_a_class_without_an_image_is_never_named(fit):
    features, labels = examples(30, 8)
    weight, bias = fit(features, labels, 5)
    assert (weight.shape, bias.shape) == ((5, 8), (5,))
    assert weight.dtype == bias.dtype == torch.float32
    assert functional.linear(features, weight, bias).argmax(dim=1).max() < 3


@pytest.mark.parametrize(
    "fit",
    [lambda *args: ridge_path(*args, [1.0])[0], lambda *args: logistic_path(*args, [1.0])[0]],
    ids=["ridge", "logistic"],
)
def test_fitting_draws_nothing_and_leaves_its_input_as_it_is(fit):
    features, labels = examples(30, 40)
    before, state = features.clone(), torch.get_rng_state()
    first, second = fit(features, labels, 3), fit(features, labels, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(features, before)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_without_a_penalty_there_is_no_single_answer(penalty):
    features, labels = examples(30, 8)
    with pytest.raises(ValueError, match=f"penalty is {penalty}; it must be above 0"):
        ridge_path(features, labels, 3, [1.0, penalty])
    with pytest.raises(ValueError, match=f"penalty is {penalty}; it must be above 0"):
        logistic_path(features, labels, 3, [1.0, penalty])


@pytest.mark.parametrize("how", ["ridge", "logistic"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_head_does_not_depend_on_which_other_penalties_are_asked_for(how, shape):
    features, labels = examples(*shape)
    for penalty, found in zip(PENALTIES, fit_closed_form(how, features, labels, 3, PENALTIES), strict=True):
        [alone] = fit_closed_form(how, features, labels, 3, [penalty])
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


def test_features_of_different_sizes_and_some_that_say_nothing_are_no_trouble(caplog):
    features, labels = examples(200, 30)
    features = torch.cat([features * 10.0 ** torch.linspace(-2, 1, 30), torch.ones(200, 2), features[:, :3]], dim=1)
    [(weight, bias)] = logistic_path(features, labels, 3, [1.0])
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=50_000).fit(features.double().numpy(), labels.numpy())
    ours = functional.linear(features, weight, bias).softmax(dim=1)
    np.testing.assert_allclose(ours, reference.predict_proba(features.double().numpy()), atol=1e-3)
    assert caplog.text == ""


def test_a_fit_that_was_cut_short_says_so(monkeypatch, caplog):
    monkeypatch.setattr("xfer.linear_heads.MAX_STEPS", 3)
    logistic_path(*examples(60, 8), 3, [0.01])
    assert "a logistic head is not quite the one after 3 iterations" in caplog.text
