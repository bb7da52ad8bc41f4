"""Evaluation image by image: checked by hand where results are exact, against scikit-learn elsewhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from xfer.measure.accuracy import Predictions, calibration_error, evaluate, evaluate_logits, target_ranks


class Colour(nn.Module):
    """Outputs the mean of each channel; relies on dropout being off."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, images):
        return self.dropout(images.mean(dim=(2, 3)))


def evaluate_constant(logits, labels, batch_size=4):
    """Evaluates a network that outputs these logits [N, C] regardless of its input."""
    logits, labels = torch.as_tensor(logits), torch.as_tensor(labels)
    outputs = iter(logits.split(batch_size))
    batches = ((torch.zeros(len(chunk), 3, 2, 2, dtype=torch.uint8), chunk) for chunk in labels.split(batch_size))
    model = nn.Identity()
    return evaluate(model, batches, lambda pixels: next(outputs), "val", range(len(labels)))


def confident(*pairs, classes=3):
    """Logits whose softmax gives the class the probability, for each (class, probability)."""
    probabilities = torch.zeros(len(pairs), classes, dtype=torch.float64)
    for row, (predicted, probability) in enumerate(pairs):
        probabilities[row] = (1 - probability) / (classes - 1)
        probabilities[row, predicted] = probability
    return probabilities.log()


def test_with_flips_the_probabilities_for_an_image_and_its_mirror_image_are_averaged():
    class Left(nn.Module):
        """Outputs the brightness of the left column against three times that of the right one."""

        def forward(self, images):
            return torch.stack([images[:, 0, :, 0].mean(dim=1), 3 * images[:, 0, :, -1].mean(dim=1)], dim=1)

    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    images[0, :, :, 0] = 1  # logits 1 and 0, and mirrored 0 and 3
    images[1, :, :, 1] = 1  # the mirror image of the first
    images[2] = 1  # its own mirror image: logits 1 and 3
    batches = [(images[:2], torch.tensor([0, 1])), (images[2:], torch.tensor([0]))]
    evaluation = evaluate(Left(), batches, lambda pixels: pixels.float(), "test", range(3), flips=True)
    assert evaluation.correct == (True, True, False)
    assert evaluation.flip_correct == (False, True, False)
    assert evaluation.flip_accuracy == pytest.approx(1 / 3)
    plain = evaluate(Left(), batches, lambda pixels: pixels.float(), "test", range(3))
    assert plain == dataclasses.replace(evaluation, flip_correct=())


@pytest.fixture
def random_case():
    """Logits and labels of 200 images with 12 classes, two of which never occur."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(10, (200,), generator=generator)
    logits = torch.randn(200, 12, generator=generator) + 1.5 * functional.one_hot(labels, 12)
    return logits, labels


def test_an_evaluation_is_loss_and_correctness_image_by_image():
    images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    for index, channel in enumerate([0, 1, 2, 2, 1]):
        images[index, channel] = 3
    labels = torch.tensor([0, 1, 2, 0, 0])
    model = Colour().train()
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]  # of unequal size: the mean is over images
    evaluation = evaluate(model, batches, lambda pixels: pixels.float(), "val", [10, 11, 12, 40, 41])
    assert evaluation.correct == (True, True, True, False, False)
    assert evaluation.accuracy == 0.6
    assert (evaluation.part, evaluation.images) == ("val", (10, 11, 12, 40, 41))
    expected = functional.cross_entropy(images.float().mean(dim=(2, 3)), labels)
    assert evaluation.loss == pytest.approx(float(expected))
    assert not model.training


def test_evaluate_does_not_fill_noisy():
    assert evaluate_constant(confident((0, 0.9)), [0]).noisy == ()


def test_the_confusion_lists_each_occurring_pair_once_in_order():
    evaluation = evaluate_constant(
        confident((2, 0.9), (0, 0.9), (1, 0.9), (1, 0.8), (0, 0.7), (1, 0.9)), [2, 0, 0, 0, 2, 1]
    )
    assert evaluation.confusion == ((0, 0, 1), (0, 1, 2), (1, 1, 1), (2, 0, 1), (2, 2, 1))
    assert all(type(value) is int for cell in evaluation.confusion for value in cell)


def test_the_confusion_equals_scikit_learns(random_case):
    from sklearn.metrics import confusion_matrix

    logits, labels = random_case
    matrix = np.zeros((12, 12), dtype=int)
    for true, predicted, images in evaluate_constant(logits, labels).confusion:
        matrix[true, predicted] = images
    assert np.array_equal(matrix, confusion_matrix(labels, logits.argmax(dim=1), labels=range(12)))


def test_balanced_accuracy_weights_all_occurring_classes_equally():
    evaluation = evaluate_constant(
        confident(*[(0, 0.9)] * 9, (0, 0.9), (1, 0.9)), [0] * 9 + [1, 1]
    )  # class 2 never occurs
    assert evaluation.accuracy == pytest.approx(10 / 11)
    assert evaluation.balanced_accuracy == (1 + 0.5) / 2


def test_balanced_accuracy_equals_scikit_learns(random_case):
    from sklearn.metrics import recall_score

    logits, labels = random_case
    expected = recall_score(labels, logits.argmax(dim=1), labels=range(10), average="macro")
    assert evaluate_constant(logits, labels).balanced_accuracy == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("label", "expected"), [(0, 1.0), (4, 1.0), (5, 0.0)])
def test_the_fifth_most_likely_class_is_among_the_top_five_and_the_sixth_is_not(label, expected):
    logits = torch.arange(7.0, 0.0, -1)[None]
    assert evaluate_constant(logits, [label]).top5_accuracy == expected


def test_there_is_no_top_five_accuracy_with_five_classes():
    assert evaluate_constant(torch.randn(3, 5), [0, 1, 2]).top5_accuracy is None
    assert evaluate_constant(torch.randn(3, 6), [0, 1, 2]).top5_accuracy is not None


def test_top_five_accuracy_equals_scikit_learns(random_case):
    from sklearn.metrics import top_k_accuracy_score

    logits, labels = random_case
    expected = top_k_accuracy_score(labels, logits.numpy(), k=5, labels=range(12))
    assert 0 < expected < 1
    assert evaluate_constant(logits, labels).top5_accuracy == pytest.approx(expected, abs=1e-12)


def test_constant_logits_are_not_counted_as_correct():
    evaluation = evaluate_constant(torch.zeros(10, 10), range(10))
    assert evaluation.accuracy == 0.1
    assert evaluation.top5_accuracy == 0.5


def test_nan_logits_are_never_correct():
    logits = torch.tensor([[float("nan"), 1.0, 0.0], [float("nan")] * 3])
    assert target_ranks(logits, torch.tensor([1, 2])).tolist() == [1, 3]
    evaluation = evaluate_constant(logits, [1, 2])
    assert not any(evaluation.correct)
    assert np.isnan(evaluation.loss)  # ends the run: see test_run.py


def test_calibration_error_by_hand():
    # Bins of width 1/15: .5 in the 8th, .9 and .92 in the 14th, .97 in the 15th.
    evaluation = evaluate_constant(confident((0, 0.5), (1, 0.9), (1, 0.92), (2, 0.97)), [1, 1, 0, 2])
    expected = (abs(0.5 - 0) * 1 + abs(0.91 - 0.5) * 2 + abs(0.97 - 1) * 1) / 4
    assert evaluation.calibration_error == pytest.approx(expected, abs=1e-6)


def test_a_bin_includes_its_upper_edge_and_not_its_lower():
    third = torch.tensor([5 / 15, 5 / 15], dtype=torch.float64)
    apart = torch.tensor([5 / 15, 5 / 15 + 1e-9], dtype=torch.float64)
    hits = torch.tensor([True, False])
    assert calibration_error(third, hits) == pytest.approx(abs(1 / 3 - 1 / 2))
    assert calibration_error(apart, hits) == pytest.approx((2 / 3 + 1 / 3) / 2)


@pytest.mark.parametrize(("probability", "hit", "expected"), [(1.0, True, 0.0), (1.0, False, 1.0), (0.0, True, 1.0)])
def test_calibration_error_reaches_both_ends(probability, hit, expected):
    assert calibration_error(torch.tensor([probability]), torch.tensor([hit])) == expected


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_the_formula_of_the_paper(seed):
    """Guo et al. 2017, equation 3, bin by bin."""
    generator = np.random.default_rng(seed)
    probability, hits = generator.uniform(0.2, 1, 500), generator.random(500) < 0.6
    expected = 0.0
    for m in range(1, 16):
        inside = (probability > (m - 1) / 15) & (probability <= m / 15)
        if inside.any():
            expected += inside.sum() / 500 * abs(hits[inside].mean() - probability[inside].mean())
    error = calibration_error(torch.from_numpy(probability), torch.from_numpy(hits))
    assert error == pytest.approx(expected, abs=1e-12)


def test_the_batch_size_does_not_affect_the_evaluation(random_case):
    logits, labels = random_case
    one, other = evaluate_constant(logits, labels, batch_size=7), evaluate_constant(logits, labels, batch_size=200)
    assert one == other


def test_evaluating_logits_equals_evaluating_a_network_with_these_logits(random_case):
    logits, labels = random_case
    assert evaluate_logits(logits, labels, "val", range(200)) == evaluate_constant(logits, labels, batch_size=37)


def test_interleaved_predictions_of_several_networks_are_separated(random_case):
    logits, labels = random_case
    outputs = [logits, logits.flip(0), torch.full_like(logits, float("nan"))]
    interleaved = Predictions.from_logits(torch.stack(outputs, dim=1).flatten(0, 1), labels.repeat_interleave(3))
    for logits_of_one, predictions in zip(outputs, interleaved.split(3), strict=True):
        expected, evaluation = (
            evaluate_logits(logits_of_one, labels, "val", range(200)),
            predictions.to_evaluation("val", range(200)),
        )
        assert repr(evaluation) == repr(expected)  # NaN is not equal to itself
