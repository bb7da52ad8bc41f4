"""Optimizer state: restored exactly from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore what `optimizer.state_dict` returned, also through JSON, which only has strings as keys.

    Each moment gets the memory layout of its parameter: otherwise kernels may sum in a different order.
    """
    by_index = {int(index): values for index, values in state["state"].items()}
    optimizer.load_state_dict({**state, "state": by_index})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
