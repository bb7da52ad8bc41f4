"""Fault 13: a trial's or a task's process hangs. The watchdog says where, ends it, and the work is repeated once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import interrupted_sweep
from tests.interrupted_sweep import Story
from tests.sweep_commands import ROOT, TIMEOUT_SECONDS, started_epochs, without_timings

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading

from sweeps.engine.trials import heartbeats, ray_connection, ray_tune
from sweeps.engine.trials.trainable import Resources
from sweeps.engine.trials.watchdog import Watchdog
from xfer.devices import heartbeat

FOLDER = pathlib.Path(tempfile.mkdtemp())


def wait_for_a_lock():
    with open(FOLDER / "attempts", "a") as file:
        file.write("x")
    threading.Lock().acquire() and threading.Event().wait()


def work(config):
    heartbeat.beat()
    first = FOLDER / config["trial"]
    if config["trial"] == "hangs":
        wait_for_a_lock()
    if config["trial"] == "stopped" and not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGSTOP)


def hanging_task(argument):
    heartbeat.beat()
    wait_for_a_lock()


class Source:
    def __init__(self):
        self.waiting = ["stopped", "hangs", "works"]
        self.errors = {}

    def next_trial(self):
        site = {"threads": 1, "gpus": 0.0}
        return {"trial": self.waiting.pop(0), "site": site} if self.waiting else None

    def may_have_more(self):
        return False

    def ended(self, trial, error):
        self.errors[trial] = error


ray_connection.connect_ray()
lines = []
watchdog = Watchdog(heartbeats.RayProcesses(), lines.append)
watchdog.start()
task = ray_tune.submit(hanging_task, None, Resources())
source = Source()
ray_tune.run_trials(source, 2, work)
[done] = ray_tune.finished_tasks([task], wait=True)
attempts = len((FOLDER / "attempts").read_text())
print(json.dumps({"errors": source.errors, "task": ray_tune.task_error(done), "lines": lines, "attempts": attempts}))
"""


@pytest.fixture(scope="module")
def outcome() -> Any:
    """What the script has seen."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**environment, "XFER_HANG_SECONDS": "5"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    [line] = [line for line in completed.stdout.splitlines() if line.startswith('{"errors"')]  # Ray prints others
    return json.loads(line)


def test_a_trial_whose_process_was_stopped_is_repeated_and_ends_well(outcome: Any) -> None:
    assert outcome["errors"]["stopped"] is None
    [line] = [line for line in outcome["lines"] if line.startswith("trial stopped ")]
    assert re.fullmatch(
        r"trial stopped made no progress for \d+ s: process \d+ on \S+ was stopped; it was ended, and the work is "
        r"repeated from its last checkpoint",
        line,
    )


def test_a_trial_that_hangs_twice_ends_with_the_place_where_it_hung(outcome: Any) -> None:
    reason = outcome["errors"]["hangs"]
    assert re.match(r"it made no progress for \d+ s, 2 times; the last time was at ", reason)
    assert "in wait_for_a_lock, called from" in reason
    lines = [line for line in outcome["lines"] if line.startswith("trial hangs ")]
    assert [("ended for the second time" in line) for line in lines] == [False, True]


def test_other_trials_are_unharmed(outcome: Any) -> None:
    assert outcome["errors"]["works"] is None
    assert not [line for line in outcome["lines"] if line.startswith("trial works ")]


def test_a_task_that_hangs_twice_fails_with_the_place_where_it_hung(outcome: Any) -> None:
    assert "HangError" in outcome["task"]
    assert len([line for line in outcome["lines"] if "(hanging task)" in line]) == 2


def test_no_work_is_repeated_more_than_once(outcome: Any) -> None:
    assert outcome["attempts"] == 4  # the trial and the task, twice each


@pytest.mark.nightly
def test_a_sweep_with_a_trial_that_was_stopped_equals_an_undisturbed_one(
    image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = interrupted_sweep.undisturbed_sweep(tmp_path_factory, image_folder, weights)
    story = Story(tmp_path_factory.mktemp("stopped"))
    monkeypatch.setenv("XFER_HANG_SECONDS", "10")
    command = story.start(interrupted_sweep.flags(image_folder, weights))
    [stopped, *_] = story.wait_for_unfinished(command)
    process = [note.pid for note in started_epochs(story.observer) if note.trial == stopped][-1]
    os.kill(process, signal.SIGSTOP)
    ended = command.end()
    assert ended.status == 0, ended.out + ended.err
    assert re.search(rf"trial {stopped} made no progress for \d+ s: process {process} on", " ".join(ended.out.split()))
    mine, theirs = story.sweep.records(), undisturbed.sweep.records()
    assert mine[stopped]["resumed_at"]
    assert {name: without_timings(record) for name, record in mine.items()} == {
        name: without_timings(record) for name, record in theirs.items()
    }
