"""Run sweeps as a user does, as commands in their own processes, and read what they leave behind."""

from __future__ import annotations

import ipaddress
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
LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""
TIMEOUT_SECONDS = 600
"""Timeout of a command; generous, because the machine may be busy."""


@dataclass(frozen=True)
class CompletedCommand:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float


class Command:
    """A running `python -m sweeps.<page> ...` in its own session.

    Args:
        page: Name of the experiment page; empty for `python -m sweeps`.
        flags: Command-line flags.
        logs: Folder for its output.
        observer: Folder made by `install_observer`, which records the epochs that are trained.
        cwd: Working directory; the checkout by default.
        seconds_per_epoch: Added to each epoch; needs an observer.
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
        extra = {
            "PYTHONPATH": os.pathsep.join(path),
            MARKER_ENV_VAR: self._mark,
            "XFER_TEST_PAUSE": str(seconds_per_epoch),
        }
        self._began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"sweeps.{page}" if page else "sweeps", *map(str, flags)],
                cwd=cwd,
                env={**inherited, **extra},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def end(self) -> CompletedCommand:
        """Wait until the command and every process it started have ended."""
        try:
            status = self.process.wait(TIMEOUT_SECONDS)
        finally:
            self.clear()
        return CompletedCommand(status, self._out.read_text(), self._err.read_text(), time.monotonic() - self._began)

    def is_running(self) -> bool:
        """Whether the command is still running."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def wait_until(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll `condition` and return its first true result; fail if the command ends before."""
        limit = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < limit:
            if result := condition():
                return result
            if not self.is_running():
                pytest.fail(f"it ended before {what}:\n{self._out.read_text()}\n{self._err.read_text()}")
            time.sleep(0.05)
        return pytest.fail(f"not seen in {TIMEOUT_SECONDS} s: {what}")

    def listening_addresses(self) -> set[str]:
        """The local addresses on which the command and every process it started listen for connections."""
        inodes = set()
        for pid in self.processes():
            with suppress(OSError):
                links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
                inodes |= {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
        addresses = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == LISTENING and rest[5] in inodes:
                    words = bytes.fromhex(local.partition(":")[0])
                    packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                    address = ipaddress.ip_address(packed)
                    addresses.add(str(getattr(address, "ipv4_mapped", None) or address))
        return addresses

    def processes(self) -> list[int]:
        """The ids of the command's process and of every process that it started, as far as they are running."""
        return processes_with(MARKER_ENV_VAR, self._mark)

    def clear(self) -> None:
        """Kill what is still running. Ray's processes end within seconds by themselves once their driver is gone."""
        if self.is_running():
            self.signal(signal.SIGKILL)
            self.process.wait()
        limit = time.monotonic() + 30
        while (pids := self.processes()) and time.monotonic() < limit:
            time.sleep(0.2)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(page: str, flags: Iterable[object], logs: Path, cwd: Path = ROOT) -> CompletedCommand:
    """Run a command to its end."""
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
"""Imported by every Python that has this folder on its path: notes each epoch before it is trained, and delays it."""

import importlib.util
import os
import sys
import time
from pathlib import Path

PAUSE_SECONDS = float(os.environ.get("XFER_TEST_PAUSE", "0"))


def observed(iterate):
    def observed_iter(run):
        epochs = iterate(run)
        try:
            while True:
                if len(run.epochs) < run.recipe.epochs:
                    note = f"{run.trial} {len(run.epochs) + 1} {os.getpid()}"
                    (Path(__file__).parent / f"begun-{time.time_ns()}-{os.getpid()}").write_text(note)
                    time.sleep(PAUSE_SECONDS)
                try:
                    epoch = next(epochs)
                except StopIteration:
                    return
                yield epoch
        finally:
            epochs.close()

    return observed_iter


def naming(open_run):  # the folder of a run does not name its trial: that of a trial in a bucket is a copy
    def named(config):
        run = open_run(config)
        run.trial = config["trial"]
        return run

    return named


def observe_runs(module):
    module.Run.__iter__ = observed(module.Run.__iter__)


def name_runs(module):
    module.open_run = naming(module.open_run)


class Finder:
    changes = {"xfer.run": observe_runs, "sweeps.engine.trials.trainable": name_runs}

    def find_spec(self, name, path=None, target=None):
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change
        return spec


sys.meta_path.insert(0, Finder())
'''


def install_observer(folder: Path) -> Path:
    """Make a folder that records every epoch whose training starts, once it is on a command's PYTHONPATH."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(OBSERVER_SOURCE)
    return folder


@dataclass(frozen=True)
class StartedEpoch:
    """One epoch whose training has started."""

    trial: str
    epoch: int
    pid: int


def started_epochs(observer: Path) -> list[StartedEpoch]:
    """Every epoch whose training has started, in that order."""
    notes = [path.read_text().split() for path in sorted(observer.glob("begun-*"))]
    # The newest note may be half written.
    return [StartedEpoch(note[0], int(note[1]), int(note[2])) for note in notes if len(note) == 3]


@dataclass(frozen=True)
class SweepFolder:
    """What a sweep has left on disk, read without any of the code that wrote it."""

    folder: Path

    def read(self, *names: str) -> Any:
        """Read one stored object."""
        return read_without_checksum(self.folder.joinpath(*names))

    @property
    def plan(self) -> Any:
        """The content of plan.json."""
        return self.read("plan.json")

    def trials(self, phase: str | None = None) -> list[str]:
        """The names of the trials that have started."""
        names = sorted(path.parent.name for path in self.folder.glob("trials/*/config.json"))
        return [name for name in names if phase in (None, self.read("trials", name, "config.json")["phase"])]

    def records(self, phase: str | None = None) -> dict[str, Any]:
        """The records by trial name."""
        names = [name for name in self.trials(phase) if (self.folder / "trials" / name / "record.json").exists()]
        return {name: self.read("trials", name, "record.json") for name in names}

    def epochs(self, trial: str) -> list[Any]:
        """The objects under epochs/ of a trial."""
        paths = sorted((self.folder / "trials" / trial / "epochs").glob("*.json"))
        return [read_without_checksum(path) for path in paths]

    def checkpoints(self, trial: str) -> list[Path]:
        """The checkpoints of a trial, newest last."""
        return sorted((self.folder / "trials" / trial / "checkpoints").glob("epoch-*.safetensors"))

    def unfinished_trials(self, min_epochs: int = 1) -> list[str]:
        """Trials without a record that have a checkpoint and at least `min_epochs` epochs."""
        ended = {path.parent.name for path in self.folder.glob("trials/*/record.json")}
        started = [path.parent.name for path in self.folder.glob("trials/*/config.json")]
        count = {name: len(list((self.folder / "trials" / name / "epochs").glob("*.json"))) for name in started}
        return [name for name in started if name not in ended and count[name] >= min_epochs and self.checkpoints(name)]

    def times(self) -> dict[str, int]:
        """Modification time in ns of each file of each trial, by path."""
        files = (path for path in sorted((self.folder / "trials").rglob("*")) if path.is_file())
        return {str(path.relative_to(self.folder)): path.stat().st_mtime_ns for path in files}


def only_sweep(storage: Path) -> SweepFolder:
    """The only sweep in a storage folder."""
    plans = list(storage.glob("*/plan.json"))
    assert len(plans) == 1, f"{storage} holds {len(plans)} sweeps"
    return SweepFolder(plans[0].parent)


TIMING_FIELDS = (
    *("seconds", "images_per_second", "cpu_percent", "memory_mb", "peak_memory_mb"),
    *("gpu_memory_mb", "gpu_percent"),
)


def without_timings(record: Any) -> Any:
    """A record without the fields that differ between equal runs: timings, resource usage and interruptions."""
    epochs = [{name: value for name, value in epoch.items() if name not in TIMING_FIELDS} for epoch in record["epochs"]]
    rest = {name: value for name, value in record.items() if name not in (*TIMING_FIELDS, "resumed_at")}
    return {**rest, "epochs": epochs}


def build_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once for all processes that share the tests."""
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
    """The non-empty lines of a text."""
    return (line for line in text.splitlines() if line.strip())


def read_without_checksum(path: Path) -> Any:
    """Read a stored object, without its checksum and without the code that wrote it."""
    plain = json.loads(path.read_bytes())
    plain.pop("sha256", None)
    return plain
