"""What a run costs: parameters, FLOPs, seconds, memory."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """How many numbers a network has learned or could learn."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, image_size: int, channels: int = 3) -> int:
    """Floating point operations of one image [1, channels, image_size, image_size] on its way through the network.

    A multiply-add counts as two; many papers count it as one. Only convolutions and matrix products count, those of
    attention among them: no biases, no normalisation, no activations. The network stays as it is, the mode of each of
    its modules included.
    """
    modes = {module: module.training for module in model.modules()}
    weight = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, channels, image_size, image_size, device=weight.device, dtype=weight.dtype)
    model.eval()
    try:
        # Attention as plain matrix products: of the fused kernels, which differ by device, not all are counted.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops())


class SystemMetrics(TypedDict):
    """What an `Epoch` says of the machine, by name."""

    cpu_percent: float
    memory_mb: float
    peak_memory_mb: float
    gpu_memory_mb: float | None
    gpu_percent: float | None


@dataclass(frozen=True)
class ResourceUsage:
    """What the process used since this was made."""

    device: torch.device
    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        """Wall clock."""
        return time.perf_counter() - self.wall

    def system_metrics(self) -> SystemMetrics:
        """The system fields of an `Epoch`. Peaks are those of the process since it began, not since this was made."""
        gpu = self.device.type == "cuda"
        return {
            "cpu_percent": 100 * (time.process_time() - self.cpu) / max(self.seconds, 1e-9),
            "memory_mb": resident_bytes() / 2**20,
            "peak_memory_mb": peak_resident_bytes() / 2**20,
            "gpu_memory_mb": torch.cuda.max_memory_allocated(self.device) / 2**20 if gpu else None,
            "gpu_percent": _gpu_percent(self.device) if gpu else None,
        }


def resident_bytes() -> int:
    """The process's resident memory; where the system does not tell, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_resident_bytes()
    return pages * resource.getpagesize()


def peak_resident_bytes() -> int:
    """The most resident memory that the process has held since it began."""
    # Linux's ru_maxrss begins with the peak of the process that started this one; VmHWM is this one's own.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu_percent(device: torch.device) -> float | None:
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # needs the nvidia-ml-py package and a driver that answers; a measurement is not worth a run
        return None
