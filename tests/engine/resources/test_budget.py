"""The budget: how long time and money last."""

from __future__ import annotations

import time

import pytest

from sweeps.engine.resources.budget import time_limit


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
