"""A trial with several GPUs trains on all of them and leaves no process behind.

The GPUs do not exist, so the processes of a trial compute on CPUs.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import trainable
from sweeps.engine.trials.trainable import TrialContext, train_trial, trial_config
from xfer.distributed.launcher import WorkerLostError
from xfer.training import checkpoints

MARK = "XFER_TEST_TEAM"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sweep")


@pytest.fixture
def new_trial(store, tmp_path, pack, weights_of, make_recipe):
    """A function that adds a trial to the store and returns its configuration."""

    def add(name="0000", gpus=2.0, **changes):
        recipe = make_recipe(backbone="test_vit", **changes)
        file = str(weights_of("test_vit"))
        context = TrialContext(str(store.folder), str(pack.folder), file, 2, gpus, features=str(tmp_path / "features"))
        trial = Trial(name, "search", {}, recipe.as_dict())
        store.add_trial(trial)
        return trial_config(trial, context)

    return add


def worker_commands(mark):
    """The commands of all worker processes that inherited a mark."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                commands.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return [command for command in commands if "spawn_main" in command]


def test_a_trial_that_lost_a_worker_is_left_to_ray_without_a_record(store, new_trial, monkeypatch):
    def lose_worker(config):
        raise WorkerLostError("the process on device 2 of 2 was lost")

    monkeypatch.setattr(trainable, "open_run", lose_worker)
    with pytest.raises(WorkerLostError):
        train_trial(new_trial())
    assert store.record("0000") is None


@pytest.mark.parametrize(("gpus", "devices"), [(0.0, 1), (0.25, 1), (1.0, 1), (2.0, 2), (4.0, 4)])
def test_whole_gpus_are_the_devices_of_one_run_and_share_its_cores(new_trial, monkeypatch, gpus, devices):
    import torch

    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    run = trainable.open_run(new_trial(gpus=gpus))
    assert run.devices == devices
    assert threads[-1] == max(1, 2 // devices)


@pytest.mark.slow
def test_a_trial_on_two_gpus_has_the_same_record_as_one_without_gpus(store, new_trial, monkeypatch):
    monkeypatch.setattr(trainable, "report_to_tune", lambda record: None)
    train_trial(new_trial("0000", 0.0))
    train_trial(new_trial("0001", 2.0))
    single, double = store.record("0000"), store.record("0001")
    assert (single.arithmetic, double.arithmetic) == ("float32", "float32, 2 devices")
    assert (double.status, double.id, double.key) == ("finished", single.id, single.key)
    assert store.epochs("0001") == double.epochs
    assert double.val.correct == single.val.correct
    for actual, expected in zip(double.epochs, single.epochs, strict=True):
        assert actual.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
        assert actual.val_loss == pytest.approx(expected.val_loss, rel=1e-5)


@pytest.mark.slow
def test_a_trial_stopped_at_a_report_leaves_its_checkpoint_and_no_process(store, new_trial, monkeypatch):
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    workers = []

    def stop(record):
        workers.append(worker_commands(mark))
        raise SystemExit  # as Tune does it

    monkeypatch.setattr(trainable, "report_to_tune", stop)
    with pytest.raises(SystemExit):
        train_trial(new_trial(epochs=4))
    assert [len(commands) for commands in workers] == [1]
    assert worker_commands(mark) == []
    assert len(checkpoints.load(store.checkpoints("0000"))["epochs"]) == 1
    monkeypatch.setattr(trainable, "report_to_tune", lambda record: None)
    train_trial(new_trial(epochs=4))
    assert store.record("0000").resumed_at == (1,)
    assert store.record("0000").status == "finished"
