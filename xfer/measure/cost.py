"""What a run costs: parameters, seconds, memory."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """How many numbers a network has learned or could learn."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Usage:
    """What the process used since this was made."""

    device: torch.device
    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        """Wall clock."""
        return time.perf_counter() - self.wall

    def so_far(self) -> dict[str, float | None]:
        """The system fields of an `Epoch`, by name."""
        gpu = self.device.type == "cuda"
        return {
            "cpu_percent": 100 * (time.process_time() - self.cpu) / max(self.seconds, 1e-9),
            "memory_mb": resident_bytes() / 2**20,
            "gpu_memory_mb": torch.cuda.max_memory_allocated(self.device) / 2**20 if gpu else None,
            "gpu_percent": _gpu_percent(self.device) if gpu else None,
        }


def resident_bytes() -> int:
    """The process's resident memory; where the system does not tell, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()


def _gpu_percent(device: torch.device) -> float | None:
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # needs the nvidia-ml-py package and a driver that answers; a measurement is not worth a run
        return None
