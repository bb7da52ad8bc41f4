"""Freed memory stays with a process that asked for it, and is given back when that is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import torch
from xfer.allocator import give_back_memory, keep_freed_memory
from xfer.measure.cost import resident_bytes

def held_after_use():
    before = resident_bytes()
    for _ in range(3):
        torch.ones(25_000_000)
    return (resident_bytes() - before) // 2**20

given_back = held_after_use()
keep_freed_memory()
kept = held_after_use()
before = resident_bytes()
give_back_memory()
print(given_back, kept, (before - resident_bytes()) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_what_is_freed_is_kept_once_asked_for_and_given_back_once_asked_for():
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120)
    given_back, kept, freed = map(int, said.stdout.split())
    assert given_back < 20
    assert kept > 80
    assert freed > 80
