"""Assertions that two runs are equal within rounding."""

from __future__ import annotations

import pytest

FLOAT_FIELDS = ("train_loss", "val_loss", "gradient_norm", "distance")


def assert_same_epochs(run, expected, rel=1e-5):
    assert len(run.epochs) == len(expected.epochs)
    for epoch, expected_epoch in zip(run.epochs, expected.epochs, strict=True):
        for name in FLOAT_FIELDS:
            assert getattr(epoch, name) == pytest.approx(getattr(expected_epoch, name), rel=rel, abs=rel), name
        assert epoch.train_accuracy == expected_epoch.train_accuracy
        assert epoch.learning_rate == expected_epoch.learning_rate


def assert_same_weights(run, expected, rel=1e-5):
    state = run.model.state_dict()
    for name, tensor in expected.model.state_dict().items():
        difference = (state[name].double() - tensor.double()).norm()
        assert float(difference) <= rel * float(tensor.double().norm()) + 1e-8, name
