"""Float64 for comparisons between one device and several."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def float64(monkeypatch):
    """Compute in float64: with the statistics of few images, float32 rounding grows a thousandfold in a few steps."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
