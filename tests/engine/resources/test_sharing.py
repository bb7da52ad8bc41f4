"""Trials that share GPUs, in a Ray of their own that is told of two that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.sweep_commands import ROOT, TIMEOUT_SECONDS

SCRIPT = '''
import json
import os
import sys
import time
from pathlib import Path

import ray

from sweeps.engine import trainable, tuning

folder, shares = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, value in tuning.ENVIRONMENT.items():
    os.environ.setdefault(name, value)
ray.init(address="local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False,
         configure_logging=False)


def trial(config):
    """Notes what it sees, and waits until as many others of its share have begun as are to run beside it."""
    from ray import tune

    gpus = config["site"]["gpus"]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
    trainable.limit_gpu_memory(gpus)
    note = {"gpus": gpus, "ray": seen, "confined": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid(),
            "allocator": os.environ["PYTORCH_CUDA_ALLOC_CONF"], "began": time.time_ns()}
    (folder / f"begun-{gpus}-{config['trial']}").touch()
    limit = time.monotonic() + 120
    while len(list(folder.glob(f"begun-{gpus}-*"))) < config["beside"] and time.monotonic() < limit:
        time.sleep(0.05)
    note["met"] = len(list(folder.glob(f"begun-{gpus}-*"))) >= config["beside"]
    note["ended"] = time.time_ns()
    (folder / f"{config['trial']}.json").write_text(json.dumps(note))
    tune.report({"epoch": 1, "val_accuracy": 0.5, "record": json.dumps({})})


class Driver:
    def __init__(self):
        self.left = list(enumerate(shares))

    def next_trial(self):
        if not self.left:
            return None
        number, (gpus, beside) = self.left.pop(0)
        return {"trial": f"{number:04d}", "beside": beside, "site": {"threads": 1, "gpus": gpus}}

    def waits(self):
        return False

    def goes_on(self, trial, record):
        return True

    def ended(self, trial, error):
        assert error is None, error


tuning.run_trials(Driver(), 8, trial)
'''

pytestmark = pytest.mark.slow  # a Ray and nine processes


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What five trials of half a GPU, two of a whole one and three of none saw."""
    folder = tmp_path_factory.mktemp("sharing")
    (folder / "script.py").write_text(SCRIPT)
    shares = [(0.5, 4)] * 5 + [(1.0, 2)] * 2 + [(0.0, 3)] * 3
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CUDA_", "PYTORCH_"))
    }
    ended = subprocess.run(
        [sys.executable, str(folder / "script.py"), str(folder), json.dumps(shares)],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"{number:04d}.json").read_text()) for number in range(len(shares))]


def most_at_once(notes: list[dict[str, Any]]) -> int:
    return max(sum(one["began"] <= other["began"] <= one["ended"] for one in notes) for other in notes)


def test_halves_run_two_on_each_gpu_and_see_one_device(seen: list[dict[str, Any]]) -> None:
    halves = [note for note in seen if note["gpus"] == 0.5]
    assert {note["ray"] for note in halves} == {"0", "1"}
    assert all(note["met"] for note in halves), "four of them run at a time"
    assert most_at_once(halves) == 4
    for device in ("0", "1"):
        assert most_at_once([note for note in halves if note["ray"] == device]) == 2
    assert all(note["confined"] == note["ray"] for note in halves)


def test_whole_ones_have_a_device_each(seen: list[dict[str, Any]]) -> None:
    whole = [note for note in seen if note["gpus"] == 1.0]
    assert sorted(note["ray"] for note in whole) == ["0", "1"]
    assert all(note["met"] for note in whole)


def test_without_a_share_there_is_no_gpu_to_be_seen(seen: list[dict[str, Any]]) -> None:
    none = [note for note in seen if note["gpus"] == 0.0]
    assert [(note["ray"], note["confined"]) for note in none] == [("", "")] * 3
    assert all(note["met"] for note in none)


def test_every_process_has_an_allocator_whose_blocks_grow(seen: list[dict[str, Any]]) -> None:
    assert {note["allocator"] for note in seen} == {"expandable_segments:True"}


def test_a_process_is_kept_for_trials_of_the_same_share_only(seen: list[dict[str, Any]]) -> None:
    shares_of = {note["pid"]: {other["gpus"] for other in seen if other["pid"] == note["pid"]} for note in seen}
    assert all(len(shares) == 1 for shares in shares_of.values())
