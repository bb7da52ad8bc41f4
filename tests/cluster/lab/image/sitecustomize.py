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


class Observer:
    """Finds xfer.run as Python itself does, and puts itself in the place of its `_train_epoch`."""

    def find_spec(self, name, path=None, target=None):
        if name != "xfer.run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_observe(module):
            load(module)
            train = module.Run._train_epoch

            def observed(run):
                begin(run.folder.parent.name, len(run.epochs) + 1)
                return train(run)

            module.Run._train_epoch = observed

        spec.loader.exec_module = load_and_observe
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
    sys.meta_path.insert(0, Observer())
