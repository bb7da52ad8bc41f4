"""Settings: how the plain script uses a machine best, found out by trying."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.curves import Outcome
from benchmarks.sides import Setting, Task, plain

TRIED = (
    *(Setting(0, 1, 2), Setting(1, 1, 2), Setting(2, 1, 2)),
    *(Setting(0, 1, 1), Setting(1, 1, 1), Setting(2, 1, 1), Setting(0, 2, 1), Setting(1, 2, 1)),
)
"""Two trials at a time and one, with some loader processes and threads each: for a machine of two cores."""
TOO_SLOW = 300.0  # seconds: two threads beside a loader process can be ten times slower than one
USUAL = {concurrent: Setting(1, 1, concurrent) for concurrent in (1, 2)}


def setting_from(text: str) -> Setting:
    """A setting as a person writes it.

    >>> str(setting_from("1,1,2"))
    '2 at a time, 1 loader processes and 1 threads each'

    Raises:
        ValueError: not three whole numbers.
    """
    try:
        workers, threads, concurrent = map(int, text.split(","))
    except ValueError as error:
        raise ValueError(f"{text}: WORKERS,THREADS,CONCURRENT are wanted, as in 1,1,2") from error
    return Setting(workers, threads, concurrent)


def tune(
    name: str, task: Task, scratch: Path, concurrent: tuple[int, ...], cost: Callable[[Outcome], float]
) -> Setting:
    """Try every setting with so many trials at a time, say what each cost, and keep the best in the scratch folder.

    Args:
        name: under which it is kept.
        task: a short one.
        scratch: where it is kept; what has been tried there is not tried again.
        concurrent: trials at a time.
        cost: of an outcome, lower is better.
    """
    costs: dict[Setting, float] = {}
    for setting in TRIED:
        if setting.concurrent not in concurrent:
            continue
        try:
            costs[setting] = cost(plain(task, setting, scratch, limit=TOO_SLOW))
        except subprocess.TimeoutExpired:
            costs[setting] = math.inf
        print(f"  tried {setting}: {costs[setting]:.4g}", flush=True)
    best = min(costs, key=lambda setting: costs[setting])
    _file(scratch, name).parent.mkdir(parents=True, exist_ok=True)
    _file(scratch, name).write_text(json.dumps(dataclasses.asdict(best)))
    return best


def tuned(name: str, scratch: Path) -> Setting | None:
    """What an earlier `tune` of that name found."""
    file = _file(scratch, name)
    return Setting(**json.loads(file.read_text())) if file.exists() else None


def _file(scratch: Path, name: str) -> Path:
    return scratch / "settings" / f"{name}.json"
