"""The budget: how long time and money last."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sweeps.engine.resources.budget import Budget, time_limit
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.storage.store import Store


def test_a_time_limit_counts_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    is_short, never = time_limit(60.0), time_limit(None)
    assert not is_short(0.0)
    assert not is_short(59.0)
    assert is_short(61.0)
    now[0] = 155.0
    assert not is_short(4.0)
    assert is_short(6.0)
    assert not never(1e9)


class Spent(CostTracker):
    """Machines that cost $3.60 an hour, of which a given amount is spent."""

    usd = 1.0

    @property
    def usd_per_hour(self) -> float:
        return 3.6

    def spent(self) -> float | None:
        return self.usd


@pytest.mark.parametrize(
    ("seconds", "usd", "left"),
    [
        (None, None, None),
        (60.0, None, 60.0 - 55.0),
        (50.0, None, 0.0),
        (None, 1.5, 500.0),
        (None, 0.5, 0.0),
        (60.0, 1.5, 5.0),
        (900.0, 1.5, 500.0),
    ],
)
def test_what_is_left_is_the_smaller_of_time_and_money(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float | None, usd: float | None, left: float | None
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(Spent(Store(tmp_path)), seconds, usd)
    now[0] = 155.0
    assert budget.seconds_left() == pytest.approx(left)
