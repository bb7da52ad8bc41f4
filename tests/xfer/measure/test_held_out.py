"""Temperatures minimise the cross-entropy, and predictions survive their compact form."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from xfer.measure.held_out import HeldOutRun, fit_temperature, predict_held_out, run_as_dict, run_from_dict

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 7, 400)
LOGITS = 3 * RANDOM.normal(size=(400, 7)).astype(np.float32)
LOGITS[np.arange(300), LABELS[:300]] += 4


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_the_temperature_is_that_of_a_general_minimiser(scale: float) -> None:
    def cross_entropy(temperature: float) -> float:
        return -float(log_softmax(scale * LOGITS / temperature, axis=1)[np.arange(400), LABELS].mean())

    expected = minimize_scalar(cross_entropy, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(scale * LOGITS, LABELS) == pytest.approx(expected, rel=1e-4)


def test_scaling_logits_scales_the_temperature() -> None:
    first, second = fit_temperature(LOGITS, LABELS), fit_temperature(2 * LOGITS, LABELS)
    assert first is not None
    assert second == pytest.approx(2 * first)


@pytest.mark.parametrize(
    "labels", [LOGITS.argmax(axis=1), LOGITS.argmin(axis=1), LABELS[:0]], ids=["all", "none", "no"]
)
def test_images_that_are_all_correct_or_no_better_than_chance_determine_no_temperature(labels: np.ndarray) -> None:
    assert fit_temperature(LOGITS[: len(labels)], labels) is None


def test_predictions_are_the_most_likely_classes_with_their_probabilities() -> None:
    part, expected = predict_held_out(LOGITS, LABELS, np.arange(400) + 7, 2.0), softmax(LOGITS.astype(float), axis=1)
    assert part.classes.shape == (400, 5)
    assert (part.predicted == LOGITS.argmax(axis=1)).all()
    assert (part.correct == (LOGITS.argmax(axis=1) == LABELS)).all()
    np.testing.assert_allclose(part.probabilities, -np.sort(-expected)[:, :5])
    np.testing.assert_allclose(part.label_probability, expected[np.arange(400), LABELS])
    np.testing.assert_allclose(part.scaled_probability, softmax(LOGITS.astype(float) / 2, axis=1).max(axis=1))


@pytest.mark.parametrize("temperature", [1.5, None])
def test_predictions_survive_json_in_forty_bytes_an_image(temperature: float | None) -> None:
    val, test = (
        predict_held_out(LOGITS[rows], LABELS[rows], np.arange(400)[rows] + 100_000, temperature)
        for rows in (slice(100), slice(100, None))
    )
    text = json.dumps(run_as_dict(HeldOutRun(temperature, val, test)))
    assert len(text) < 45 * 400 + 500
    read = run_from_dict(json.loads(text))
    assert read.temperature == temperature
    for part, expected in ((read.val, val), (read.test, test)):
        for name in ("images", "labels", "classes"):
            np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))
        for name in ("probabilities", "label_probability", "scaled_probability"):
            np.testing.assert_allclose(getattr(part, name), getattr(expected, name), atol=1 / 65_535)


def test_two_classes_are_stored_completely() -> None:
    part = predict_held_out(LOGITS[:, :2], LABELS % 2, np.arange(400), None)
    assert part.classes.shape == (400, 2)
    np.testing.assert_allclose(part.probabilities.sum(axis=1), 1)
