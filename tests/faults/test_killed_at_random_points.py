"""Faults 1 and 6: a driver is killed at random writes of a 40-trial search with TPE and ASHA, and started again.

Training is replaced by a formula and Ray by threads, so that a start takes a fraction of a second. Everything else is
real: sampler, scheduler, ledger, stage, store, `train_trial` and checkpoints. Each start runs in a process of its own,
which kills itself before one of its writes, renames or removals; tests/test_resume.py does the same once with Ray.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import random
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.launch import claim_plan
from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.storage.store import Store
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials import placement, ray_tune, trainable
from sweeps.engine.trials.ray_tune import TrialSource
from sweeps.engine.trials.run_options import RunOptions
from tests.sweep_commands import without_timings
from xfer.recipe import recipe_from_dict
from xfer.records import Epoch, Evaluation, Record, as_dict, epoch_from_dict
from xfer.training import checkpoints
from xfer.training.epochs import build_record

pytestmark = pytest.mark.slow

TRIALS, EPOCHS, IMAGES = 40, 4, 100
WRITES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate")
"""Audit events, besides opening a file for writing, that change what is on disk."""


class ToyRun:
    """Stands in for `Run`: its accuracies are a formula of the recipe, and it resumes from real checkpoints."""

    trained_epochs = -1
    """File descriptor of the list of all epochs that were trained, in all starts."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.recipe = recipe_from_dict(config["recipe"])
        self.folder = trainable.open_store(config["site"]).checkpoints(config["trial"])
        state = checkpoints.load(self.folder)
        self.epochs = tuple(epoch_from_dict(epoch) for epoch in state["epochs"]) if state else ()
        self.resumed_at = (len(self.epochs),) if state else ()

    def __iter__(self) -> Iterator[Epoch]:
        while len(self.epochs) < self.recipe.epochs:
            number = len(self.epochs) + 1
            accuracy = self._accuracy(number)
            os.write(self.trained_epochs, f"{self.folder.parent.name} {number}\n".encode())
            self.epochs += (Epoch(number, 0.5, accuracy, 1 - accuracy, accuracy, 1e-3, 1.0, 1.0, 50.0),)
            state = {"epochs": [as_dict(epoch) for epoch in self.epochs], "weights": torch.tensor([accuracy])}
            checkpoints.save(self.folder, number, state)
            yield self.epochs[-1]

    def record(self, trial: str, phase: Any, error: str | None = None) -> Record:
        val = None
        if len(self.epochs) == self.recipe.epochs:
            correct = round(self.epochs[-1].val_accuracy * IMAGES)
            val = Evaluation("val", 0.5, tuple(range(IMAGES)), tuple(place < correct for place in range(IMAGES)))
        return build_record(self.recipe, trial, phase, self.epochs, val=val, error=error, resumed_at=self.resumed_at)

    def _accuracy(self, epoch: int) -> float:
        noise = int(hashlib.sha256(self.recipe.id.encode()).hexdigest()[:6], 16) / 16**6
        quality = 1 - abs(torch.tensor(self.recipe.learning_rate).log10().item() + 3) / 4
        return round((0.3 + 0.5 * quality + 0.2 * noise) * epoch / (epoch + 1), 4)


class _Stopped(BaseException):
    """The scheduler has stopped the trial."""


class ThreadTrials:
    """Runs the trials of a source in threads of this process, one step at a time; stands in for Ray Tune."""

    def __init__(self) -> None:
        self._events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._answers: dict[int, queue.Queue[bool]] = {}

    def run(self, source: TrialSource, concurrent: int, train: Callable[[dict[str, Any]], None]) -> None:
        running = 0
        while True:
            while running < concurrent and (config := source.next_trial()) is not None:
                threading.Thread(target=self._train, args=(config, train), daemon=True).start()
                running += 1
            if not running and not source.may_have_more():
                return
            kind, trial, *content = self._events.get()
            if kind == "report":
                self._answers[content[0]].put(source.should_continue(trial, content[1]))
            else:
                running -= 1
                source.ended(trial, None)

    def report(self, record: Record) -> None:
        thread = threading.get_ident()
        self._events.put(("report", record.trial, thread, json.loads(json.dumps(as_dict(record)))))
        if not self._answers[thread].get():
            raise _Stopped

    def _train(self, config: dict[str, Any], train: Callable[[dict[str, Any]], None]) -> None:
        self._answers[threading.get_ident()] = queue.Queue()
        try:
            train(config)
        except _Stopped:
            pass
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        self._events.put(("ended", config["trial"]))


def run_driver(prepared: Prepared, folder: Path, concurrent: int) -> None:
    """One start of the sweep, in this process."""
    trials = ThreadTrials()
    os.fsync = lambda file: None  # what a killed process has written is not lost; only a loss of power needs it
    ray_tune.run_trials = trials.run
    trainable.report_to_tune = trials.report  # type: ignore[assignment]
    trainable.open_run = ToyRun  # type: ignore[assignment,misc]
    placement.Placement.connect = lambda self: setattr(self, "concurrent", concurrent)  # type: ignore[method-assign]
    view = ProgressView(Console(file=io.StringIO(), width=120), "colours")
    store = Store(folder / "colours")
    claim_plan(prepared, store)
    sweep = Sweep(prepared, store, RunOptions(tracking_uri=""), view)
    sweep.search()
    sweep.finals()


def start(prepared: Prepared, folder: Path, concurrent: int, kill_at: int | None) -> tuple[bool, int]:
    """Run the driver in a process of its own, which kills itself before its write number `kill_at`.

    Returns:
        Whether it was killed, and how many writes it did.
    """
    count_file = folder / "writes"
    process = os.fork()
    if process == 0:
        status, writes = 1, 0
        try:

            def count(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal writes
                opens_to_write = event == "open" and str(arguments[0]).startswith(str(folder)) and arguments[2] & 3
                if opens_to_write or (event in WRITES and str(arguments[0]).startswith(str(folder))):
                    writes += 1
                    if writes == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

            ToyRun.trained_epochs = os.open(folder / "trained", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            sys.addaudithook(count)
            run_driver(prepared, folder, concurrent)
            total = writes
            count_file.write_text(str(total))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, wait_status = os.waitpid(process, 0)
    if os.WIFSIGNALED(wait_status):
        assert os.WTERMSIG(wait_status) == signal.SIGKILL
        return True, kill_at or 0
    assert os.WEXITSTATUS(wait_status) == 0, "the driver failed; its traceback is above"
    return False, int(count_file.read_text())


def snapshot(folder: Path) -> dict[str, Any]:
    """What an undisturbed and a resumed sweep must have in common: trials, records and decisions."""
    store = Store(folder / "colours")
    decisions = store.decisions("finals")
    finals = [{name: value for name, value in decision.items() if name != "at"} for decision in decisions]
    return {
        "trials": {trial.name: (trial.phase, dict(trial.params), dict(trial.recipe)) for trial in store.trials()},
        "records": {record.trial: without_timings(as_dict(record)) for record in store.records()},
        "finals": finals,
    }


def check_invariant(folder: Path, before: dict[str, str]) -> dict[str, str]:
    """Check what must hold after every kill, and return the records and epochs on disk for the next check."""
    store = Store(folder / "colours")
    stored = {
        f"{trial}, epoch {epoch.epoch}": json.dumps(as_dict(epoch), sort_keys=True)
        for trial in store.trial_names()
        for epoch in store.epochs(trial)
    }
    for record in store.records():
        numbers = [epoch.epoch for epoch in record.epochs]
        assert numbers == list(range(1, len(numbers) + 1)), f"{record.trial} has the epochs {numbers}"
        assert record.epochs == tuple(store.epochs(record.trial))
        stored[record.trial] = json.dumps(as_dict(record), sort_keys=True)
    assert before.items() <= stored.items(), "a record or an epoch was lost or has changed"
    assert not list(folder.rglob("*.damaged"))
    return stored


@pytest.fixture(scope="module")
def toy(
    one_thread: None, make_plan: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Prepared, Path]:
    """A prepared sweep, and its storage before the first start."""
    folder = tmp_path_factory.mktemp("toy")
    plan = make_plan(
        trials=TRIALS, epochs=EPOCHS, strategies=("clip", "naive"), sampler="tpe", finalists=2, seeds=2, advise=False
    )
    return prepare(plan, folder), folder


def kill_and_resume(
    toy: tuple[Prepared, Path], folder: Path, concurrent: int, kills: int, chance: random.Random
) -> int:
    """Run a sweep to its end with at most `kills` kills at random writes; return their number."""
    prepared, storage = toy
    shutil.copytree(storage, folder, dirs_exist_ok=True)
    stored: dict[str, str] = {}
    trained: list[str] = []
    for number in range(kills + 1):
        was_killed, _ = start(prepared, folder, concurrent, chance.randint(1, 350) if number < kills else None)
        known, trained = len(trained), (folder / "trained").read_text().splitlines()
        assert not {line.split()[0] for line in trained[known:]} & stored.keys(), "a finished trial ran again"
        stored = check_invariant(folder, stored)
        repeated = len(trained) - len(set(trained))
        assert repeated <= (number + was_killed) * concurrent, "a kill costs each running trial one epoch at most"
        if not was_killed:
            return number
    raise AssertionError("not reached: the last start is not killed")


@pytest.fixture(scope="module")
def undisturbed(toy: tuple[Prepared, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(toy[1], folder, dirs_exist_ok=True)
    was_killed, writes = start(toy[0], folder, 1, None)
    assert not was_killed
    assert writes > 500
    found = snapshot(folder)
    statuses = Counter(record["status"] for record in found["records"].values() if record["phase"] == "search")
    assert statuses["pruned"] > 5
    assert statuses["finished"] > 5, "the scheduler has something to decide"
    assert statuses.total() == TRIALS
    return found


def many_kills(
    toy: tuple[Prepared, Path], folder: Path, concurrent: int, kills: int, check: Callable[[Path], None]
) -> None:
    """Kill sweep after sweep until the number of kills is reached; check each sweep at its end."""
    done = round_ = 0
    while done < kills:
        sweep = folder / str(round_)
        done += kill_and_resume(toy, sweep, concurrent, kills - done, random.Random(1000 * concurrent + round_))
        check(sweep)
        shutil.rmtree(sweep)
        round_ += 1


def equals(undisturbed: dict[str, Any]) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert snapshot(folder) == undisturbed

    return check


def is_complete(folder: Path) -> None:
    """Every planned trial has a record."""
    found = snapshot(folder)
    phases = Counter(phase for phase, _, _ in found["trials"].values())
    assert phases["search"] == TRIALS
    assert found["records"].keys() == found["trials"].keys()


def test_one_at_a_time_all_records_equal_those_of_an_undisturbed_sweep(
    toy: tuple[Prepared, Path], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    many_kills(toy, tmp_path, 1, 25, equals(undisturbed))


def test_several_at_a_time_nothing_is_lost_repeated_or_duplicated(toy: tuple[Prepared, Path], tmp_path: Path) -> None:
    many_kills(toy, tmp_path, 3, 25, is_complete)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_thousand_kills(toy: tuple[Prepared, Path], undisturbed: dict[str, Any], tmp_path: Path) -> None:
    many_kills(toy, tmp_path / "1", 1, 500, equals(undisturbed))
    many_kills(toy, tmp_path / "3", 3, 500, is_complete)
