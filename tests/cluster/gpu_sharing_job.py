"""Trials that request fractions of GPUs and write what they see: `python gpu_sharing_job.py FOLDER`, run on the head.

They run through `ray_tune.run_trials`, as real trials do. What they see depends on Ray and the cluster file alone. Real
training also limits itself (`trainable.limit_gpu_memory`), which would hide a mistake there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from sweeps.engine.trials import ray_connection, ray_tune

MEETING_TIMEOUT_SECONDS = 60


class Source:
    """`count` trials with the same number of GPUs, all at the same time."""

    def __init__(self, name, count, gpus):
        site = {"threads": 1, "gpus": gpus}
        self._configs = [{"trial": f"{name}-{number}", "site": site, "peers": count} for number in range(count)]
        self.errors = []

    def next_trial(self):
        return self._configs.pop() if self._configs else None

    def may_have_more(self):
        return False

    def should_continue(self, trial, record):
        return True

    def ended(self, trial, error):
        self.errors += [error] if error else []


def trainable(folder):
    """A trial that waits until all trials with as many GPUs have started; it fails if they cannot run together."""

    def run(config):
        from ray import tune

        name, _, _ = config["trial"].partition("-")
        note = {"host": socket.gethostname(), "devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}
        path = folder / f"{config['trial']}.json"
        path.with_suffix(".new").write_text(json.dumps(note))
        path.with_suffix(".new").rename(path)
        limit = time.monotonic() + MEETING_TIMEOUT_SECONDS
        while len(list(folder.glob(f"{name}-*.json"))) < config["peers"]:
            assert time.monotonic() < limit, "the other trials never started"
            time.sleep(0.1)
        tune.report({"epoch": 1, "val_accuracy": 0.0, "record": "{}"})

    return run


def main(folder):
    ray_connection.connect_ray()
    for name, count, gpus in (("half", 4, 0.5), ("none", 2, 0.0), ("both", 1, 2.0)):
        source = Source(name, count, gpus)
        ray_tune.run_trials(source, count, trainable(folder))
        assert not source.errors, source.errors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
