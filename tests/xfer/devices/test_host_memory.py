"""A process retains freed memory on request, and releases it on request."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sweeps.engine.trials.ray_connection import RAY_ENVIRONMENT

CODE = """
import sys
import threading

import torch
from xfer.devices.host_memory import release_freed_memory, retain_freed_memory
from xfer.measure.cost import resident_bytes

def growth_after_use():
    before = resident_bytes()
    for _ in range(3):
        torch.ones(25_000_000)
    return (resident_bytes() - before) // 2**20

def measure():
    by_default = growth_after_use()
    retain_freed_memory()
    retained = growth_after_use()
    before = resident_bytes()
    release_freed_memory()
    print(by_default, retained, (before - resident_bytes()) // 2**20)

if sys.argv[1] == "main thread":
    measure()
else:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="requires glibc")
@pytest.mark.slow
@pytest.mark.parametrize("thread", ["main thread", "other thread"])
def test_freed_memory_is_retained_and_released_on_request(thread):
    """Also in another thread, where Ray Tune runs a trial, with the environment of a trial's process."""
    command = [sys.executable, "-c", CODE, thread]
    environment = {**os.environ, **RAY_ENVIRONMENT}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    by_default, retained, released = map(int, result.stdout.split())
    assert by_default < 20
    assert retained > 80
    assert released > 80
