"""Sides: one task as a command of ours and as one of the plain script, run in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.run_outcomes import Point, RunOutcome, outcome_from_dict
from sweeps.engine.console.provenance import utc_now
from sweeps.engine.storage.store import Store, list_sweeps
from xfer.choices import Value

ROOT = Path(__file__).parents[1]
PLAIN_SCRIPT = Path(__file__).with_name("plain.py")
REMOVED_ENV_VARS = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "RAY_ADDRESS")
"""Variables that a command does not inherit: each side sets what it wants itself."""
PAUSE_SECONDS = 5.0  # seconds after a command, for Ray's processes end a little later than their driver


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """What both sides are asked to do."""

    data: Path
    """A folder with train, val and test part (see parted.py)."""
    backbone: str
    weights: Path
    image_size: int
    strategies: str
    trials: int
    epochs: int
    sampler: str = "tpe"
    scheduler: str = "asha"
    seed: int = 0
    fixed: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class ScriptSetting:
    """How the plain script uses the machine."""

    workers: int
    threads: int
    concurrent: int
    channels_last: bool = False

    def __str__(self) -> str:
        said = f"{self.concurrent} at a time, {self.workers} loader processes and {self.threads} threads each"
        return said + (", channels_last" if self.channels_last else "")


def run_ours(task: BenchmarkTask, storage: Path, log: Path, extra_flags: Sequence[str] = ()) -> RunOutcome:
    """Run a sweep as a user would; another one in the same storage starts anew, on what is cached there.

    Args:
        task: what to do. The test part stays closed.
        storage: the sweep's storage.
        log: what it says is added to this file.
        extra_flags: further flags.
    """
    flags = {
        **_shared(task),
        "--sampler": task.sampler,
        "--scheduler": task.scheduler,
        "--finalists": 0,
        "--storage": storage,
        "--reports": storage / "reports",
    }
    held = [word for axis, value in task.fixed.items() for word in ("--fix", f"{axis}={_written(value)}")]
    fresh = ["--fresh"] if storage.exists() else []
    command = ["-m", "sweeps.folder", *_words(flags), *held, *fresh, *extra_flags]
    began, seconds = _timed(command, log)
    newest = max(list_sweeps(storage), key=lambda store: (store.folder / "plan.json").stat().st_mtime)
    return RunOutcome(_said(command), seconds, 0.0, tuple(_points(newest, began)), utc_now())


def run_plain(
    task: BenchmarkTask,
    setting: ScriptSetting,
    scratch: Path,
    rerun: bool = False,
    limit: float | None = None,
    extra_flags: Sequence[str] = (),
) -> RunOutcome:
    """Run the plain script, unless this very run stands in the scratch folder.

    Args:
        task: what to do.
        setting: how to use the machine.
        scratch: where finished runs are kept.
        rerun: whether to run it even so.
        limit: seconds after which it is given up.
        extra_flags: further flags.

    Raises:
        RuntimeError: it, or one of its trials, failed.
        subprocess.TimeoutExpired: it took longer.
    """
    flags = {
        **_shared(task),
        "--search": {"tpe": "optuna"}.get(task.sampler, task.sampler),
        "--scheduler": task.scheduler,
        "--workers": setting.workers,
        "--threads": setting.threads,
        "--concurrent": setting.concurrent,
        "--fix": json.dumps(dict(task.fixed)),
    }
    command = [
        "-m",
        "benchmarks.plain",
        *_words(flags),
        *(["--channels-last"] if setting.channels_last else []),
        *extra_flags,
    ]
    identity = [command, hashlib.sha256(PLAIN_SCRIPT.read_bytes()).hexdigest()]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    kept, folder = scratch / "plain" / f"{name}.json", scratch / "plain" / name
    if kept.exists() and not rerun:
        return outcome_from_dict(json.loads(kept.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / "told.json"
    where = ["--storage", str(folder / f"storage-{time.time_ns()}"), "--json", str(told)]
    began, seconds = _timed([*command, *where], folder / "log.txt", limit)
    found = json.loads(told.read_text())
    if errors := [trial["error"] for trial in found["trials"] if trial["error"]]:
        raise RuntimeError(f"{_said(command)}: {len(errors)} trials failed, the first with {errors[0]}")
    points = (
        Point(
            trial=str(number),
            epoch=epoch["epoch"],
            at=epoch["finished_at"] - began,
            accuracy=epoch["val_accuracy"],
            images_per_second=epoch["images"] / epoch["seconds"],
        )
        for number, trial in enumerate(found["trials"])
        for epoch in trial["epochs"]
    )
    outcome = RunOutcome(_said(command), seconds, found["ready"] - began, tuple(points), utc_now())
    kept.write_text(json.dumps(outcome.as_dict()))
    return outcome


def _shared(task: BenchmarkTask) -> dict[str, object]:
    """What both sides call by the same name."""
    return {
        "--data": task.data,
        "--backbone": task.backbone,
        "--weights": task.weights,
        "--image-size": task.image_size,
        "--strategies": task.strategies,
        "--trials": task.trials,
        "--epochs": task.epochs,
        "--seed": task.seed,
    }


def _words(flags: Mapping[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (name, str(value))]


def _written(value: Value) -> str:
    return "none" if value is None else str(value)


def _said(command: Sequence[str]) -> str:
    return f"python {shlex.join(command)}"


def _timed(command: Sequence[str], log: Path, limit: float | None = None) -> tuple[float, float]:
    """When a command was started, in seconds since 1970, and how many seconds it took.

    Raises:
        RuntimeError: it failed; the message ends with the last it said.
        subprocess.TimeoutExpired: it took longer than the limit.
    """
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED_ENV_VARS}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        began, clock = time.time(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except BaseException:  # too slow, or interrupted: what was started here ends here
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        seconds = time.monotonic() - clock
    time.sleep(PAUSE_SECONDS)
    if status:
        said = "\n".join(log.read_text().splitlines()[-20:])
        raise RuntimeError(f"{_said(command)} ended with status {status}:\n{said}")
    return began, seconds


def _points(store: Store, began: float) -> list[Point]:
    """The epochs of a sweep: each was there when its object was written, or with the record that holds it."""
    found = []
    for trial in store.trials():
        folder, record = store.trial_folder(trial.name), store.record(trial.name)
        for epoch in record.epochs if record else store.epochs(trial.name):
            written = folder / "epochs" / f"{epoch.epoch:04d}.json"
            at = (written if written.exists() else folder / "record.json").stat().st_mtime - began
            found.append(Point(trial.name, epoch.epoch, at, epoch.val_accuracy, epoch.images_per_second))
    return found
