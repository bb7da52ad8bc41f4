"""More photos: the power law through the accuracies, and what it predicts for twice as many training images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sweeps.reporting.data_curve import data_curve_sections, fit_data_curve, twice_the_photos
from sweeps.reporting.first_screen import first_screen
from tests.reporting.conftest import a_record, results_of


def points(limit: float, scale: float, exponent: float, images: int = 10_000_000) -> list[dict[str, Any]]:
    """Points on the power law of the error, without noise."""
    numbers = (20, 40, 80, 160, 320)
    errors = [limit + scale * number**-exponent for number in numbers]
    return [
        {"images_per_class": n // 10, "train_images": n, "images": images, "correct": [round(images * (1 - error))] * 2}
        for n, error in zip(numbers, errors, strict=True)
    ]


@pytest.mark.parametrize(("limit", "scale", "exponent"), [(0.05, 1.0, 0.5), (0.0, 0.8, 0.3), (0.1, 2.0, 1.0)])
def test_the_gain_is_that_of_the_power_law_behind_the_points(limit: float, scale: float, exponent: float) -> None:
    curve = fit_data_curve(points(limit, scale, exponent))
    assert curve is not None
    expected = scale * (320**-exponent - 640**-exponent)
    assert curve.gain == pytest.approx(expected, abs=2e-4)
    assert curve.low <= curve.gain <= curve.high


def test_a_flat_curve_gains_nothing() -> None:
    curve = fit_data_curve(points(0.2, 0.0, 1.0))
    assert curve is not None
    assert curve.gain == pytest.approx(0.0, abs=1e-3)


def test_the_interval_has_the_true_gain_in_most_sweeps() -> None:
    """With 200 images and five draws; the draws of one sweep share their images here, as they do in a real one."""
    true, hits, rng = 320**-0.5 - 640**-0.5, 0, np.random.default_rng(1)
    for _ in range(20):
        noisy = []
        for point in points(0.05, 1.0, 0.5, images=200):
            share = point["correct"][0] / 200
            noisy.append({**point, "correct": rng.binomial(200, [share] * 5).tolist()})
        curve = fit_data_curve(noisy)
        assert curve is not None
        hits += curve.low <= true <= curve.high
    assert hits >= 17


def test_fewer_than_three_points_give_no_curve() -> None:
    assert fit_data_curve(points(0.1, 1.0, 0.5)[:2]) is None


def test_the_report_states_what_twice_the_photos_would_add() -> None:
    plain = results_of([a_record("0001", (0.6, 0.92), strategy="clip")])
    assert (twice_the_photos(plain), data_curve_sections(plain)) == (None, [])
    results = replace(plain, data_curve={"backbone": "mobilenetv2_100", "points": points(0.05, 1.0, 0.5)})
    (section,) = data_curve_sections(results)
    assert section.figure is not None
    assert section.sentences[0].startswith(
        "With all 320 training images, a logistic probe on frozen features of mobilenetv2_100 is right about 89.4% of "
        "10,000,000 validation images; with at most 2 per class, 72.6% on average. Twice the training images would add "
        "+1.6 points ("
    )
    assert first_screen(results).enough.startswith("Twice the photos: +1.6 points (")
