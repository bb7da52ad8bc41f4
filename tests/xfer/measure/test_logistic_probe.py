"""Logistic probe: choice of the penalty, and classes with few images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from xfer.linear_heads import logistic_path
from xfer.measure import logistic_probe
from xfer.measure.logistic_probe import DEFAULT_PENALTY, choose_penalty, logistic_probe_classes
from xfer.measure.transferability import stratified_folds


def test_the_chosen_penalty_has_the_lowest_cross_entropy_on_held_out_images() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = rng.normal(size=(40, 10)) + labels[:, None]
    penalties = (0.01, 1.0, 100.0)
    fold = stratified_folds(labels, 5, seed=3)
    losses = []
    for penalty in penalties:
        loss = 0.0
        for number in range(5):
            rows, held = (torch.from_numpy(features[part]) for part in (fold != number, fold == number))
            truth, held_truth = (torch.from_numpy(labels[part]) for part in (fold != number, fold == number))
            [(weight, bias)] = logistic_path(rows, truth, 2, (penalty,))
            loss += float(functional.cross_entropy(held.float() @ weight.T + bias, held_truth, reduction="sum"))
        losses.append(loss)
    assert len(set(losses)) == 3
    assert choose_penalty(features, labels, penalties, seed=3) == penalties[int(np.argmin(losses))]


def test_on_many_images_of_many_classes_one_fold_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    original = logistic_probe.logistic_path

    def count(rows: torch.Tensor, *args: Any) -> Any:
        fitted.append(len(rows))
        return original(rows, *args)

    monkeypatch.setattr(logistic_probe, "logistic_path", count)
    labels = np.arange(40) % 2
    choose_penalty(np.eye(2)[labels], labels)
    assert fitted == [32] * 5
    monkeypatch.setattr(logistic_probe, "MAX_LABEL_ENTRIES", 79)
    choose_penalty(np.eye(2)[labels], labels)
    assert fitted == [32] * 6


def test_noise_asks_for_the_largest_penalty_and_separated_classes_for_the_smallest() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    assert choose_penalty(rng.normal(size=(40, 30)), labels) == 100.0
    assert choose_penalty(np.eye(2)[labels] * 0.1, labels) == 0.01


def test_a_class_of_one_image_can_be_learned_and_is_no_error_in_cross_validation() -> None:
    features, labels = np.array([[1.0, 0], [1.1, 0], [0, 1.0], [0, 1.1], [-5.0, -5.0]]), np.array([0, 0, 4, 4, 7])
    penalty = choose_penalty(features, labels)
    assert logistic_probe_classes(features, labels, features, penalty).tolist() == [0, 0, 4, 4, 7]


@pytest.mark.parametrize("labels", [(0, 1, 2), (1, 1, 1)])
def test_without_anything_to_compare_the_penalty_is_the_default(labels: tuple[int, ...]) -> None:
    assert choose_penalty(np.eye(3), np.array(labels)) == DEFAULT_PENALTY


def test_a_single_class_is_always_predicted() -> None:
    assert logistic_probe_classes(np.eye(2), np.array([3, 3]), np.ones((4, 2)), 1.0).tolist() == [3] * 4
