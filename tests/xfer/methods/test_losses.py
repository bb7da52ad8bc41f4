"""Losses compared with torch, torchvision and their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from xfer.methods.losses import LOSSES

N, C = 7, 5


@pytest.fixture
def logits():
    return torch.randn(N, C, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.arange(N) % C


@pytest.fixture
def soft():
    return torch.rand(N, C, generator=torch.Generator().manual_seed(1)).softmax(dim=1)


def one_hot(labels):
    return functional.one_hot(labels, C).float()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_number_per_example_with_a_gradient(name, logits, soft):
    logits.requires_grad_()
    values = LOSSES[name]()(logits, soft)
    assert values.shape == (N,)
    assert (values > 0).all()
    values.sum().backward()
    assert logits.grad.abs().sum() > 0


def test_cross_entropy_on_labels_equals_torchs(logits, labels):
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(LOSSES["cross_entropy"]()(logits, one_hot(labels)), expected)


def test_cross_entropy_on_mixed_targets_is_the_expected_negative_log_likelihood(logits, soft):
    expected = -(soft * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(LOSSES["cross_entropy"]()(logits, soft), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_spreads_its_fraction_over_all_classes(logits, labels, soft, smoothing):
    for targets in (one_hot(labels), soft):
        smoothed = (1 - smoothing) * targets + smoothing / C
        expected = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1)
        torch.testing.assert_close(LOSSES["label_smoothing"](smoothing)(logits, targets), expected)


def test_label_smoothing_equals_torchs_and_defaults_to_a_tenth(logits, labels):
    expected = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(LOSSES["label_smoothing"]()(logits, one_hot(labels)), expected)


def test_a_smoothing_fraction_out_of_range_is_refused():
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"smoothing must be at least 0 and below 1, got {smoothing}"):
            LOSSES["label_smoothing"](smoothing)


def focal_by_hand(logits, targets, gamma):
    """Equation (4) of Lin et al. 2017, image by image and class by class, weighted by the class's share."""
    values = []
    for row, shares in zip(logits, targets, strict=True):
        probabilities = row.exp() / row.exp().sum()
        terms = [-share * (1 - p) ** gamma * p.log() for share, p in zip(shares, probabilities, strict=True)]
        values.append(sum(terms))
    return torch.stack(values)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_equals_its_formula_on_labels_and_on_mixed_targets(logits, labels, soft, gamma):
    for targets in (one_hot(labels), soft):
        expected = focal_by_hand(logits, targets, gamma)
        torch.testing.assert_close(LOSSES["focal"](gamma)(logits, targets), expected)


def test_focal_with_gamma_0_is_cross_entropy_and_gamma_defaults_to_2(logits, soft):
    torch.testing.assert_close(LOSSES["focal"](0.0)(logits, soft), LOSSES["cross_entropy"]()(logits, soft))
    assert torch.equal(LOSSES["focal"]()(logits, soft), LOSSES["focal"](2.0)(logits, soft))


def test_focal_with_two_classes_equals_torchvisions(logits):
    margin = logits[:, 0]
    labels = torch.arange(N) % 2
    expected = sigmoid_focal_loss(margin, labels.float(), alpha=-1, gamma=2.0)
    two = torch.stack([torch.zeros(N), margin], dim=1)
    torch.testing.assert_close(LOSSES["focal"]()(two, functional.one_hot(labels, 2).float()), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_stays_finite_for_confidently_right_and_wrong_images(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    values = LOSSES["focal"](gamma)(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    values.sum().backward()
    assert values.tolist() == pytest.approx([0.0, 200.0])
    assert logits.grad.isfinite().all()


def test_a_negative_or_infinite_gamma_is_refused():
    for gamma in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"gamma must be at least 0 and finite, got {gamma}"):
            LOSSES["focal"](gamma)
