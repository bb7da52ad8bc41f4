"""Devices: which one to train on, at which precision, and whether there are enough of them."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
"""Number format of the network's forward and backward pass. Weights, loss and optimizer are always float32."""


def default_device() -> torch.device:
    """Return a CUDA device if there is one, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_precision(device: torch.device) -> Precision:
    """Return bfloat16 for a GPU with native support, else float32.

    Precision is a property of the machine, like the number of threads, and not part of the recipe: a machine without
    bfloat16 trains the same recipe in float32, and no search has to choose. The Record says which one was used.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def check_devices(first: torch.device, count: int) -> None:
    """Check that this machine has enough devices.

    Args:
        first: the first device; GPUs are counted from its index.
        count: how many devices are needed.

    Raises:
        ValueError: fewer than `count` are available, or `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"{count} devices: the number of devices must be at least 1")
    if count == 1:
        return
    if first.type not in ("cuda", "cpu"):
        raise ValueError(f"{count} devices: a machine has only one device of type {first.type}")
    if first.type == "cuda":
        available = torch.cuda.device_count() - _cuda_index(first)
        if available < count:
            raise ValueError(f"{count} devices were requested, but only {available} are visible from {first} onwards")


def nth_device(first: torch.device, index: int) -> torch.device:
    """Return the GPU `index` positions after the first; on a CPU all workers share the device."""
    return first if first.type != "cuda" else torch.device("cuda", _cuda_index(first) + index)


def _cuda_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
