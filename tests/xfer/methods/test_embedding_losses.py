"""Embedding losses compared with their formulas, pair by pair and triplet by triplet."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch

from xfer.methods.embedding_losses import EMBEDDING_LOSSES, EmbeddingLoss

N, D, C = 12, 6, 4
TERMS = [name for name in EMBEDDING_LOSSES if name != "none"]
MARGINS = {
    "contrastive": ("pair_margin", 2.0),
    "triplet": ("triplet_margin", 4.0),
    "arcface": ("angular_margin", math.pi / 2),
}
"""Parameter name and largest valid value of each margin."""
DEFAULTS = {"contrastive": 1.0, "triplet": 0.2, "arcface": 0.5}


def build(name, width=D, classes=C, **values):
    torch.manual_seed(0)
    return EMBEDDING_LOSSES[name](**values).build(width, classes).double()


@pytest.fixture
def embeddings():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.fixture
def labels():
    return torch.arange(N) % C


def unit(embeddings):
    return embeddings / embeddings.square().sum(dim=1, keepdim=True).sqrt()


def distance(first, second):
    return (first - second).square().sum().sqrt()


def mean_of_positive(values):
    above = [value for value in values if value > 0]
    return sum(above) / len(above) if above else torch.zeros(())


def contrastive_by_hand(module, embeddings, labels, margin):
    points = unit(embeddings)
    same, other = [], []
    for i, j in itertools.permutations(range(len(points)), 2):
        apart = distance(points[i], points[j])
        if labels[i] == labels[j]:
            same.append(apart)
        else:
            other.append((margin - apart).clamp(min=0))
    return mean_of_positive(same) + mean_of_positive(other)


def triplet_by_hand(module, embeddings, labels, margin):
    points = unit(embeddings)
    violations = []
    for a, p, n in itertools.permutations(range(len(points)), 3):
        if labels[a] == labels[p] != labels[n]:
            gap = distance(points[a], points[n]) ** 2 - distance(points[a], points[p]) ** 2
            if 0 < gap <= margin:
                violations.append(margin - gap)
    return mean_of_positive(violations)


def arcface_by_hand(module, embeddings, labels, margin, scale=64.0):
    centres = unit(module.W.T)
    losses = []
    for point, label in zip(unit(embeddings), labels.tolist(), strict=True):
        logits = []
        for k, centre in enumerate(centres):
            angle = (point @ centre).acos()
            beyond = angle + margin > math.pi  # there the cosine would rise again; the authors continue linearly
            with_margin = angle.cos() - margin * math.sin(margin) if beyond else (angle + margin).cos()
            logits.append(scale * (with_margin if k == label else angle.cos()))
        losses.append(torch.stack(logits).logsumexp(dim=0) - logits[label])
    return sum(losses) / len(losses)


BY_HAND = {"contrastive": contrastive_by_hand, "triplet": triplet_by_hand, "arcface": arcface_by_hand}


def test_every_term_has_a_reference_formula_and_none_builds_nothing():
    assert EMBEDDING_LOSSES.keys() == {"none", *BY_HAND}
    assert EMBEDDING_LOSSES["none"]() is None


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", TERMS)
def test_a_term_and_its_gradient_equal_the_formula(name, fraction, embeddings, labels):
    parameter, largest = MARGINS[name]
    margin = fraction * largest
    module = build(name, **{parameter: margin})
    expected = BY_HAND[name](module, embeddings, labels, margin)
    assert expected > 0
    torch.testing.assert_close(module(embeddings, labels), expected, rtol=0, atol=1e-6)
    (ours,) = torch.autograd.grad(module(embeddings, labels), embeddings)
    (theirs,) = torch.autograd.grad(expected, embeddings)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "margin"), DEFAULTS.items())
def test_the_default_margin_is_the_published_one(name, margin, embeddings, labels):
    default, explicit = build(name), build(name, **{MARGINS[name][0]: margin})
    torch.testing.assert_close(default(embeddings, labels), explicit(embeddings, labels))


def test_the_default_scale_of_arcface_is_64(embeddings, labels):
    for module, scale in ((build("arcface"), 64.0), (build("arcface", scale=16.0), 16.0)):
        expected = arcface_by_hand(module, embeddings, labels, 0.5, scale)
        torch.testing.assert_close(module(embeddings, labels), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_a_scalar_with_a_gradient_independent_of_the_embeddings_norms(name, embeddings, labels):
    module = build(name)
    loss = module(embeddings, labels)
    assert loss.shape == ()
    torch.autograd.backward(loss)
    assert embeddings.grad.abs().sum() > 0
    torch.testing.assert_close(module(7 * embeddings, labels), loss)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_keeps_the_precision_of_its_embeddings(name, embeddings, labels):
    torch.manual_seed(0)
    module = EMBEDDING_LOSSES[name]().build(D, C)
    assert module(embeddings.float(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    "labels", [[0], [0, 1, 2, 3], [1, 1, 1], [0, 0, 1]], ids=["one image", "no pair of a class", "one class", "a few"]
)
@pytest.mark.parametrize("name", TERMS)
def test_a_small_batch_has_a_finite_loss_and_gradient(name, labels, embeddings):
    part = embeddings[: len(labels)].detach().requires_grad_()
    module = build(name)
    loss = module(part, torch.tensor(labels))
    torch.autograd.backward(loss)
    assert loss.isfinite()
    assert part.grad.isfinite().all()
    expected = BY_HAND[name](module, part, torch.tensor(labels), DEFAULTS[name])
    torch.testing.assert_close(loss, expected.to(loss), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "labels"),
    [("contrastive", [0]), ("triplet", [0]), ("triplet", [0, 1, 2, 3]), ("triplet", [1, 1, 1])],
)
def test_a_batch_without_a_pair_or_triplet_has_a_loss_of_0(name, labels, embeddings):
    part = embeddings[: len(labels)].detach().requires_grad_()
    loss = build(name)(part, torch.tensor(labels))
    torch.autograd.backward(loss)
    assert loss == 0
    assert torch.equal(part.grad, torch.zeros_like(part))


@pytest.mark.parametrize("name", TERMS)
def test_identical_embeddings_have_a_finite_gradient(name):
    module = build(name).float()
    labels = torch.arange(40) % C
    towards = module.W.detach().T[labels] if name == "arcface" else torch.ones(40, D)
    embeddings = (3 * towards).requires_grad_()
    torch.autograd.backward(module(embeddings, labels))
    assert embeddings.grad.isfinite().all()


def test_only_arcface_has_parameters_one_centre_per_class():
    assert [tuple(parameter.shape) for parameter in build("arcface").parameters()] == [(D, C)]
    assert [*build("contrastive").parameters(), *build("triplet").parameters()] == []


def test_the_centres_of_arcface_get_a_gradient(embeddings, labels):
    module = build("arcface")
    torch.autograd.backward(module(embeddings, labels))
    assert module.W.grad.abs().sum() > 0


@pytest.mark.parametrize("name", TERMS)
def test_building_depends_on_torchs_seed_and_evaluating_draws_nothing(name, embeddings, labels):
    first, second = build(name), build(name)
    before = torch.get_rng_state()
    assert torch.equal(first(embeddings, labels), second(embeddings, labels))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize("name", TERMS)
def test_the_state_of_a_term_can_be_saved_and_loaded(name, embeddings, labels):
    first = build(name)
    torch.manual_seed(1)
    second = EMBEDDING_LOSSES[name]().build(D, C).double()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(embeddings, labels), second(embeddings, labels))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_has_a_weight(name):
    assert EMBEDDING_LOSSES[name]().weight == 1.0
    term = EMBEDDING_LOSSES[name](weight=0.25)
    assert isinstance(term, EmbeddingLoss)
    assert term.weight == 0.25


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_not_positive_and_finite_is_refused(name, value):
    with pytest.raises(
        ValueError, match=f"weight must be above 0, got {value}; for no such term use embedding_loss none"
    ):
        EMBEDDING_LOSSES[name](weight=value)


@pytest.mark.parametrize("name", TERMS)
def test_a_margin_out_of_range_is_refused(name):
    parameter, largest = MARGINS[name]
    for value in (0.0, -0.1, largest + 0.01, float("nan")):
        with pytest.raises(ValueError, match=f"{parameter} must be above 0 and at most {largest:.4g}, got {value}"):
            EMBEDDING_LOSSES[name](**{parameter: value})
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        EMBEDDING_LOSSES["arcface"](scale=0.0)


@pytest.mark.parametrize("name", TERMS)
def test_without_the_library_the_error_says_what_to_install(name, monkeypatch):
    term = EMBEDDING_LOSSES[name]()  # choosing it does not need the library
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ValueError, match=r"pip install 'xfer\[metric\]'"):
        term.build(D, C)
