"""Imported by every Python on a host of the laboratory: notes each epoch before it is trained, and can make it wait.

Each epoch writes a file `begun-*` with "TRIAL EPOCH HOST" to the folder LAB_NOTES. A file `hold` with "TRIAL EPOCH" in
that folder makes this trial and later ones wait before this epoch and later ones until the file is removed.
"""

import importlib.util
import os
import socket
import sys
import time
from pathlib import Path

NOTES = os.environ.get("LAB_NOTES")


def observed(iterate):
    """`Run.__iter__` that notes each epoch before it is trained, and may wait."""

    def observed_iter(run):
        epochs = iterate(run)
        try:
            while True:
                if len(run.epochs) < run.recipe.epochs:
                    begin(run.trial, len(run.epochs) + 1)
                try:
                    epoch = next(epochs)
                except StopIteration:
                    return
                yield epoch
        finally:
            epochs.close()

    return observed_iter


def naming(open_run):
    """`open_run` of a trial's process; its run knows the trial, because a checkpoint folder in a bucket has no name."""

    def named(config):
        run = open_run(config)
        run.trial = config["trial"]
        return run

    return named


def observe_runs(module):
    """Observe the runs of `xfer.run`."""
    module.Run.__iter__ = observed(module.Run.__iter__)


def name_runs(module):
    """Name the runs of `sweeps.engine.trials.trainable`."""
    module.open_run = naming(module.open_run)


class Finder:
    """Changes modules once they are loaded."""

    changes = {"xfer.run": observe_runs, "sweeps.engine.trials.trainable": name_runs}  # noqa: RUF012

    def find_spec(self, name, path=None, target=None):
        change = self.changes.pop(name, None)
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
    """Note the epoch, and wait while it is held."""
    name = f"begun-{time.time_ns()}-{socket.gethostname()}-{os.getpid()}"
    unfinished = Path(NOTES, f".{name}")
    unfinished.write_text(f"{trial} {epoch} {socket.gethostname()}")
    unfinished.rename(Path(NOTES, name))
    while held(trial, epoch):
        time.sleep(0.05)


def held(trial: str, epoch: int) -> bool:
    """Whether the epoch has to wait."""
    try:
        first, number = Path(NOTES, "hold").read_text().split()
    except (OSError, ValueError):  # missing, or half written
        return False
    return trial >= first and epoch >= int(number)


if NOTES:
    sys.meta_path.insert(0, Finder())
