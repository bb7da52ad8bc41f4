"""Trials on fractions of a GPU, on whole GPUs and on several GPUs at once.

One Ray is started for all tests, in a process of its own. It is told of two GPUs that do not exist, so trials that
train use the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sweep_commands import ROOT, TIMEOUT_SECONDS, processes_with

if TYPE_CHECKING:
    from sweeps.engine.storage.store import Store
    from xfer.data.pack import Pack
    from xfer.recipe import Recipe

MARKER_ENV_VAR = "XFER_TEST_SHARING"

SCRIPT = '''
import json
import os
import signal
import sys
import time
from pathlib import Path

import ray

from sweeps.engine.trials import ray_connection, ray_tune, trainable

folder, groups, training_configs = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
for name, value in ray_connection.RAY_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
ray.init(address="local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False,
         configure_logging=False)


class Source:
    """Hands out the given configs; stops the trial named `stopped` at its first report."""

    def __init__(self, configs, stopped=""):
        self.configs, self.stopped = configs, stopped

    def next_trial(self):
        return self.configs.pop(0) if self.configs else None

    def may_have_more(self):
        return False

    def should_continue(self, trial, record):
        return trial != self.stopped

    def ended(self, trial, error):
        assert error is None, error


def note_gpus(config):
    """Write what the trial sees, and wait until `peers` trials with as many GPUs have started."""
    from ray import tune

    gpus = config["site"]["gpus"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
    trainable.limit_gpu_memory(gpus)
    note = {"gpus": gpus, "ray": visible, "limited": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid(),
            "allocator": os.environ["PYTORCH_CUDA_ALLOC_CONF"], "started": time.time_ns()}
    (folder / f"started-{gpus}-{config['trial']}").touch()
    limit = time.monotonic() + 120
    while len(list(folder.glob(f"started-{gpus}-*"))) < config["peers"] and time.monotonic() < limit:
        time.sleep(0.05)
    note["met"] = len(list(folder.glob(f"started-{gpus}-*"))) >= config["peers"]
    note["ended"] = time.time_ns()
    (folder / f"{config['trial']}.json").write_text(json.dumps(note))
    tune.report({"epoch": 1, "val_accuracy": 0.5, "record": json.dumps({})})


def worker_pid():
    """The process id of this process's worker."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            command = (process / "cmdline").read_text()
            if parent == str(os.getpid()) and ("spawn_main" in command or "xfer.distributed.worker" in command):
                return int(process.name)
        except OSError:
            continue  # it has ended meanwhile
    raise AssertionError("there is no worker")


def train_and_lose_a_worker(config):
    """Note what the trial sees, then train; the worker of trial 0001 is killed after its first epoch."""
    note = folder / f"training-{config['trial']}.json"
    first_start = not note.exists()
    if first_start:
        note.write_text(json.dumps({"gpus": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}))
    report = trainable.report_to_tune

    def kill_and_report(record):
        if first_start and config["trial"] == "0001":
            os.kill(worker_pid(), signal.SIGKILL)
        report(record)

    trainable.report_to_tune = kill_and_report
    try:
        trainable.train_trial(config)
    finally:
        trainable.report_to_tune = report


configs = [{"trial": f"{number:04d}", "peers": peers, "site": {"threads": 1, "gpus": gpus}}
           for number, (gpus, peers) in enumerate(groups)]
ray_tune.run_trials(Source(configs), 8, note_gpus)
ray_tune.run_trials(Source(training_configs, stopped="0000"), 2, train_and_lose_a_worker)
'''

GPUS_AND_PEERS = [(0.5, 4)] * 5 + [(1.0, 2)] * 2 + [(0.0, 2)] * 2
"""GPUs of each trial, and how many with as many GPUs must run at the same time."""

pytestmark = [pytest.mark.slow, pytest.mark.nightly]  # a Ray and ten processes


@dataclass(frozen=True)
class Outcome:
    """What the script left behind."""

    folder: Path
    store: Store
    still_running: list[str]
    """The commands of workers that had not ended soon after the script."""

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What the trials of GPUS_AND_PEERS saw, in that order."""
        return [json.loads((self.folder / f"{number:04d}.json").read_text()) for number in range(len(GPUS_AND_PEERS))]


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory,
    pack: Pack,
    weights_of: Callable[[str], Path],
    make_recipe: Callable[..., Recipe],
) -> Outcome:
    from sweeps.engine.storage.store import Store, Trial
    from sweeps.engine.trials.trainable import TrialContext, trial_config

    folder = tmp_path_factory.mktemp("sharing")
    (folder / "script.py").write_text(SCRIPT)
    store = Store(folder / "sweep")

    def two_gpu_configs() -> Iterator[dict[str, Any]]:
        weights = str(weights_of("test_vit"))
        context = TrialContext(str(store.folder), str(pack.folder), weights, 2, 2.0, features=str(folder / "features"))
        for name, epochs in (("0000", 3), ("0001", 2)):
            trial = Trial(name, "search", {}, make_recipe(backbone="test_vit", epochs=epochs).as_dict())
            store.add_trial(trial)
            yield trial_config(trial, context)

    mark = uuid.uuid4().hex
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CUDA_", "PYTORCH_"))
    }
    arguments = [str(folder), json.dumps(GPUS_AND_PEERS), json.dumps(list(two_gpu_configs()))]
    completed = subprocess.run(
        [sys.executable, str(folder / "script.py"), *arguments],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), MARKER_ENV_VAR: mark},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    limit = time.monotonic() + 30
    while (workers := [each for each in _commands_with(mark) if _is_worker(each)]) and time.monotonic() < limit:
        time.sleep(0.5)  # Ray's own processes notice within seconds that their driver is gone
    return Outcome(folder, store, workers)


def _is_worker(command: str) -> bool:
    return "spawn_main" in command or "xfer.distributed.worker" in command


def _commands_with(mark: str) -> Iterator[str]:
    for pid in processes_with(MARKER_ENV_VAR, mark):
        with suppress(OSError):  # it has ended meanwhile
            yield Path(f"/proc/{pid}/cmdline").read_text()


def most_at_once(notes: list[dict[str, Any]]) -> int:
    return max(sum(one["started"] <= other["started"] <= one["ended"] for one in notes) for other in notes)


# --- one GPU or less --------------------------------------------------------------------------------------------------


def test_two_trials_of_half_a_gpu_share_each_gpu_and_see_only_that_one(outcome: Outcome) -> None:
    halves = [note for note in outcome.notes if note["gpus"] == 0.5]
    assert {note["ray"] for note in halves} == {"0", "1"}
    assert all(note["met"] for note in halves), "four of them run at a time"
    assert most_at_once(halves) == 4
    for device in ("0", "1"):
        assert most_at_once([note for note in halves if note["ray"] == device]) == 2
    assert all(note["limited"] == note["ray"] for note in halves)


def test_each_trial_of_a_whole_gpu_has_a_gpu_to_itself(outcome: Outcome) -> None:
    whole = [note for note in outcome.notes if note["gpus"] == 1.0]
    assert sorted(note["ray"] for note in whole) == ["0", "1"]
    assert all(note["met"] for note in whole)


def test_a_trial_that_requests_no_gpu_sees_none(outcome: Outcome) -> None:
    without = [note for note in outcome.notes if note["gpus"] == 0.0]
    assert [(note["ray"], note["limited"]) for note in without] == [("", "")] * 2
    assert all(note["met"] for note in without)


def test_every_trial_process_uses_the_allocator_with_growing_blocks(outcome: Outcome) -> None:
    assert {note["allocator"] for note in outcome.notes} == {"expandable_segments:True"}


def test_a_process_is_reused_only_for_trials_with_the_same_number_of_gpus(outcome: Outcome) -> None:
    notes = outcome.notes
    gpus_of = {note["pid"]: {other["gpus"] for other in notes if other["pid"] == note["pid"]} for note in notes}
    assert all(len(gpus) == 1 for gpus in gpus_of.values())


# --- two GPUs ---------------------------------------------------------------------------------------------------------


def test_ray_gives_a_two_gpu_trial_both_gpus_in_one_reused_process(outcome: Outcome) -> None:
    notes = [json.loads((outcome.folder / f"training-{name}.json").read_text()) for name in ("0000", "0001")]
    assert [sorted(note["gpus"].split(",")) for note in notes] == [["0", "1"]] * 2
    assert notes[0]["pid"] == notes[1]["pid"]


def test_a_two_gpu_trial_that_is_stopped_has_no_record_yet(outcome: Outcome) -> None:
    assert outcome.store.record("0000") is None
    assert len(outcome.store.epochs("0000")) == 1


def test_a_two_gpu_trial_that_loses_its_worker_resumes_from_its_last_epoch(outcome: Outcome) -> None:
    record = outcome.store.record("0001")
    assert record is not None
    assert (record.status, record.arithmetic) == ("finished", "float32, 2 devices")
    assert record.resumed_at == (1,)


def test_no_worker_outlives_its_trial(outcome: Outcome) -> None:
    assert outcome.still_running == []
