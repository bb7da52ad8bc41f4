"""Host memory: what glibc's allocator does with freed memory.

By default glibc returns every large block to the system and requests it again in the next layer, and each time its
pages have to be cleared. MobileNetV2 at 128 px on two cores evaluated 258 images a second like that, and 719 with freed
memory retained (2026-11-25); in training it was 111 and 161. Threads other than the first have their own arenas, and
also need MALLOC_ARENA_MAX=1 in the environment, which processes of a sweep get (`sweeps.engine.trials.ray_tune`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MAX_THRESHOLD = 2**31 - 1


def retain_freed_memory() -> None:
    """Make this process keep freed memory for the next layer. Has no effect without glibc."""
    with _glibc() as libc:
        libc.mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)


def release_freed_memory() -> None:
    """Return all free memory to the system and the GPU, for example between two trials in one process.

    Collects garbage first, because a network and its optimizer refer to each other.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    with _glibc() as libc:
        libc.malloc_trim(0)


@contextlib.contextmanager
def _glibc() -> Iterator[ctypes.CDLL]:
    with contextlib.suppress(OSError, AttributeError):  # other systems lack the library, other C libraries the function
        yield ctypes.CDLL("libc.so.6")
