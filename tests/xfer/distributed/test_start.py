"""A leader never waits for a worker that has died, failed or hung while the devices start and connect.

The workers are CPU processes that communicate by gloo. With NCCL the same code runs; it has not been tried.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from xfer.distributed import launcher, process_group
from xfer.distributed.launcher import WorkerError, WorkerGroup, WorkerLostError
from xfer.distributed.process_group import PeerLostError

pytestmark = pytest.mark.slow  # every worker imports torch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch):
    """A leader that waits in vain ends after a minute, with another error than the worker's."""
    monkeypatch.setattr(process_group, "COLLECTIVE_TIMEOUT", timedelta(minutes=1))


def is_first(job):
    """Whether this worker is the first of its group to ask."""
    try:
        (Path(job["folder"]) / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def idle(rank, tasks):
    for _ in tasks:
        pass


def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(*args, **options):
    time.sleep(3600)


def prepare(job, device):
    return idle


def die_before_it_is_ready(job, device):
    return die() if is_first(job) else idle


def die_when_it_joins(job, device):
    if is_first(job):
        launcher.join_process_group = die
    return idle


def die_while_it_connects(job, device):
    if is_first(job):
        torch.distributed.init_process_group = die
    return idle


def die_after_it_has_connected(job, device):
    return die if is_first(job) else idle


def fail_while_it_connects(job, device):
    def fail(*args, **options):
        raise torch.distributed.DistBackendError("NCCL error: unhandled system error")

    if is_first(job):
        torch.distributed.init_process_group = fail
    return idle


def hang_while_it_connects(job, device):
    torch.distributed.init_process_group = hang
    return idle


def train(prepare, folder, devices=2):
    """Start workers and exchange one tensor with them, as the leader of a run does."""
    group = WorkerGroup(prepare, {"folder": str(folder)}, CPU, devices)
    try:
        group.send_task({})
        group.rank.all_reduce(torch.ones(3))
        group.finish_task()
    except PeerLostError as error:
        group.raise_worker_error(error)
        raise
    finally:
        group.close()


@pytest.mark.parametrize(
    "prepare", [die_before_it_is_ready, die_when_it_joins, die_while_it_connects, die_after_it_has_connected]
)
def test_the_leader_reports_a_killed_worker(prepare, tmp_path):
    with pytest.raises(WorkerLostError, match=r"the process on device 2 of 2 was lost \(exit status -9\)"):
        train(prepare, tmp_path)


def test_the_error_of_a_worker_that_cannot_connect_is_reported(tmp_path):
    with pytest.raises(WorkerError, match=r"device [23] of 3: DistBackendError: NCCL error: unhandled system error"):
        train(fail_while_it_connects, tmp_path, devices=3)  # the third only waits for the second


def test_the_error_of_a_worker_that_cannot_import_its_code_is_reported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "code_of_this_machine.py"
    module.write_text("def prepare(job, device): ...\n")
    prepare = importlib.import_module(module.stem).prepare
    module.write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    os.utime(module, (0, 0))  # or Python may take the compiled module for current
    with pytest.raises(
        WorkerError, match="device 2 of 2: ImportError: libcudart.so.12: cannot open shared object file"
    ):
        train(prepare, tmp_path)


@pytest.mark.parametrize(
    ("prepare", "seconds", "message"),
    [
        (prepare, 0.1, "device 2 of 2 did not start within 0.1 s"),  # it still imports torch
        # Long enough for the worker to import torch, or it counts as not started.
        pytest.param(
            *(hang_while_it_connects, 30, "the 2 devices did not connect within 30 s"), marks=pytest.mark.nightly
        ),
    ],
)
def test_the_start_has_a_time_limit(prepare, seconds, message, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "START_SECONDS", seconds)
    with pytest.raises(WorkerLostError, match=message):
        train(prepare, tmp_path)


def test_a_process_can_lead_again_after_a_start_that_failed(tmp_path):
    with pytest.raises(WorkerLostError):
        train(die_when_it_joins, tmp_path)
    group = WorkerGroup(prepare, {}, CPU, 2)
    try:
        assert (group.rank.index, group.rank.size) == (0, 2)
    finally:
        group.close()
