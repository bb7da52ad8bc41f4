"""Trials that were given several GPUs are trained on all of them together, and leave no process behind.

The GPUs are only said to be there, so the processes of a trial compute on CPUs.
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
def begin(tmp_path, pack, weights_of, make_recipe):
    """A store, and the configuration of a trial that is begun in it."""
    store = Store(tmp_path / "sweep")

    def begun(name="0000", gpus=2.0, **changes):
        recipe = make_recipe(backbone="test_vit", **changes)
        file = str(weights_of("test_vit"))
        site = TrialContext(str(store.folder), str(pack.folder), file, 2, gpus, features=str(tmp_path / "features"))
        trial = Trial(name, "search", {}, recipe.as_dict())
        store.add_trial(trial)
        return trial_config(trial, site)

    return store, begun


def marked(mark):
    """The commands of all processes that inherited a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return [command for command in found if "spawn_main" in command]


def test_a_trial_whose_other_process_was_lost_is_left_to_ray_without_a_record(begin, monkeypatch):
    store, begun = begin

    def lost(config):
        raise WorkerLostError("the process on device 2 of 2 was lost")

    monkeypatch.setattr(trainable, "open_run", lost)
    with pytest.raises(WorkerLostError):
        train_trial(begun())
    assert store.record("0000") is None


@pytest.mark.parametrize(("gpus", "devices"), [(0.0, 1), (0.25, 1), (1.0, 1), (2.0, 2), (4.0, 4)])
def test_whole_gpus_are_devices_of_one_run_and_share_its_cores(begin, monkeypatch, gpus, devices):
    import torch

    _, begun = begin
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    run = trainable.open_run(begun(gpus=gpus))
    assert run.devices == devices
    assert threads[-1] == max(1, 2 // devices)


@pytest.mark.slow
def test_a_trial_on_two_gpus_comes_to_the_record_of_one_on_none(begin, monkeypatch):
    monkeypatch.setattr(trainable, "report_to_tune", lambda record: None)
    store, begun = begin
    train_trial(begun("0000", 0.0))
    train_trial(begun("0001", 2.0))
    alone, found = store.record("0000"), store.record("0001")
    assert (alone.arithmetic, found.arithmetic) == ("float32", "float32, 2 devices")
    assert (found.status, found.id, found.key) == ("finished", alone.id, alone.key)
    assert store.epochs("0001") == found.epochs
    assert found.val.correct == alone.val.correct
    for one, other in zip(found.epochs, alone.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-5)


@pytest.mark.slow
def test_a_trial_that_is_stopped_at_a_report_leaves_its_checkpoint_and_no_process(begin, monkeypatch):
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    followers = []

    def stop(record):
        followers.append(marked(mark))
        raise SystemExit  # as Tune does it

    monkeypatch.setattr(trainable, "report_to_tune", stop)
    store, begun = begin
    with pytest.raises(SystemExit):
        train_trial(begun(epochs=4))
    assert [len(each) for each in followers] == [1]
    assert marked(mark) == []
    assert len(checkpoints.load(store.checkpoints("0000"))["epochs"]) == 1
    monkeypatch.setattr(trainable, "report_to_tune", lambda record: None)
    train_trial(begun(epochs=4))
    assert store.record("0000").resumed_at == (1,)
    assert store.record("0000").status == "finished"
