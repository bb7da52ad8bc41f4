"""Schedules against torch's own, over the whole of a run."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from xfer.methods.schedules import SCHEDULES

RATE = 0.3
STEPS = 200

REFERENCES = {
    "onecycle": lambda optimizer: OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS + 1, cycle_momentum=False),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS),
}


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
    # torch's warm-up ends one step early: at 0.3 * total_steps - 1, which is what its own steps are divided by.
    if name != "onecycle":
        return step / STEPS
    peak = 0.3 * (STEPS + 1) - 1
    return 0.3 * step / peak if step <= peak else 0.3 + 0.7 * (step - peak) / (STEPS - peak)


def test_every_schedule_is_held_against_a_reference():
    assert SCHEDULES.keys() == REFERENCES.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_schedule_is_torchs_own_over_progress(name):
    multiplier = SCHEDULES[name]()
    ours = [RATE * multiplier(progress_at(name, step)) for step in range(STEPS + 1)]
    assert ours == pytest.approx(rates_of(REFERENCES[name]), abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_only_lowers_the_peak_rate_and_reaches_it(name):
    values = [SCHEDULES[name]()(step / 1000) for step in range(1001)]
    assert min(values) >= 0
    assert max(values) == pytest.approx(1.0)
    assert values[-1] < 1e-5


def test_onecycle_peaks_at_three_tenths_and_cosine_at_the_start():
    assert SCHEDULES["onecycle"]()(0.3) == 1.0
    assert SCHEDULES["onecycle"]()(0.0) == pytest.approx(1 / 25)
    assert SCHEDULES["cosine"]()(0.0) == 1.0
