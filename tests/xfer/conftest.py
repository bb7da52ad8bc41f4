"""Every test of xfer runs on one thread."""

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
"""What an Epoch says of the machine: no two runs agree in it."""
