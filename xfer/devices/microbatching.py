"""Microbatching: a batch that does not fit in memory goes through the network in parts, and still counts as one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch

Result = TypeVar("Result")

CPU_OOM_MESSAGES = ("DefaultCPUAllocator", "not enough memory")
"""Messages of torch's plain RuntimeError when main memory runs out."""

GPU_OOM_MESSAGES = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of GPU libraries that allocate memory outside torch's allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that GPU or main memory ran out.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    messages = (*CPU_OOM_MESSAGES, *GPU_OOM_MESSAGES)
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)


def split_evenly(images: int, maximum: int, minimum: int = 1) -> list[slice]:
    """Split a batch into as few parts as possible, of equal size within one image, larger ones first.

    Equal sizes keep statistics of a part, such as those of a batch norm, from resting on a few images at the end.

    Args:
        images: size of the batch.
        maximum: largest size of a part.
        minimum: smallest size of a part. Takes precedence over `maximum`: if a part would be smaller, there is one part
            fewer, and the others are larger.

    >>> [part.stop - part.start for part in split_evenly(33, maximum=8)]
    [7, 7, 7, 6, 6]
    >>> [part.stop - part.start for part in split_evenly(5, maximum=2, minimum=2)]
    [3, 2]
    """
    count = max(1, min(-(-images // maximum), images // minimum))
    size, larger = divmod(images, count)
    ends = [size * index + min(index, larger) for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


@dataclass
class MicroBatcher:
    """Splits batches into micro-batches; halves their size each time memory runs out."""

    size: int | None = None
    """Maximum size of a micro-batch; None while whole batches fit."""

    def run_split(
        self,
        images: int,
        attempt: Callable[[list[slice]], Result],
        reset: Callable[[], None] = lambda: None,
        minimum: int = 1,
        indivisible_reason: str | None = None,
    ) -> Result:
        """Call `attempt` with ever smaller parts of a batch until they fit in memory.

        A GPU process with a memory limit (`torch.cuda.set_per_process_memory_fraction`) splits at that limit. Tested
        with raised errors on a CPU; not run on a GPU.

        Args:
            images: size of the batch.
            attempt: called with the parts, as slices of the batch.
            reset: called before every further attempt, to undo the effects of the last one.
            minimum: smallest size of a part.
            indivisible_reason: why the batch cannot be split; None if it can.

        Returns:
            What the successful attempt returned.

        Raises:
            MemoryError: not even the smallest parts fit.
        """
        divisible = indivisible_reason is None
        while True:
            parts = split_evenly(images, self.size or images, minimum) if divisible else [slice(0, images)]
            largest = parts[0].stop
            smaller = max(largest // 2, minimum)
            try:
                return attempt(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not divisible or len(split_evenly(images, smaller, minimum)) == len(parts):
                    raise MemoryError(_out_of_memory_message(largest, indivisible_reason, error)) from error
            # Only here is the error freed, and with its traceback everything that the attempt had allocated.
            self.size = smaller
            reset()
            gc.collect()
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()


def _out_of_memory_message(size: int, indivisible_reason: str | None, error: BaseException) -> str:
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    if indivisible_reason is not None:
        return (
            f"a batch of {size} images does not fit in memory and cannot be split, because {indivisible_reason}: use a "
            f"smaller batch_size or image_size, or give each trial more of a GPU ({first_line})"
        )
    return (
        f"not even {size} {'image' if size == 1 else 'images'} at a time fit in memory: use a smaller image_size or "
        f"backbone, freeze more of it, or give each trial more of a GPU ({first_line})"
    )
