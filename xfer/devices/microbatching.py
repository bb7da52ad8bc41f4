"""Micro-batches: a batch that does not fit the memory goes through the network in parts, and still counts as one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch

Found = TypeVar("Found")

CPU_OOM_MESSAGES = ("DefaultCPUAllocator", "not enough memory")
"""How torch words it in a plain RuntimeError where no more of the main memory is to be had."""

GPU_OOM_MESSAGES = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
"""How libraries word it that ask for memory of their own, beside torch's allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or elsewhere.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in (*CPU_OOM_MESSAGES, *GPU_OOM_MESSAGES)
    )


def split_evenly(images: int, most: int, least: int = 1) -> list[slice]:
    """A batch in as few parts of at most `most` images as there can be, as alike in size as can be, larger ones first.

    Alike, because what a layer takes from its part (the statistics of a batch norm) should not rest on a few images at
    the end. Where a part would hold fewer than `least`, there is a part less, and those that remain are larger.

    >>> [part.stop - part.start for part in split_evenly(33, most=8)]
    [7, 7, 7, 6, 6]
    >>> [part.stop - part.start for part in split_evenly(5, most=2, least=2)]
    [3, 2]
    """
    parts = max(1, min(-(-images // most), images // least))
    size, more = divmod(images, parts)
    ends = [size * number + min(number, more) for number in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


@dataclass
class MicroBatcher:
    """How many images go through a network at a time: a whole batch, and half as many each time the memory runs out."""

    most: int | None = None
    """The largest number that has not run out of memory since it was set; None while batches are whole."""

    def run_split(
        self,
        images: int,
        attempt: Callable[[list[slice]], Found],
        reset: Callable[[], None] = lambda: None,
        least: int = 1,
        indivisible_reason: str | None = None,
    ) -> Found:
        """What `attempt` comes to with the largest parts of a batch of so many images that fit.

        On a GPU whose process is capped (`torch.cuda.set_per_process_memory_fraction`) it is the cap that runs out.
        Tested with raised errors on a CPU; it has not met a real GPU's error yet.

        Args:
            images: how many there are.
            attempt: is given the parts, and may be given other ones.
            reset: called before it is, to undo what the last attempt has done.
            least: the fewest images that a part may hold.
            indivisible_reason: why the batch cannot be divided; None where it can.

        Raises:
            MemoryError: not even the smallest parts fit.
        """
        while True:
            parts = (
                split_evenly(images, self.most or images, least) if indivisible_reason is None else [slice(0, images)]
            )
            size = parts[0].stop
            smaller = max(size // 2, least)
            try:
                return attempt(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if indivisible_reason is not None or len(split_evenly(images, smaller, least)) == len(parts):
                    raise MemoryError(_says(size, indivisible_reason, error)) from error
            # Only here is the error gone, and with its traceback everything that the attempt had put into the memory.
            self.most = smaller
            reset()
            gc.collect()
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()


def _says(size: int, indivisible_reason: str | None, error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    if indivisible_reason is not None:
        return (
            f"a batch of {size} images does not fit the memory, and cannot be divided, because {indivisible_reason}: take a "
            f"smaller batch_size or image_size, or give each trial more of a GPU ({first})"
        )
    return (
        f"not even {size} {'image' if size == 1 else 'images'} at a time fit the memory: take a smaller image_size or "
        f"backbone, freeze more of it, or give each trial more of a GPU ({first})"
    )
