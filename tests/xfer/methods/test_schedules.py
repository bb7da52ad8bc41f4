"""Schedules compared with torch's, over a whole run."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR

from xfer.methods.schedules import SCHEDULES

RATE = 0.3
STEPS = 300


def then_cosine(first, steps):
    """A scheduler that follows `first` for `steps` steps and half a cosine for the rest of the run."""
    return lambda optimizer: SequentialLR(
        optimizer, [first(optimizer), CosineAnnealingLR(optimizer, T_max=STEPS - steps)], milestones=[steps]
    )


def warm_up(steps):
    # torch does not accept a start factor of 0.
    return lambda optimizer: LinearLR(optimizer, start_factor=1e-12, total_iters=steps)


def flat(optimizer):
    return ConstantLR(optimizer, factor=1.0)


def drops(steps, factor):
    return lambda optimizer: StepLR(optimizer, steps, factor)


REFERENCES = {
    "onecycle": lambda optimizer: OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS + 1, cycle_momentum=False),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS),
    "cosine_warmup": then_cosine(warm_up(30), 30),
    "flat_cosine": then_cosine(flat, 225),
    "step": drops(200, 0.1),
    "constant": lambda optimizer: LambdaLR(optimizer, lambda step: 1.0),
}

OTHER_PARAMETERS = [
    ("cosine_warmup", {"warmup": 0.2}, then_cosine(warm_up(60), 60)),
    ("flat_cosine", {"flat": 0.5}, then_cosine(flat, 150)),
    ("step", {"drop_every": 0.2, "drop_to": 0.5}, drops(60, 0.5)),
    ("step", {"drop_every": 0.3, "drop_to": 0.1}, drops(90, 0.1)),
    ("step", {"drop_every": 1 / 3, "drop_to": 0.1}, drops(100, 0.1)),
]


def rates_of(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = make(optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def progress_at(name, step):
    # torch's warm-up ends one step early, at 0.3 * total_steps - 1.
    if name != "onecycle":
        return step / STEPS
    peak = 0.3 * (STEPS + 1) - 1
    return 0.3 * step / peak if step <= peak else 0.3 + 0.7 * (step - peak) / (STEPS - peak)


def test_every_schedule_has_a_reference():
    assert SCHEDULES.keys() == REFERENCES.keys()


@pytest.mark.filterwarnings("ignore:.*epoch parameter.*")  # SequentialLR triggers torch's own deprecation warning
@pytest.mark.parametrize(
    ("name", "values", "reference"), [*((n, {}, r) for n, r in REFERENCES.items()), *OTHER_PARAMETERS]
)
def test_a_schedule_equals_torchs_over_a_run(name, values, reference):
    multiplier = SCHEDULES[name](**values)
    ours = [RATE * multiplier(progress_at(name, step)) for step in range(STEPS + 1)]
    assert ours == pytest.approx(rates_of(reference), abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_reaches_the_peak_rate_and_never_exceeds_it(name):
    values = [SCHEDULES[name]()(step / 1000) for step in range(1001)]
    assert min(values) >= 0
    assert max(values) <= 1
    assert max(values) == pytest.approx(1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_ends_at_the_expected_rate(name):
    ends = {"step": pytest.approx(0.1), "constant": 1.0}
    assert SCHEDULES[name]()(1.0) == ends.get(name, pytest.approx(0.0, abs=1e-5))


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("onecycle", {0.0: 1 / 25, 0.3: 1.0, 1.0: 1 / 250_000}),
        ("cosine", {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
        ("cosine_warmup", {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0}),
        ("flat_cosine", {0.0: 1.0, 0.75: 1.0, 0.875: 0.5, 1.0: 0.0}),
        ("step", {0.0: 1.0, 9 / 15: 1.0, 10 / 15: 0.1, 14 / 15: 0.1}),  # ten of fifteen epochs, then a tenth
        ("constant", {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
    ],
)
def test_a_schedule_passes_through_its_points(name, points):
    assert {progress: SCHEDULES[name]()(progress) for progress in points} == pytest.approx(points, abs=1e-12)


@pytest.mark.parametrize("epochs", [3, 15, 30])
@pytest.mark.parametrize("steps", [1, 7, 129])
def test_step_drops_at_the_first_step_of_an_epoch(epochs, steps):
    drop = 2 * epochs // 3
    rate = SCHEDULES["step"]()
    assert rate((drop * steps - 1) / (epochs * steps)) == 1.0
    assert rate(drop * steps / (epochs * steps)) == 0.1


@pytest.mark.parametrize(
    ("name", "parameter", "reason"),
    [
        ("cosine_warmup", "warmup", "0 is schedule cosine"),
        ("flat_cosine", "flat", "0 is schedule cosine, 1 is schedule constant"),
        ("step", "drop_every", "with 1 the rate would not drop .* schedule constant"),
        ("step", "drop_to", "it is the factor"),
    ],
)
@pytest.mark.parametrize("value", [-0.1, 0.0, 1.0, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused_with_the_reason(name, parameter, reason, value):
    with pytest.raises(ValueError, match=f"{parameter} must be above 0 and below 1, got {value}: {reason}"):
        SCHEDULES[name](**{parameter: value})
