"""Losses against torch's own and against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

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


def test_cross_entropy_on_labels_is_torchs_own(logits, labels):
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(LOSSES["cross_entropy"]()(logits, one_hot(labels)), expected)


def test_cross_entropy_on_mixed_targets_is_the_expected_negative_log_likelihood(logits, soft):
    expected = -(soft * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(LOSSES["cross_entropy"]()(logits, soft), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_spreads_its_share_over_all_classes(logits, labels, soft, smoothing):
    for targets in (one_hot(labels), soft):
        smoothed = (1 - smoothing) * targets + smoothing / C
        expected = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1)
        torch.testing.assert_close(LOSSES["label_smoothing"](smoothing)(logits, targets), expected)


def test_label_smoothing_is_torchs_own_and_a_tenth_unless_said_otherwise(logits, labels):
    expected = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(LOSSES["label_smoothing"]()(logits, one_hot(labels)), expected)
