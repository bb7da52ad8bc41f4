"""Allocator: what becomes of memory that a network's layers have let go of.

glibc gives every large block back to the system, and asks for it again in the next layer: each time its pages have to
be cleared. MobileNetV2 at 128 px on two cores went through 258 images a second with that, and through 719 without
(2026-11-25); a training step through 111 and 161. In threads but the first it takes MALLOC_ARENA_MAX=1 in the
environment as well, which processes of a sweep get (`sweeps.engine.trials.ray_tune`): they have arenas of their own
otherwise.
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
    """Let this process keep what it frees for the next layer; where the C library is not glibc, nothing happens."""
    with _glibc() as libc:
        libc.mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)


def release_freed_memory() -> None:
    """Give back all that is free after all: something else is to begin with none of it.

    A network and its optimizer hang together in cycles, so those are collected first.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    with _glibc() as libc:
        libc.malloc_trim(0)


@contextlib.contextmanager
def _glibc() -> Iterator[ctypes.CDLL]:
    with contextlib.suppress(OSError, AttributeError):  # only Linux has the one, and only glibc the others
        yield ctypes.CDLL("libc.so.6")
