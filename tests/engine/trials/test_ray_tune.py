"""The edge to Ray: what its processes keep between two batches of heads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
import time

import ray

from sweeps.engine.trials import ray_tune
from sweeps.engine.trials.trainable import Share


class Trial:
    def process(self):
        return os.getpid()


ray_tune.connect()
cores = os.cpu_count() or 1
trials = [ray.remote(num_cpus=1)(Trial).remote() for _ in range(cores)]
ray.get([trial.process.remote() for trial in trials])


def process_of_heads():
    return ray.get(tuning.beside(lambda argument: os.getpid(), None, Share()))


first = process_of_heads()
time.sleep(8)  # Ray ends an idle process that is one too many after one second, and looks now and then
print("kept" if process_of_heads() == first else "another")
"""


@pytest.mark.slow
def test_a_process_for_heads_stays_beside_as_many_trials_as_there_are_cores() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=180, check=True
    )
    assert told.stdout.split()[-1] == "kept"
