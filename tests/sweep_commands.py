"""Sweeps as a person starts them: commands in processes of their own, looked at from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parent.parent
MARKER_ENV_VAR = "XFER_TEST_MARK"
TIMEOUT_SECONDS = 600
"""Seconds after which a command counts as hung, on a machine that does other things too."""


@dataclass(frozen=True)
class CompletedCommand:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float


class Command:
    """`python -m sweeps.<page> ...` in a session of its own, running.

    Args:
        page: the experiment, or `sweeps` itself where empty.
        flags: what follows.
        logs: a folder for what it prints.
        observer: a folder made by `install_observer`, to learn which epochs were trained where.
        cwd: where it is started; the checkout unless given.
    """

    def __init__(
        self,
        page: str,
        flags: Iterable[object],
        logs: Path,
        observer: Path | None = None,
        cwd: Path = ROOT,
        seconds_per_epoch: float = 0.0,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._mark = uuid.uuid4().hex
        self._out, self._err = logs / f"{self._mark}.out", logs / f"{self._mark}.err"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        path = [str(ROOT)] if observer is None else [str(observer), str(ROOT)]
        more = {
            "PYTHONPATH": os.pathsep.join(path),
            MARKER_ENV_VAR: self._mark,
            "XFER_TEST_PAUSE": str(seconds_per_epoch),
        }
        self._began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"sweeps.{page}" if page else "sweeps", *map(str, flags)],
                cwd=cwd,
                env={**inherited, **more},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def end(self) -> CompletedCommand:
        """Wait for it to end by itself, and for all that it started."""
        try:
            status = self.process.wait(TIMEOUT_SECONDS)
        finally:
            self.clear()
        return CompletedCommand(status, self._out.read_text(), self._err.read_text(), time.monotonic() - self._began)

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to its whole process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def wait_until(self, condition: Callable[[], Any], what: str) -> Any:
        """Whatever `seen` finds first, asked often; the command must be running until then."""
        limit = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < limit:
            if found := condition():
                return found
            if not self.is_running():
                pytest.fail(f"it ended before {what}:\n{self._out.read_text()}\n{self._err.read_text()}")
            time.sleep(0.05)
        return pytest.fail(f"not seen in {TIMEOUT_SECONDS} s: {what}")

    def clear(self) -> None:
        """See that nothing of it lives on: Ray's processes notice within seconds that their driver has gone."""
        if self.is_running():
            self.signal(signal.SIGKILL)
            self.process.wait()
        limit = time.monotonic() + 30
        while (left := processes_with(MARKER_ENV_VAR, self._mark)) and time.monotonic() < limit:
            time.sleep(0.2)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(page: str, flags: Iterable[object], logs: Path, cwd: Path = ROOT) -> CompletedCommand:
    """A command from its start to its end."""
    return Command(page, flags, logs, cwd=cwd).end()


def processes_with(variable: str, value: str) -> list[int]:
    """The ids of all processes that inherited an environment variable with this value."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # the process has ended meanwhile, or belongs to another user
            if f"{variable}={value}".encode() in path.read_bytes():
                pids.append(int(path.parent.name))
    return pids


OBSERVER_SOURCE = '''
"""Read by every Python that finds it on its path: notes each epoch that is trained, and takes its time over it."""

import importlib.machinery
import importlib.util
import os
import sys
import time
from pathlib import Path


class Observer:
    def find_spec(self, name, path=None, target=None):
        if name != "xfer.run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_observe(module):
            load(module)
            train, pause = module.Run._train_epoch, float(os.environ["XFER_TEST_PAUSE"])

            def observed(run):
                note = f"{run.folder.parent.name} {len(run.epochs) + 1} {os.getpid()}"
                (Path(__file__).parent / f"begun-{time.time_ns()}-{os.getpid()}").write_text(note)
                time.sleep(pause / 2)
                epoch = train(run)
                time.sleep(pause / 2)
                return epoch

            module.Run._train_epoch = observed

        spec.loader.exec_module = load_and_observe
        return spec


sys.meta_path.insert(0, Observer())
'''


def install_observer(folder: Path) -> Path:
    """A folder that, on a command's PYTHONPATH, gets a note of every epoch whose training is begun."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(OBSERVER_SOURCE)
    return folder


@dataclass(frozen=True)
class StartedEpoch:
    """One epoch whose training was begun."""

    trial: str
    epoch: int
    pid: int


def started_epochs(observer: Path) -> list[StartedEpoch]:
    """Every epoch whose training was begun, in that order."""
    notes = [path.read_text().split() for path in sorted(observer.glob("begun-*"))]
    return [
        StartedEpoch(note[0], int(note[1]), int(note[2])) for note in notes if len(note) == 3
    ]  # one may be half written


@dataclass(frozen=True)
class SweepFolder:
    """What a sweep has left on disk, read without a line of the code that wrote it."""

    folder: Path

    def read(self, *names: str) -> Any:
        """One object."""
        return read_without_checksum(self.folder.joinpath(*names))

    @property
    def plan(self) -> Any:
        """plan.json."""
        return self.read("plan.json")

    def trials(self, phase: str | None = None) -> list[str]:
        """The names of the trials that were begun."""
        names = sorted(path.parent.name for path in self.folder.glob("trials/*/config.json"))
        return [name for name in names if phase in (None, self.read("trials", name, "config.json")["phase"])]

    def records(self, phase: str | None = None) -> dict[str, Any]:
        """The records, by trial."""
        names = [name for name in self.trials(phase) if (self.folder / "trials" / name / "record.json").exists()]
        return {name: self.read("trials", name, "record.json") for name in names}

    def epochs(self, trial: str) -> list[Any]:
        """What stands under epochs/."""
        paths = sorted((self.folder / "trials" / trial / "epochs").glob("*.json"))
        return [read_without_checksum(path) for path in paths]

    def checkpoints(self, trial: str) -> list[Path]:
        """A trial's checkpoints, the newest last."""
        return sorted((self.folder / "trials" / trial / "checkpoints").glob("epoch-*.safetensors"))

    def unfinished_trials(self, min_epochs: int = 1) -> list[str]:
        """Trials without a record that have so many epochs and a checkpoint."""
        ended = {path.parent.name for path in self.folder.glob("trials/*/record.json")}
        open_ = [path.parent.name for path in self.folder.glob("trials/*/config.json")]
        count = {name: len(list((self.folder / "trials" / name / "epochs").glob("*.json"))) for name in open_}
        return [name for name in open_ if name not in ended and count[name] >= min_epochs and self.checkpoints(name)]

    def times(self) -> dict[str, int]:
        """When each object of each trial was written."""
        files = (path for path in sorted((self.folder / "trials").rglob("*")) if path.is_file())
        return {str(path.relative_to(self.folder)): path.stat().st_mtime_ns for path in files}


def only_sweep(storage: Path) -> SweepFolder:
    """The one sweep in a storage folder."""
    plans = list(storage.glob("*/plan.json"))
    assert len(plans) == 1, f"{storage} holds {len(plans)} sweeps"
    return SweepFolder(plans[0].parent)


TIMING_FIELDS = (
    *("seconds", "images_per_second", "cpu_percent", "memory_mb", "peak_memory_mb"),
    *("gpu_memory_mb", "gpu_percent"),
)


def without_timings(record: Any) -> Any:
    """A record without what no two runs share: how long it took, on what, and how often it was interrupted."""
    epochs = [{name: value for name, value in epoch.items() if name not in TIMING_FIELDS} for epoch in record["epochs"]]
    rest = {name: value for name, value in record.items() if name not in (*TIMING_FIELDS, "resumed_at")}
    return {**rest, "epochs": epochs}


def build_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once, however many processes share the tests."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def nonempty_lines(text: str) -> Iterator[str]:
    """The lines of a text that are not empty."""
    return (line for line in text.splitlines() if line.strip())


def read_without_checksum(path: Path) -> Any:
    """A stored object without its checksum, read without our own code."""
    plain = json.loads(path.read_bytes())
    plain.pop("sha256", None)
    return plain
