"""Follower: the program of a process that trains together with a leader (see `xfer.distributed.process_group`)."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch

from xfer.data.pack import load_pack
from xfer.devices.host_memory import retain_freed_memory
from xfer.distributed.process_group import READY, SHUTDOWN_SECONDS, PeerLostError, deserialize, join_process_group
from xfer.features.feature_cache import FeatureCache
from xfer.recipe import recipe_from_dict
from xfer.run import Run

log = logging.getLogger(__name__)


def main(channel: int) -> None:
    """Follow until there is no more to do.

    Args:
        channel: the file descriptor over which the leader says what is to be done. Where it is closed the leader has no
            more to say, or is no more.
    """
    leader = Connection(channel)
    try:
        job = deserialize(leader.recv_bytes())
    except EOFError:
        return
    tasks: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    folder, device = Path(job["folder"]), torch.device(job["device"])
    threading.Thread(target=_listen, args=(leader, tasks, folder), daemon=True).start()
    try:
        run = _run(job, device)
        leader.send_bytes(READY)
        with join_process_group(folder, job["rank"], job["size"], device) as member:
            try:
                run.train_as_worker(member, iter(tasks.get, None))
            except Exception as error:
                _end(leader, error)  # at once, for the leader waits; leaving in order could be waiting for the others
    except Exception as error:
        _end(leader, error)
    os._exit(0)  # there is nothing to be tidied up, and the leader waits


def _run(job: dict[str, Any], device: torch.device) -> Run:
    torch.set_num_threads(job["threads"])
    retain_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Run(
        recipe_from_dict(job["recipe"]),
        load_pack(Path(job["pack"])),
        Path(job["weights"]) if job["weights"] else None,
        device,
        features=FeatureCache(Path(job["features"])) if job["features"] else None,
        precision=job["precision"],
        compiled=job["compiled"],
    )


def _listen(leader: Connection, tasks: queue.SimpleQueue[dict[str, Any] | None], folder: Path) -> None:
    try:
        while True:
            tasks.put(deserialize(leader.recv_bytes()))
    except (EOFError, OSError):
        tasks.put(None)
    time.sleep(SHUTDOWN_SECONDS / 2)
    # Still here, so this process is in the middle of a step, and the leader has been killed: nobody will end that step.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _end(leader: Connection, error: Exception) -> NoReturn:
    """Say why, unless it is only that another has ended: that one will have said why."""
    if not isinstance(error, PeerLostError):
        log.error("device given up", exc_info=error)
        leader.send_bytes(f"{type(error).__name__}: {error}".encode())
    os._exit(1)
