"""Read by every Python on a host of the laboratory: notes each epoch that is begun, and can make it wait.

Where LAB_NOTES names a folder, each epoch leaves a file `begun-*` in it: "TRIAL EPOCH HOST". Where that folder has a
file `hold` with "TRIAL EPOCH" in it, this trial and those after it wait before that epoch and those after it, until the
file is gone: so the tests can take their time over a trial that is half-way.
"""

import importlib.util
import os
import socket
import sys
import time
from pathlib import Path

NOTES = os.environ.get("LAB_NOTES")


def name_runs(module):
    """A run of `sweeps.engine.trials.trainable` knows the trial that it is."""
    make = module.open_run

    def named(config):
        run = make(config)
        run.trial_seen = config["trial"]
        return run

    module.open_run = named


def watch_training(module):
    """An epoch of `xfer.run` is noted, and may have to wait, before it is trained."""
    train = module.Run._train_epoch

    def watched(run):
        begin(run.trial_seen, len(run.epochs) + 1)
        return train(run)

    module.Run._train_epoch = watched


WATCHED = {"sweeps.engine.trials.trainable": name_runs, "xfer.run": watch_training}


class Witness:
    """Finds modules as Python itself does, and changes those that are watched once they are loaded."""

    def find_spec(self, name, path=None, target=None):
        change = WATCHED.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change
        return spec


def begin(trial: str, epoch: int) -> None:
    """Note it, and wait while it is held."""
    name = f"begun-{time.time_ns()}-{socket.gethostname()}-{os.getpid()}"
    unfinished = Path(NOTES, f".{name}")
    unfinished.write_text(f"{trial} {epoch} {socket.gethostname()}")
    unfinished.rename(Path(NOTES, name))
    while held(trial, epoch):
        time.sleep(0.05)


def held(trial: str, epoch: int) -> bool:
    """Whether it has to wait."""
    try:
        first, number = Path(NOTES, "hold").read_text().split()
    except (OSError, ValueError):  # not there, or just being written
        return False
    return trial >= first and epoch >= int(number)


if NOTES:
    sys.meta_path.insert(0, Witness())
