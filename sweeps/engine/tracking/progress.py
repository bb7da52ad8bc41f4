"""Progress of a sweep as curves over the number of ended trials, for its parent run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sweeps.engine.tracking.client import ENDED, PROGRESS_COUNTS, MirroredRun, MirroredSweep
from sweeps.engine.tracking.mapping import to_metrics
from xfer.objectives import Objective

if TYPE_CHECKING:
    from mlflow.entities import Metric


def unsent_progress(
    sweep: MirroredSweep, objectives: Sequence[Objective], started_ms: int
) -> Iterator[tuple[int, list[Metric]]]:
    """Yield each step of the sweep's progress that MLflow does not have, with its metrics.

    Step n is the state of the search when n of its trials had ended, at the time when the last of them ended. It
    follows from the trials alone, so any mirror continues the curves where another has stopped.

    Args:
        sweep: the sweep as MLflow has it.
        objectives: whose best values over finished trials are reported, as `best_<metric>`.
        started_ms: when the sweep was started, in ms since the epoch: the time of step 0.
    """
    ended = [(run.ended_ms, name) for name, run in sweep.trials.items() if run.state in ENDED and run.ended_ms]
    search = sorted((time_ms, name) for time_ms, name in ended if "-" not in name)
    if len(sweep.parent.steps) > len(search):
        return
    counts: Counter[str] = Counter()
    best: dict[str, float] = {}
    for step, (time_ms, name) in enumerate([(started_ms, ""), *search]):
        if name:
            run = sweep.trials[name]
            counts[run.state] += 1
            best = _better(best, run, objectives)
        if step not in sweep.parent.steps:
            values = {**{key: counts[state] for key, state in PROGRESS_COUNTS.items()}, **best}
            yield step, to_metrics(values, time_ms, step)


def _better(best: dict[str, float], run: MirroredRun, objectives: Sequence[Objective]) -> dict[str, float]:
    """Return the best values with those of another trial, which count if it has finished."""
    values = {
        f"best_{objective.metric}": max(value, best.get(f"best_{objective.metric}", value), key=objective.to_score)
        for objective in objectives
        if run.state == "finished" and (value := run.metrics.get(objective.metric)) is not None
    }
    return {**best, **values}
