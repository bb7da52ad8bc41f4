"""Settings: how the plain script uses a machine best, found out by trying."""

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
"""Two trials at a time and one, with some loader processes and threads each: for a machine of two cores."""
TIME_LIMIT_SECONDS = 300.0  # seconds: two threads beside a loader process can be ten times slower than one
DEFAULT_SETTINGS = {concurrent: ScriptSetting(1, 1, concurrent) for concurrent in (1, 2)}


def parse_setting(text: str) -> ScriptSetting:
    """A setting as a person writes it.

    >>> str(parse_setting("1,1,2"))
    '2 at a time, 1 loader processes and 1 threads each'

    Raises:
        ValueError: not three whole numbers.
    """
    try:
        workers, threads, concurrent = map(int, text.split(","))
    except ValueError as error:
        raise ValueError(f"{text}: WORKERS,THREADS,CONCURRENT are wanted, as in 1,1,2") from error
    return ScriptSetting(workers, threads, concurrent)


def tune_setting(
    name: str, task: BenchmarkTask, scratch: Path, concurrent: tuple[int, ...], cost: Callable[[RunOutcome], float]
) -> ScriptSetting:
    """Try every setting with so many trials at a time, say what each cost, and keep the best in the scratch folder.

    Args:
        name: under which it is kept.
        task: a short one.
        scratch: where it is kept; what has been tried there is not tried again.
        concurrent: trials at a time.
        cost: of an outcome, lower is better.
    """
    costs: dict[ScriptSetting, float] = {}
    for setting in CANDIDATE_SETTINGS:
        if setting.concurrent not in concurrent:
            continue
        try:
            costs[setting] = cost(run_plain(task, setting, scratch, limit=TIME_LIMIT_SECONDS))
        except subprocess.TimeoutExpired:
            costs[setting] = math.inf
        print(f"  tried {setting}: {costs[setting]:.4g}", flush=True)
    best = min(costs, key=lambda setting: costs[setting])
    _file(scratch, name).parent.mkdir(parents=True, exist_ok=True)
    _file(scratch, name).write_text(json.dumps(dataclasses.asdict(best)))
    return best


def load_tuned_setting(name: str, scratch: Path) -> ScriptSetting | None:
    """What an earlier `tune_setting` of that name found."""
    file = _file(scratch, name)
    return ScriptSetting(**json.loads(file.read_text())) if file.exists() else None


def _file(scratch: Path, name: str) -> Path:
    return scratch / "settings" / f"{name}.json"
