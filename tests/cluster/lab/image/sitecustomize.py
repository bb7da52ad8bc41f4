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
                    begin(run.folder.parent.name, len(run.epochs) + 1)
                try:
                    epoch = next(epochs)
                except StopIteration:
                    return
                yield epoch
        finally:
            epochs.close()

    return observed_iter


class Finder:
    """Changes `xfer.run` once it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != "xfer.run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_observe(module):
            load(module)
            module.Run.__iter__ = observed(module.Run.__iter__)

        spec.loader.exec_module = load_and_observe
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
