"""Tuning of the plain script: measures which setting is fastest on this machine."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.contestants import BenchmarkTask, ScriptSetting, run_plain
from benchmarks.run_outcomes import RunOutcome

CANDIDATE_SETTINGS = (
    *(ScriptSetting(0, 1, 2), ScriptSetting(1, 1, 2), ScriptSetting(2, 1, 2)),
    *(
        ScriptSetting(0, 1, 1),
        ScriptSetting(1, 1, 1),
        ScriptSetting(2, 1, 1),
        ScriptSetting(0, 2, 1),
        ScriptSetting(1, 2, 1),
    ),
)
"""Settings for a machine with two cores: one or two concurrent trials, with loader processes and threads each."""
TIME_LIMIT_SECONDS = 300.0  # two threads and a loader process can be ten times slower than one thread
DEFAULT_SETTINGS = {concurrent: ScriptSetting(1, 1, concurrent) for concurrent in (1, 2)}


def parse_setting(text: str) -> ScriptSetting:
    """Parse `WORKERS,THREADS,CONCURRENT`.

    >>> str(parse_setting("1,1,2"))
    '2 at a time, each with 1 loader processes and 1 threads'

    Raises:
        ValueError: not three integers.
    """
    try:
        workers, threads, concurrent = map(int, text.split(","))
    except ValueError as error:
        raise ValueError(f"{text}: must be three integers WORKERS,THREADS,CONCURRENT, as in 1,1,2") from error
    return ScriptSetting(workers, threads, concurrent)


def tune_setting(
    name: str, task: BenchmarkTask, scratch: Path, concurrent: tuple[int, ...], cost: Callable[[RunOutcome], float]
) -> ScriptSetting:
    """Measure every candidate setting, print its cost, and save the best one in the scratch folder.

    Args:
        name: name under which the best setting is saved.
        task: a short task.
        scratch: scratch folder; runs that are stored there are not repeated.
        concurrent: numbers of concurrent trials to consider.
        cost: cost of an outcome; lower is better.

    Returns:
        The setting with the lowest cost. A setting that runs into the time limit costs infinity.
    """
    costs: dict[ScriptSetting, float] = {}
    for setting in CANDIDATE_SETTINGS:
        if setting.concurrent not in concurrent:
            continue
        try:
            costs[setting] = cost(run_plain(task, setting, scratch, limit=TIME_LIMIT_SECONDS))
        except subprocess.TimeoutExpired:
            costs[setting] = math.inf
        print(f"  measured {setting}: {costs[setting]:.4g}", flush=True)
    best = min(costs, key=lambda setting: costs[setting])
    _setting_file(scratch, name).parent.mkdir(parents=True, exist_ok=True)
    _setting_file(scratch, name).write_text(json.dumps(dataclasses.asdict(best)))
    return best


def load_tuned_setting(name: str, scratch: Path) -> ScriptSetting | None:
    """Load the result of an earlier `tune_setting` with the same name, if any."""
    file = _setting_file(scratch, name)
    return ScriptSetting(**json.loads(file.read_text())) if file.exists() else None


def _setting_file(scratch: Path, name: str) -> Path:
    return scratch / "settings" / f"{name}.json"
