"""Overview of a storage: each sweep with its state, its best value and the command that continues it."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweeps.engine.console.reports import load_results
from sweeps.engine.storage import lease
from sweeps.engine.storage.json_objects import list_objects
from sweeps.engine.storage.store import Store, list_sweeps
from sweeps.reporting.formatting import MISSING, escape_control_characters, format_objective
from sweeps.reporting.ranking import best_value
from xfer.objectives import ACCURACY, Objective, parse_objectives
from xfer.records import Record
from xfer.storage import object_store

State = Literal["running", "interrupted", "done", "failed"]


@dataclass(frozen=True)
class SweepOverview:
    """One sweep of a storage."""

    name: str
    state: State
    """`interrupted` if something of the plan is left to do and no driver is running; `failed` if no trial finished."""
    ended: int
    """Number of search trials that have ended."""
    trials: int
    """Number of search trials that are planned."""
    objective: Objective
    best: float | None
    """Value by which the best trial ranks first: the mean of its final runs, if it has any; None if none finished."""
    data: str
    images: int
    """Number of images in all parts."""
    last_activity_ms: int
    """When the sweep last stored something about a trial, in ms since the epoch."""
    command: str
    """Command of the last start."""


def overviews(storage: Path) -> list[SweepOverview]:
    """Return the overview of every sweep in a storage, the latest activity first.

    A sweep that cannot be read is reported on stderr, so that it does not hide the others.
    """
    found = []
    for store in list_sweeps(storage):
        try:
            plan = store.plan()
            if plan is not None:
                found.append(sweep_overview(store, plan))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
        except (LookupError, TypeError, AttributeError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
            print(f"error: {store.folder} cannot be read, or is of another version ({problem})", file=sys.stderr)
    return sorted(found, key=lambda sweep: -sweep.last_activity_ms)


def sweep_overview(store: Store, plan: dict[str, Any]) -> SweepOverview:
    """Return the overview of a sweep.

    Args:
        store: the sweep's store.
        plan: its plan.json.
    """
    names, records = store.trial_names(), store.records()
    search = [record for record in records if record.phase == "search"]
    objective = parse_objectives(",".join(plan.get("objective", [ACCURACY.name])))[0]
    data = plan["data"]
    return SweepOverview(
        name=store.name,
        state=_state(store, plan, names, records),
        ended=len(search),
        trials=plan["trials"],
        objective=objective,
        best=best_value(load_results(store)),
        data=data["folder"],
        images=data["train"] + data["val"] + data["test"],
        last_activity_ms=_last_activity_ms(store, names, {record.trial for record in records}),
        command=plan["provenance"]["command"],
    )


def _state(store: Store, plan: dict[str, Any], names: list[str], records: list[Record]) -> State:
    if lease.lease_holder(store.folder) is not None:
        return "running"
    search = [record for record in records if record.phase == "search"]
    if len(search) < plan["trials"] or len(records) < len(names):
        return "interrupted"
    if not any(record.status == "finished" for record in search):
        return "failed"
    if not plan["finalists"]:
        return "done"
    openings = store.decisions("openings")
    finalists = openings[-1]["finalists"] if openings else []
    finals = [r for r in records if r.trial.partition("-s")[0] in finalists and r.phase == "final"]
    tested = all(record.test is not None for record in finals if record.status == "finished")
    return "done" if openings and tested else "interrupted"


def _last_activity_ms(store: Store, names: Iterable[str], ended: Collection[str]) -> int:
    paths = [store.folder / "plan.json"]
    for name in names:
        folder = store.trial_folder(name)
        latest = [folder / "record.json"] if name in ended else list_objects(folder / "epochs")[-1:]
        paths += [folder / "config.json", *latest]
    return max(object_store.modified_ms(path) or 0 for path in paths)


def overview_rows(sweeps: Iterable[SweepOverview]) -> list[tuple[str, ...]]:
    """Return the table of sweeps as text, the header first."""
    rows: list[tuple[str, ...]] = [("sweep", "state", "trials", "best on validation", "data", "last activity")]
    for sweep in sweeps:
        best = MISSING if sweep.best is None else format_objective(sweep.objective, sweep.best)
        if sweep.best is not None and sweep.objective != ACCURACY:
            best = f"{sweep.objective.label} {best}"
        data = escape_control_characters(f"{sweep.data}, {sweep.images:,} images")
        age = format_age(time.time() - sweep.last_activity_ms / 1000)
        name = escape_control_characters(sweep.name)
        rows.append((name, sweep.state, f"{sweep.ended}/{sweep.trials}", best, data, age))
    return rows


def format_age(seconds: float) -> str:
    """Format how long ago something was.

    >>> [format_age(seconds) for seconds in (5, 150, 8000, 90_000, 300_000)]
    ['just now', '2 min ago', '2 h ago', '1 day ago', '3 days ago']
    """
    for unit, length in (("day", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''} ago"
    return "just now"
