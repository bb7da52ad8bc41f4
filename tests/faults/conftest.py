"""Fixtures of the tests of faults: a prepared plan and its data, shared with the tests of the engine."""

from __future__ import annotations

from tests.engine.conftest import make_plan, prepared, storage

__all__ = ["make_plan", "prepared", "storage"]
