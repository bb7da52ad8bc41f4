"""Freed memory stays with a process that asked for it, and is given back when that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sweeps.engine.trials.ray_tune import RAY_ENVIRONMENT

CODE = """
import sys
import threading

import torch
from xfer.devices.host_memory import give_back_memory, keep_freed_memory
from xfer.measure.cost import resident_bytes

def held_after_use():
    before = resident_bytes()
    for _ in range(3):
        torch.ones(25_000_000)
    return (resident_bytes() - before) // 2**20

def look():
    given_back = held_after_use()
    keep_freed_memory()
    kept = held_after_use()
    before = resident_bytes()
    give_back_memory()
    print(given_back, kept, (before - resident_bytes()) // 2**20)

if sys.argv[1] == "here":
    look()
else:
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_what_is_freed_is_kept_once_asked_for_and_given_back_once_asked_for(where):
    """In a thread too, which is where Ray Tune runs a trial, under the environment that a trial's process has."""
    command = [sys.executable, "-c", CODE, where]
    environment = {**os.environ, **RAY_ENVIRONMENT}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    given_back, kept, freed = map(int, said.stdout.split())
    assert given_back < 20
    assert kept > 80
    assert freed > 80
