"""The two sides of a comparison: one task as a command of this project and as one of the plain script."""

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
from xfer.hyperparameters import FROZEN_HEADS

ROOT = Path(__file__).parents[1]
PLAIN_SCRIPT = Path(__file__).with_name("plain.py")
REMOVED_ENV_VARS = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "RAY_ADDRESS")
"""Variables that a command does not inherit; each side sets the ones it needs."""
COMPARED_SPACE: Mapping[str, str] = {
    "optimizer": "sgd,adam,radam,ranger",
    "schedule": "onecycle,cosine",
    "augmentation": "flip,none,randaugment",
    "mixing": "none,cutmix",
    "batch_norm": "with_weights",
}
"""Axes that our side searches with other values than its default ones, so that both sides search the same space."""
PAUSE_SECONDS = 5.0  # after a command: Ray's processes end a little later than their driver


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """The task that both sides run."""

    data: Path
    """Folder with a train, val and test part (see `split_folders`)."""
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
    """Loader processes per trial."""
    threads: int
    """Torch threads per trial."""
    concurrent: int
    """Concurrent trials."""
    channels_last: bool = False

    def __str__(self) -> str:
        text = f"{self.concurrent} at a time, each with {self.workers} loader processes and {self.threads} threads"
        return text + (", channels_last" if self.channels_last else "")


def run_ours(task: BenchmarkTask, storage: Path, log: Path, extra_flags: Sequence[str] = ()) -> RunOutcome:
    """Run a sweep as a user would. In an existing storage, start a new sweep that reuses what is cached there.

    Args:
        task: what to run; the test part is not evaluated.
        storage: the sweep's storage.
        log: file that the output is appended to.
        extra_flags: additional flags.
    """
    flags = {
        **_common_flags(task),
        "--sampler": task.sampler,
        "--scheduler": task.scheduler,
        "--finalists": 0,
        "--storage": storage,
        "--reports": storage / "reports",
    }
    fixed = [word for axis, value in task.fixed.items() for word in ("--fix", f"{axis}={_fixed_value(value)}")]
    compared = [word for text in _compared_axes(task) for word in ("--vary", text)]
    fresh = ["--fresh"] if storage.exists() else []
    command = ["-m", "sweeps.folder", *_flag_words(flags), *compared, *fixed, *fresh, *extra_flags]
    started_at, seconds = run_command(command, log)
    newest = max(list_sweeps(storage), key=lambda store: (store.folder / "plan.json").stat().st_mtime)
    return RunOutcome(_command_line(command), seconds, 0.0, tuple(sweep_points(newest, started_at)), utc_now())


def _compared_axes(task: BenchmarkTask) -> list[str]:
    """Return the values of `COMPARED_SPACE` for `--vary`, without what the task fixes or no probe ever tries."""
    has_no_effect = {"mixing"} if set(task.strategies.split(",")) <= FROZEN_HEADS else set()
    skipped = {*task.fixed, *has_no_effect}
    return [f"{axis}={values}" for axis, values in COMPARED_SPACE.items() if axis not in skipped]


def run_plain(
    task: BenchmarkTask,
    setting: ScriptSetting,
    scratch: Path,
    rerun: bool = False,
    limit: float | None = None,
    extra_flags: Sequence[str] = (),
) -> RunOutcome:
    """Run the plain script, or return the stored outcome of the same command and script from the scratch folder.

    Args:
        task: what to run.
        setting: how to use the machine.
        scratch: folder in which finished runs are stored.
        rerun: whether to ignore a stored outcome.
        limit: timeout in seconds.
        extra_flags: additional flags.

    Raises:
        RuntimeError: the command or one of its trials failed.
        subprocess.TimeoutExpired: the command ran longer than `limit`.
    """
    flags = {
        **_common_flags(task),
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
        *_flag_words(flags),
        *(["--channels-last"] if setting.channels_last else []),
        *extra_flags,
    ]
    identity = [command, hashlib.sha256(PLAIN_SCRIPT.read_bytes()).hexdigest()]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    outcome_file, folder = scratch / "plain" / f"{name}.json", scratch / "plain" / name
    if outcome_file.exists() and not rerun:
        return outcome_from_dict(json.loads(outcome_file.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    json_file = folder / "results.json"
    output_flags = ["--storage", str(folder / f"storage-{time.time_ns()}"), "--json", str(json_file)]
    started_at, seconds = run_command([*command, *output_flags], folder / "log.txt", limit)
    result = json.loads(json_file.read_text())
    if errors := [trial["error"] for trial in result["trials"] if trial["error"]]:
        raise RuntimeError(f"{_command_line(command)}: {len(errors)} trials failed, the first with {errors[0]}")
    points = (
        Point(
            trial=str(number),
            epoch=epoch["epoch"],
            at=epoch["finished_at"] - started_at,
            accuracy=epoch["val_accuracy"],
            images_per_second=epoch["images"] / epoch["seconds"],
        )
        for number, trial in enumerate(result["trials"])
        for epoch in trial["epochs"]
    )
    outcome = RunOutcome(_command_line(command), seconds, result["ready"] - started_at, tuple(points), utc_now())
    outcome_file.write_text(json.dumps(outcome.as_dict()))
    return outcome


def _common_flags(task: BenchmarkTask) -> dict[str, object]:
    """The flags that have the same name on both sides."""
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


def _flag_words(flags: Mapping[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (name, str(value))]


def _fixed_value(value: Value) -> str:
    return "none" if value is None else str(value)


def _command_line(command: Sequence[str]) -> str:
    return f"python {shlex.join(command)}"


def run_command(command: Sequence[str], log: Path, limit: float | None = None) -> tuple[float, float]:
    """Run a Python command and wait for its end.

    Args:
        command: arguments of the Python interpreter.
        log: file that the output is appended to.
        limit: timeout in seconds.

    Returns:
        The start time, in seconds since 1970, and the duration in seconds.

    Raises:
        RuntimeError: the command failed; the message ends with its last 20 lines of output.
        subprocess.TimeoutExpired: the command ran longer than `limit`.
    """
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED_ENV_VARS}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        started_at, clock = time.time(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except BaseException:  # timed out or interrupted: stop everything that the command started
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        seconds = time.monotonic() - clock
    time.sleep(PAUSE_SECONDS)
    if status:
        last_lines = "\n".join(log.read_text().splitlines()[-20:])
        raise RuntimeError(f"{_command_line(command)} exited with status {status}:\n{last_lines}")
    return started_at, seconds


def sweep_points(store: Store, started_at: float) -> list[Point]:
    """The epochs of a sweep, dated by the modification time of their object, or of the record that contains them.

    Args:
        store: the sweep's store.
        started_at: when the command was started, in seconds since 1970.
    """
    points = []
    for trial in store.trials():
        folder, record = store.trial_folder(trial.name), store.record(trial.name)
        for epoch in record.epochs if record else store.epochs(trial.name):
            epoch_file = folder / "epochs" / f"{epoch.epoch:04d}.json"
            at = (epoch_file if epoch_file.exists() else folder / "record.json").stat().st_mtime - started_at
            points.append(Point(trial.name, epoch.epoch, at, epoch.val_accuracy, epoch.images_per_second))
    return points
