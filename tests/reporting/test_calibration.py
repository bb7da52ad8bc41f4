"""The calibration section agrees with the metric of the records, and says what temperature scaling does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sweeps.reporting.calibration import calibration_error, calibration_sections
from sweeps.reporting.results import Results
from sweeps.reporting.sections import Section
from tests.reporting.conftest import a_record, results_of, some_finals
from xfer.measure import accuracy
from xfer.measure.held_out import HeldOutRun, fit_temperature, predict_held_out

RANDOM = np.random.default_rng(0)


def a_run(images: int, sharpness: float, correct: float = 0.0) -> HeldOutRun:
    """A network of 4 classes that is calibrated at sharpness 1 and overconfident above.

    Args:
        images: number of images of each part.
        sharpness: factor of the calibrated logits.
        correct: added to the logit of the right class on the validation part; a large one makes it perfect.
    """
    logits = RANDOM.normal(size=(2, images, 4)) * 2
    exponentials = np.exp(logits)
    cumulative = np.cumsum(exponentials / exponentials.sum(axis=2, keepdims=True), axis=2)
    labels = (RANDOM.random((2, images, 1)) > cumulative).sum(axis=2)
    logits[0][np.arange(images), labels[0]] += correct
    val, test = logits * sharpness
    temperature = fit_temperature(val, labels[0])
    indices = np.arange(images)
    return HeldOutRun(
        temperature,
        predict_held_out(val, labels[0], indices, temperature),
        predict_held_out(test, labels[1], indices + images, temperature),
    )


def a_sweep(*runs: HeldOutRun) -> Results:
    results = results_of([a_record("0000"), *some_finals("0000", 0.9, 0.9)], ["0000"])
    return replace(results, held_out={f"0000-s{seed}": run for seed, run in enumerate(runs, start=1)})


def section_of(results: Results) -> Section:
    (section,) = calibration_sections(results)
    return section


def test_the_calibration_error_is_that_of_the_records() -> None:
    confidence = np.concatenate([RANDOM.random(500), np.arange(16) / 15])
    correct = RANDOM.random(516) < confidence
    expected = accuracy.calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert calibration_error(confidence, correct) == pytest.approx(expected)


def test_an_overconfident_network_is_named_and_calibrated_by_its_temperature() -> None:
    runs = [a_run(4000, sharpness=3) for _ in range(2)]
    sentence = section_of(a_sweep(*runs)).sentences[0]
    assert all(run.temperature == pytest.approx(3, rel=0.1) for run in runs)
    assert "so the network is overconfident" in sentence
    assert "(4,000 test images, 2 seeds)" in sentence
    before, after = (
        [calibration_error(confidence, run.test.correct) for confidence, run in pairs]
        for pairs in (
            [(run.test.probabilities[:, 0], run) for run in runs],
            [(run.test.scaled_probability, run) for run in runs],
        )
    )
    assert max(after) < 0.04 < 0.1 < min(before)
    assert f"{100 * sum(before) / 2:.1f}%, and {100 * sum(after) / 2:.1f}% if" in sentence


def test_a_calibrated_network_is_neither_over_nor_underconfident() -> None:
    assert "confident." not in section_of(a_sweep(a_run(4000, sharpness=1))).sentences[0]


def test_a_perfect_validation_set_determines_no_temperature() -> None:
    section = section_of(a_sweep(a_run(300, sharpness=1, correct=50)))
    assert "No temperature was fitted: the validation set of 300 images does not determine one" in section.sentences[0]
    assert section.figure is not None
    assert "with temperature" not in section.figure.svg
    assert "with temperature" in section_of(a_sweep(a_run(300, 2))).figure.svg


def test_seeds_without_a_temperature_are_counted() -> None:
    sentence = section_of(a_sweep(a_run(300, 2), a_run(300, 1, correct=50))).sentences[0]
    assert " 1 seed stayed unscaled" in sentence


def test_without_predictions_there_is_one_sentence() -> None:
    section = section_of(a_sweep())
    assert section.figure is None
    assert section.sentences == ("No predictions of trial 0000 are stored, as in sweeps of earlier versions.",)
    assert calibration_sections(results_of([a_record("0000"), *some_finals("0000", 0.9)])) == []
