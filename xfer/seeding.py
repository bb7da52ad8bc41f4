"""Reproducible random numbers: every draw depends on the recipe's seed and a key that names its purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """Return a seed in [0, 2**63) for a key such as `(seed, "epoch", 3)`, the same on every machine.

    >>> derive_seed(0, "epoch", 3) == derive_seed(0, "epoch", 3) != derive_seed(0, "epoch", 4)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1


@contextmanager
def use_generator(generator: torch.Generator) -> Iterator[None]:
    """Let code that uses torch's global CPU generator (torchvision's transforms) draw from `generator` instead."""
    outer_state = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(outer_state)


def get_rng_state(device: torch.device) -> Tensor:
    """Return the state of a device's global generator, used for example by dropout.

    The state of a GPU's generator is in main memory, so reading it does not wait for the GPU.
    """
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(state: Tensor, device: torch.device) -> None:
    """Restore a state of a device's global generator that `get_rng_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
