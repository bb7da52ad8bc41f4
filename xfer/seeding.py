"""Chance that can be repeated: every draw follows from the recipe's seed and the place where it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*place: int | str) -> int:
    """A seed in [0, 2**63) for a place such as `(seed, "epoch", 3)`: the same everywhere, unlike any other's.

    >>> derive_seed(0, "epoch", 3) == derive_seed(0, "epoch", 3) != derive_seed(0, "epoch", 4)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:8]) >> 1


@contextmanager
def use_generator(generator: torch.Generator) -> Iterator[None]:
    """Let code that only knows torch's global CPU generator (torchvision's transforms) draw from this one instead."""
    outside = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(outside)


def get_rng_state(device: torch.device) -> Tensor:
    """Where a device's own generator (dropout's, for one) stands. A GPU's is kept in main memory: nothing waits."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(state: Tensor, device: torch.device) -> None:
    """Let a device draw again what it has drawn since `get_rng_state`."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
