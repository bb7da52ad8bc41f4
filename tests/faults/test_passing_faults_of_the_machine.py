"""Faults 3 and 8: a fault of the machine interrupts a trial, and the same command tries it again, within bounds."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sweeps.engine import cli
from sweeps.engine.console.progress import ProgressView
from sweeps.engine.launch import claim_plan
from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.storage.folders import MachineFaultError
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials import machine_faults, probe_tasks, trainable
from sweeps.engine.trials.machine_faults import MAX_FAULTS, MAX_FAULTS_IN_A_ROW, is_machine_fault
from sweeps.engine.trials.run_options import RunOptions
from sweeps.engine.trials.trainable import TrialContext, trial_config
from tests.engine.conftest import a_recipe
from tests.engine.trials.test_stage import StageHarness
from tests.sweep_commands import ROOT
from xfer.distributed.launcher import WorkerLostError
from xfer.storage.object_store import StorageUnavailableError
from xfer.training import checkpoints
from xfer.training.epochs import DivergedError

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def caused_by(cause: BaseException) -> ValueError:
    """An error that was raised from another."""
    error = ValueError("the features cannot be read")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (DISK_FULL, True),
        (OSError(errno.EIO, "Input/output error"), True),
        (ConnectionResetError(), True),
        (StorageUnavailableError("bucket"), True),
        (MemoryError(), True),
        (WorkerLostError("lost"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (caused_by(DISK_FULL), True),
        (DivergedError("the loss is nan at step 3"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("batch size 1e9"), False),
        (KeyError("loss"), False),
    ],
)
def test_faults_of_the_machine_are_told_from_those_of_the_recipe(error: Exception, passing: bool) -> None:
    assert is_machine_fault(error) is passing


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A trial as its process receives it."""
    store = Store(tmp_path / "colours")
    trial = Trial("0000", "search", {}, a_recipe())
    store.add_trial(trial)
    return trial_config(trial, TrialContext(str(store.folder), "pack", None, 1, 0.0))


def fail_with(error: Exception) -> Callable[..., Any]:
    """A function that raises an error."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("kind", ["trial", "probes"])
def test_a_trial_on_a_full_disk_is_tried_again_and_fails_after_several_starts(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(trainable, "open_run", fail_with(DISK_FULL))
    monkeypatch.setattr(probe_tasks, "open_context", lambda context: (SimpleNamespace(), None))
    monkeypatch.setattr(probe_tasks, "group_recipes", lambda recipes: [[0]])
    monkeypatch.setattr(probe_tasks, "network_key", lambda recipe: 0)
    monkeypatch.setattr(probe_tasks, "_train_group", fail_with(DISK_FULL))
    store = trainable.open_store(config["site"])
    for start in range(1, MAX_FAULTS):
        trainable.train_trial(config) if kind == "trial" else probe_tasks.train_probes([config])
        assert store.record("0000") is None
        assert store.faults("0000") == ["OSError: [Errno 28] No space left on device"] * start
    trainable.train_trial(config) if kind == "trial" else probe_tasks.train_probes([config])
    record = store.record("0000")
    assert record is not None
    assert record.status == "failed"
    assert record.error == (
        "OSError: [Errno 28] No space left on device (and a fault of the machine in each of 3 starts)"
    )


@pytest.mark.parametrize("kind", ["trial", "probes"])
def test_a_failure_of_the_recipe_is_final(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    error = DivergedError("the loss is nan at step 3")
    monkeypatch.setattr(trainable, "open_run", fail_with(error))
    monkeypatch.setattr(probe_tasks, "open_context", lambda context: (SimpleNamespace(), None))
    monkeypatch.setattr(probe_tasks, "group_recipes", lambda recipes: [[0]])
    monkeypatch.setattr(probe_tasks, "network_key", lambda recipe: 0)
    monkeypatch.setattr(probe_tasks, "_train_group", fail_with(error))
    trainable.train_trial(config) if kind == "trial" else probe_tasks.train_probes([config])
    record = trainable.open_store(config["site"]).record("0000")
    assert record is not None
    assert record.error == "DivergedError: the loss is nan at step 3"


def test_a_fault_that_cannot_be_written_is_tried_again(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable, "open_run", fail_with(DISK_FULL))
    monkeypatch.setattr(Store, "add_fault", fail_with(DISK_FULL))
    for _ in range(MAX_FAULTS + 1):
        trainable.train_trial(config)
    assert trainable.open_store(config["site"]).record("0000") is None


def test_a_lost_process_is_tried_again_by_the_next_start_and_said_so(tmp_path: Path) -> None:
    sweep = StageHarness(tmp_path)
    sweep.stage.next_trial()
    sweep.report("0000", 0.2)
    sweep.stage.ended("0000", "its process was lost 4 times")
    assert sweep.store.records() == sweep.learned == []
    assert sweep.view.running == {}
    assert "trial 0000 was interrupted by a fault of the machine (its process was lost 4 times)" in " ".join(
        sweep.screen.getvalue().split()
    )
    assert [trial.name for trial in sweep.store.trials()] == ["0000"]


def test_a_sweep_stops_after_faults_in_a_row_and_says_how_to_go_on(tmp_path: Path) -> None:
    sweep = StageHarness(tmp_path)
    assert MAX_FAULTS_IN_A_ROW == 3
    for _ in range(3):
        sweep.stage.next_trial()
    sweep.stage.ended("0000", "lost")
    sweep.finish("0001", 0.2, 0.4, 0.6, 0.8)  # a trial in between that ends well
    sweep.stage.ended("0002", "lost")
    machine_faults.check_faults_in_a_row(sweep.store, sweep.stage._faults_in_a_row)
    for name in ("0003", "0004"):
        sweep.stage._next = Trial(name, "search", {}, a_recipe())
        sweep.stage.next_trial()
        sweep.stage.ended(name, "lost")
    assert not sweep.stage.has_next()
    assert not sweep.stage.may_have_more()
    with pytest.raises(
        MachineFaultError, match=r"3 trials in a row .* once the cause is removed, the same command res"
    ):
        sweep.stage.run(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/a"),
            3,
            "free some space, and the same command resumes",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/a"), 3, "free some space, and the same command resumes"),
        (MachineFaultError("3 trials in a row"), 3, "error: 3 trials in a row"),
        (OSError(errno.EACCES, "Permission denied", "/runs/a"), 2, "error: Permission denied: /runs/a"),
    ],
)
def test_a_full_disk_has_an_exit_status_of_its_own_and_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, status: int, message: str
) -> None:
    monkeypatch.setattr(cli, "parse_args", fail_with(error))
    with pytest.raises(SystemExit) as ended:
        cli.main(Plan("folder", "?"), None)
    shown = capsys.readouterr().err
    assert ended.value.code == status
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_the_message_about_a_full_disk_reaches_the_screen_although_the_log_cannot_be_written() -> None:
    script = """
import logging, sys
from pathlib import Path
from sweeps.engine.console.log_redirect import redirect_output
try:
    with redirect_output(Path("/dev/full")):
        print("of a library", flush=False)
        logging.getLogger("x").warning("of a library")
        raise OSError("no space")
except OSError as error:
    print(f"error: {error}", file=sys.stderr)
"""
    completed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode in (0, 120)  # 120: what a library printed could not be written at exit either
    assert "error: no space" in completed.stderr.splitlines()


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_goes_on_when_there_is_room(
    one_thread: None, make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(trials=3, epochs=1, strategies=("linear_probe",), finalists=0)
    prepared = prepare(plan, tmp_path)
    store = Store(tmp_path / "colours")
    claim_plan(prepared, store)
    screen = io.StringIO()

    def start() -> Sweep:
        view = ProgressView(Console(file=screen, width=300), "colours")
        return Sweep(prepared, store, RunOptions(tracking_uri=""), view)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", fail_with(DISK_FULL))
        with pytest.raises(MachineFaultError, match="3 trials in a row"):
            start().search()
    assert store.records() == []
    assert "No space left on device) and will be tried again" in screen.getvalue()
    trials = store.trials()
    start().search()
    assert [record.status for record in store.records()] == ["finished"] * 3
    assert store.trials() == trials
