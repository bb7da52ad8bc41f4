"""Determines how large a fraction of a GPU each trial gets.

Trials share a GPU if they fit into its memory together. The memory of a training step is determined by its `StepShape`,
which most trials have in common. One recipe per shape is measured before the search (memory_probe.py), and a trial gets
its fraction from the smallest measured shape that needs at least as much memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.engine.resources.step_shape import StepShape, step_shape
from sweeps.engine.resources.torch_compile import worth_compiling
from xfer.recipe import recipe_from_dict

GPU_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Fractions that a trial can get. They are few, because Ray reuses a trial's process only for an equal fraction."""

MEMORY_MARGIN = 0.15
"""Memory that a trial may need beyond that of two steps, as a fraction: the smaller last batch of an epoch uses other
kernels, and freed memory is fragmented. An assumption; a trial that exceeds it continues with smaller micro-batches."""

CUDA_CONTEXT_BYTES = 600 * 2**20
"""Minimum memory of a process outside of torch's allocator: CUDA's context and the kernels of its libraries. An
assumption, at the upper end of usual values; a larger measured value takes precedence."""


def gpu_fraction(bytes_needed: int, gpu_bytes: int) -> float:
    """Return the smallest of `GPU_FRACTIONS` that has room for the memory and `MEMORY_MARGIN`; 1.0 if none has.

    >>> [gpu_fraction(gigabytes * 2**30, 80 * 2**30) for gigabytes in (1, 8, 9, 17, 35, 200)]
    [0.125, 0.125, 0.25, 0.25, 1.0, 1.0]

    Args:
        bytes_needed: memory of the trial, at least 0.
        gpu_bytes: memory of the GPU, above 0.

    Raises:
        ValueError: an argument is out of range.
    """
    if gpu_bytes <= 0 or bytes_needed < 0:
        raise ValueError(f"bytes_needed must be at least 0 and gpu_bytes above 0, not {bytes_needed} and {gpu_bytes}")
    fitting = (fraction for fraction in GPU_FRACTIONS if bytes_needed * (1 + MEMORY_MARGIN) <= fraction * gpu_bytes)
    return next(fitting, GPU_FRACTIONS[-1])


def memory_fraction(gpus: float, gpu_bytes: int) -> float:
    """Return the fraction of the GPU's memory that torch's allocator may use in a trial's process, in (0, 1].

    It is the trial's fraction minus the memory outside of the allocator, and at least half of the trial's fraction.

    >>> memory_fraction(1.0, 80 * 2**30), round(memory_fraction(0.125, 80 * 2**30), 3)
    (1.0, 0.118)

    Args:
        gpus: the trial's fraction of the GPU, or its number of whole GPUs.
        gpu_bytes: memory of the GPU.
    """
    return 1.0 if gpus >= 1 else max(gpus - CUDA_CONTEXT_BYTES / gpu_bytes, gpus / 2)


@dataclass(frozen=True)
class MemoryProbe:
    """Memory and duration of a training step, measured for one shape on one kind of GPU."""

    shape: StepShape
    bytes: int
    """Peak memory of the process."""
    seconds: float
    """Duration of the second step; the first one also selects kernels."""


@dataclass(frozen=True)
class GpuAllocation:
    """The fraction of a GPU that each trial gets, derived from probes."""

    probes: Sequence[MemoryProbe]
    gpu_bytes: int

    def of(self, recipe: Mapping[str, Any]) -> float:
        """Return a trial's fraction, from the smallest probe that dominates its shape; 1.0 if no probe does."""
        shape = step_shape(recipe_from_dict(recipe))
        sizes = [probe.bytes for probe in self.probes if probe.shape.dominates(shape)]
        return gpu_fraction(min(sizes), self.gpu_bytes) if sizes else GPU_FRACTIONS[-1]

    def compiled(self, recipe: Mapping[str, Any], images: int) -> bool:
        """Return whether a trial is worth compiling; False if its own shape was not probed.

        Args:
            recipe: the trial's recipe as plain data.
            images: number of training images.
        """
        built = recipe_from_dict(recipe)
        shape = step_shape(built)
        seconds = [probe.seconds for probe in self.probes if probe.shape == shape]
        steps = built.epochs * -(-images // built.batch_size)
        return bool(seconds) and worth_compiling(built, steps, min(seconds))

    def smallest_fraction(self) -> float:
        """Return the smallest fraction of any probe; 1.0 without probes."""
        return min((gpu_fraction(probe.bytes, self.gpu_bytes) for probe in self.probes), default=GPU_FRACTIONS[-1])
