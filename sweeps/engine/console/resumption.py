"""Describes what the earlier starts of a sweep have done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from sweeps.reporting.formatting import format_objective, format_percent, format_status, pluralize
from xfer.methods.descriptions import explain_strategy
from xfer.objectives import ACCURACY, Objective
from xfer.records import Phase, Record

STAGES: dict[Phase, str] = {"screen": "screening", "search": "search", "final": "finals"}
"""Name of the stage of each phase, in order."""


def best_search_record(records: Iterable[Record], objective: Objective) -> Record | None:
    """Return the finished trial of the search with the best value of an objective; None if there is none."""
    scored = [
        (objective.to_score(value), record)
        for record in records
        if record.phase == "search" and record.status == "finished"
        if (value := objective.value(record.epochs)) is not None
    ]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def progress_line(
    started: Mapping[str, Phase],
    records: Mapping[str, Record],
    planned: Mapping[Phase, int],
    objective: Objective,
    is_test_open: bool,
) -> str:
    """Return a line on what earlier starts have done: runs by stage, and the best so far; "" if no run was started.

    Args:
        started: phase of every run that was started, by trial.
        records: record of every run that has ended, by trial.
        planned: number of runs of each phase.
        objective: what the search optimizes.
        is_test_open: whether the test set has been opened.
    """
    stages = []
    for phase in [phase for phase in STAGES if phase in started.values()]:
        counts = Counter(record.status for record in records.values() if record.phase == phase)
        total = max(planned.get(phase, 0), sum(other == phase for other in started.values()))
        details = ", ".join(f"{count} {format_status(status)}" for status, count in sorted(counts.items()))
        stages.append(f"{STAGES[phase]} {counts.total()} of {total}{f' ({details})' if details else ''}")
    if not stages:
        return ""
    if is_test_open:
        stages.append("test set opened")
    parts = [", ".join(stages)]
    if unfinished := len(started.keys() - records.keys()):
        parts.append(f"{pluralize(unfinished, 'run')} to continue")
    best = best_search_record(records.values(), objective)
    parts.append(f"best so far {_describe(best, objective)}" if best else "none has finished yet")
    return f"done so far: {'; '.join(parts)}"


def _describe(record: Record, objective: Objective) -> str:
    value = format_objective(objective, objective.value(record.epochs))
    if objective != ACCURACY:
        value = f"{objective.label} {value}, accuracy {format_percent(record.val_accuracy)}"
    return f"{value} on validation, {explain_strategy(record.recipe['strategy']['name'])} in trial {record.trial}"
