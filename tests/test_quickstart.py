"""`make quickstart` with few trials, killed half-way through one of them: the same command resumes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.check_resume import find_faults
from tests.sweep_commands import ROOT, TIMEOUT_SECONDS, Command, only_sweep

pytestmark = pytest.mark.slow

SIZE = "--trials 4 --finalists 1 --seeds 1"
"""A third of the quickstart's trials; every stage is there."""
KILLS = 5
"""Maximum number of kills: if a trial ends between the look and the kill, the quickstart is killed once more."""


@dataclass(frozen=True)
class Story:
    """A quickstart that was killed and resumed."""

    folder: Path
    left_running: tuple[int, ...]
    """Processes of the killed command that had not ended half a minute later."""
    resumed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("quickstart")
    storage, reports = folder / "runs", folder / "reports"
    for _ in range(KILLS):
        command = Command("quickstart", [*SIZE.split(), "--storage", storage, "--reports", reports], folder / "logs")
        command.wait_until(lambda: half_way(storage), "a trial was half-way")
        command.signal(signal.SIGKILL)
        command.process.wait()  # a zombie would still hold its lease
        limit = time.monotonic() + 30
        while (left := command.processes()) and time.monotonic() < limit:
            time.sleep(0.2)
        command.clear()
        if half_way(storage):
            break
    arguments = f"{SIZE} --storage {storage} --reports {reports}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    resumed = subprocess.run(
        # The environment exists; make must not install into it while other tests use it.
        ["make", "-o", ".venv/.users", "quickstart", f"BIN={Path(sys.executable).parent}", f"ARGS={arguments}"],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_SECONDS,
    )
    return Story(folder, tuple(left), resumed)


def half_way(storage: Path) -> bool:
    """Whether a trial has a checkpoint and some of its epochs; linear probes save only their last one."""
    if not list(storage.glob("*/plan.json")):
        return False
    sweep = only_sweep(storage)
    for name in sweep.unfinished_trials():
        epochs = sweep.read("trials", name, "config.json")["recipe"]["epochs"]
        if name not in sweep.unfinished_trials(epochs):
            return True
    return False


def test_the_processes_of_a_killed_quickstart_end_by_themselves(story: Story) -> None:
    assert story.left_running == ()


def test_the_same_command_resumes_the_quickstart_and_runs_no_finished_trial_again(story: Story) -> None:
    assert story.resumed.returncode == 0, story.resumed.stdout
    assert find_faults(only_sweep(story.folder / "runs").folder) == []


def test_the_resumed_quickstart_writes_its_report(story: Story) -> None:
    assert [path.stat().st_size > 0 for path in (story.folder / "reports").glob("*/report.html")] == [True]
