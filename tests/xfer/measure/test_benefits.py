"""Start, slope and asymptote: exact on curves that have them, and robust on curves that do not."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xfer.measure.benefits import FITTED_HEADS, accuracy_curve, asymptote, majority_rate, slope, transfer_benefits
from xfer.methods.strategies import STRATEGIES
from xfer.records import Evaluation

accuracy = st.floats(0, 1)
curves = st.lists(accuracy, min_size=2, max_size=40)
LIMITS = (0.3, 0.9, 1.0)
STARTS = (0.0, 0.1, 0.85)  # the last one falls to the first limit
RATES = (0.02, 0.1, 0.5, 1.5, 4.0)
LENGTHS = (6, 7, 16, 51)
each_curve = pytest.mark.parametrize(
    ("limit", "start", "rate", "points"), list(itertools.product(LIMITS, STARTS, RATES, LENGTHS))
)


def saturating(limit, start, rate, points):
    return [limit - (limit - start) * math.exp(-rate * epoch) for epoch in range(points)]


def noisy(curve, deviation, seed):
    return np.clip(np.random.default_rng(seed).normal(curve, deviation), 0, 1).tolist()


def test_the_strategies_with_a_head_that_is_fitted_before_the_first_step_are_listed():
    built = {name: entry() for name, entry in STRATEGIES.items()}
    assert {name for name, strategy in built.items() if strategy.fit and strategy.steps} == FITTED_HEADS


def test_the_majority_rate_counts_the_true_classes_whatever_was_predicted():
    confusion = ((0, 1, 3), (1, 0, 2), (1, 1, 4), (2, 0, 1))
    assert majority_rate(Evaluation("val", 0.5, tuple(range(10)), (True,) * 10, confusion=confusion)) == 0.6
    assert majority_rate(Evaluation("val", 0.5, (0,), (True,))) is None


@each_curve
def test_the_asymptote_of_a_saturating_curve_is_its_limit(limit, start, rate, points):
    assert asymptote(saturating(limit, start, rate, points)) == pytest.approx(limit, abs=1e-6)


@each_curve
def test_the_slope_of_a_saturating_curve_is_half_its_rise_over_the_time_it_takes(limit, start, rate, points):
    rise = max((limit - start) * (1 - math.exp(-rate * (points - 1))), 0)  # as far as the curve shows it
    end = math.ceil(-math.log(1 - rise / 2 / abs(limit - start)) / rate) if rise else 1
    # Between the epochs before and after, the curve is a straight line.
    before, after = ((limit - start) * (1 - math.exp(-rate * epoch)) for epoch in (end - 1, end))
    expected = (rise / 2) / (end - 1 + (rise / 2 - before) / (after - before)) if rise else 0.0
    assert slope(saturating(limit, start, rate, points)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_slope_of_a_slow_curve_is_near_its_initial_rate(rate):
    assert slope(saturating(0.9, 0.1, rate, 11)) == pytest.approx(0.8 * rate, rel=0.2)


@given(value=accuracy, points=st.integers(2, 40))
def test_a_constant_curve_has_slope_0_and_its_value_as_asymptote(value, points):
    assert slope([value] * points) == 0.0
    assert asymptote([value] * points) == value


@given(curve=curves)
def test_a_curve_that_never_exceeds_its_start_has_slope_0(curve):
    assert slope([max(curve), *curve]) == 0.0


@given(curve=curves)
def test_a_slope_is_between_0_and_1(curve):
    assert 0.0 <= slope(curve) <= 1.0


@given(step=st.floats(0.001, 0.05), points=st.integers(2, 20))
def test_a_straight_line_has_its_own_slope_and_no_limit(step, points):
    line = [step * epoch for epoch in range(points)]
    assert slope(line) == pytest.approx(step)
    assert asymptote(line) == pytest.approx(np.mean(line[-math.ceil(points / 4) :]))


def test_noise_after_half_of_the_rise_does_not_change_the_slope():
    assert slope([0.0, 0.2, 0.4, 0.8, 0.8, 0.8]) == slope([0.0, 0.2, 0.4, 0.8, 0.5, 0.8]) == 0.2


@settings(max_examples=100, deadline=None)
@given(curve=curves)
def test_an_asymptote_is_always_in_the_range_of_accuracies(curve):
    assert 0.0 <= asymptote(curve) <= 1.0


@pytest.mark.parametrize(
    "curve",
    [
        [0.5, 0.7, 0.6, 0.8, 0.9],  # too short for a fit
        [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9],  # no saturation
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
        [0.01, 0.02, 0.05, 0.11, 0.23, 0.48, 0.7, 0.92],  # still accelerating
        [0.1, 0.35, 0.3, 0.6, 0.5, 0.75, 0.6, 0.85],  # rises, but to an unclear limit
    ],
)
def test_a_curve_without_a_clear_limit_gets_the_mean_of_its_last_quarter(curve):
    last = curve[-math.ceil(len(curve) / 4) :]
    assert asymptote(curve) == pytest.approx(sum(last) / len(last))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("rate", "points"), [(0.2, 30), (0.5, 12), (1.0, 20), (3.0, 12)])
def test_a_little_noise_moves_the_asymptote_little(rate, points, seed):
    assert asymptote(noisy(saturating(0.85, 0.1, rate, points), 0.01, seed)) == pytest.approx(0.85, abs=0.03)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("points", [6, 12, 30])
def test_noise_on_a_flat_curve_does_not_raise_its_asymptote(points, seed):
    assert asymptote(noisy([0.5] * points, 0.02, seed)) == pytest.approx(0.5, abs=0.06)


def test_a_truncated_curve_is_extrapolated_to_its_limit():
    curve = saturating(0.9, 0.1, 0.3, 12)
    assert max(curve) < 0.88
    assert asymptote([round(value, 3) for value in curve]) == pytest.approx(0.9, abs=0.01)


def test_benefits_are_transferred_minus_from_scratch():
    transferred, scratch = saturating(0.95, 0.15, 1.2, 9), saturating(0.8, 0.1, 0.3, 9)
    benefits = transfer_benefits(transferred, scratch)
    assert benefits.start == pytest.approx(0.05)
    assert benefits.early == pytest.approx(transferred[1] - scratch[1])
    assert benefits.slope == pytest.approx(slope(transferred) - slope(scratch))
    assert benefits.slope > 0
    assert benefits.asymptote == pytest.approx(0.15, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(one=curves, other=curves)
@example(one=[0.0, 0.0], other=[0.0, 5e-324])
def test_swapping_the_curves_negates_the_benefits(one, other):
    gained, lost = (
        dataclasses.astuple(transfer_benefits(one, other)),
        dataclasses.astuple(transfer_benefits(other, one)),
    )
    assert gained == tuple(-value for value in lost)


@pytest.mark.parametrize("read", [slope, asymptote, lambda curve: transfer_benefits([0.1, 0.2], curve)])
@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ([], "a curve needs at least 2 points, got 0: give the accuracy before the first step and after each epoch"),
        ([0.5], "a curve needs at least 2 points, got 1"),
        ([0.5, 93.5], "accuracies of a curve must be in [0, 1], got 93.5: divide percentages by 100"),
        ([0.5, math.nan], "got nan"),
        ([-0.1, 0.5], "got -0.1"),
    ],
)
def test_an_invalid_curve_is_refused(read, curve, message):
    with pytest.raises(ValueError) as refused:
        read(curve)
    assert message in str(refused.value)


def test_the_curve_of_a_record_begins_before_the_first_step(record):
    measured = dataclasses.replace(record, start_accuracy=0.25)
    assert accuracy_curve(measured) == (0.25, *(epoch.val_accuracy for epoch in record.epochs))


def test_a_record_without_a_start_accuracy_has_no_curve(record):
    with pytest.raises(ValueError, match="trial 0000 has no accuracy before its first step"):
        accuracy_curve(dataclasses.replace(record, start_accuracy=None))
