"""Runs every test of xfer on one thread."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

MEASURED_FIELDS = {
    "seconds",
    "images_per_second",
    "cpu_percent",
    "memory_mb",
    "peak_memory_mb",
    "gpu_memory_mb",
    "gpu_percent",
}
"""Fields of an Epoch that depend on the machine: they differ between runs."""
