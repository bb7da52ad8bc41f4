"""Run on the head: trials that ask for shares of GPUs, and say what they see. `python shares.py FOLDER`, then JSON.

They go through the same door as real ones (`tuning.run_trials`). What they see is Ray's doing and the cluster file's;
real training would also confine itself (`trainable.limit_gpu_memory`), and would hide what is wrong.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from sweeps.engine.trials import ray_tune

TOGETHER_SECONDS = 60


class Driver:
    """So many trials of one share, all at a time."""

    def __init__(self, name, count, gpus):
        site = {"threads": 1, "gpus": gpus}
        self._left = [{"trial": f"{name}-{each}", "site": site, "together": count} for each in range(count)]
        self.errors = []

    def next_trial(self):
        return self._left.pop() if self._left else None

    def may_have_more(self):
        return False

    def should_continue(self, trial, record):
        return True

    def ended(self, trial, error):
        self.errors += [error] if error else []


def trainable(folder):
    """A trial that ends once all of its kind have begun: if they can only run one after another it fails."""

    def run(config):
        from ray import tune

        name, _, _ = config["trial"].partition("-")
        seen = {"host": socket.gethostname(), "devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}
        note = folder / f"{config['trial']}.json"
        note.with_suffix(".new").write_text(json.dumps(seen))
        note.with_suffix(".new").rename(note)
        until = time.monotonic() + TOGETHER_SECONDS
        while len(list(folder.glob(f"{name}-*.json"))) < config["together"]:
            assert time.monotonic() < until, "the others never began"
            time.sleep(0.1)
        tune.report({"epoch": 1, "val_accuracy": 0.0, "record": "{}"})

    return run


def main(folder):
    ray_tune.connect_ray()
    for name, count, gpus in (("half", 4, 0.5), ("none", 2, 0.0), ("both", 1, 2.0)):
        driver = Driver(name, count, gpus)
        ray_tune.run_trials(driver, count, trainable(folder))
        assert not driver.errors, driver.errors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
