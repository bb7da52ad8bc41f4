"""Costs of a run: parameters, FLOPs, seconds, memory."""

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
    """Number of parameters, trainable or frozen."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, image_size: int, channels: int = 3) -> int:
    """Floating point operations of one forward pass of an image [1, channels, image_size, image_size].

    A multiply-add counts as two; many papers count it as one. Only convolutions and matrix products (including
    attention) are counted: no biases, normalisation or activations. The network and the mode of each module are
    unchanged afterwards.

    Args:
        model: the network.
        image_size: side of the image, in pixels.
        channels: number of input channels.
    """
    modes = {module: module.training for module in model.modules()}
    weight = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, channels, image_size, image_size, device=weight.device, dtype=weight.dtype)
    model.eval()
    try:
        # Attention as plain matrix products: fused kernels differ by device, and not all are counted.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops())


class SystemMetrics(TypedDict):
    """Fields of an `Epoch` that describe the machine, by name."""

    cpu_percent: float
    memory_mb: float
    peak_memory_mb: float
    gpu_memory_mb: float | None
    gpu_percent: float | None


@dataclass(frozen=True)
class ResourceUsage:
    """Resources that the process has used since this object was created."""

    device: torch.device
    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        """Wall-clock time since creation, in seconds."""
        return time.perf_counter() - self.wall

    def system_metrics(self) -> SystemMetrics:
        """Returns the system fields of an `Epoch`. Peaks cover the whole process, not only the time since creation."""
        gpu = self.device.type == "cuda"
        return {
            "cpu_percent": 100 * (time.process_time() - self.cpu) / max(self.seconds, 1e-9),
            "memory_mb": resident_bytes() / 2**20,
            "peak_memory_mb": peak_resident_bytes() / 2**20,
            "gpu_memory_mb": torch.cuda.max_memory_allocated(self.device) / 2**20 if gpu else None,
            "gpu_percent": _gpu_percent(self.device) if gpu else None,
        }


def resident_bytes() -> int:
    """Resident memory of the process; its peak where the system does not report the current value."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return peak_resident_bytes()
    return pages * resource.getpagesize()


def peak_resident_bytes() -> int:
    """Peak resident memory of the process since it started."""
    # Linux's ru_maxrss includes the peak of the parent process; VmHWM is this process's own.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu_percent(device: torch.device) -> float | None:
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # without nvidia-ml-py or a responding driver; a metric must not fail a run
        return None
