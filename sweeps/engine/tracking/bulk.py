"""Bulk: many trials that have ended go into MLflow's SQLite database in one transaction.

MLflow's client writes one run at a time and commits nine times on the way: 25 ms of processor time and, where the disk
is flushed each time, 130 ms a trial. A sweep of thousands of short trials would wait for its mirror. The rows are those
that the client would write, and a test compares the two. Servers and other databases get the client's requests.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.engine.tracking.client import MLFLOW_STATUS, MirroredRun, MirroredSweep
from sweeps.engine.tracking.mapping import (
    epoch_metrics,
    flatten_params,
    modified_ms,
    record_metrics,
    record_tags,
    run_name,
)
from xfer.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

MIN_TRIALS = 8
"""Fewer trials than this go the client's way, which is quick enough for them."""
MAX_TRIALS = 200
"""So many in one transaction: others may want to write meanwhile."""
MAX_PARAM_LENGTH = 500
"""A param with more characters is left to the client, which knows what MLflow refuses."""


@dataclass(frozen=True)
class EndedTrial:
    """A trial that has ended and of which MLflow has nothing yet."""

    folder: Path
    config: Mapping[str, Any]
    record: Record

    @property
    def plain(self) -> bool:
        """Whether there is nothing about it that MLflow might refuse."""
        return all(len(value) <= MAX_PARAM_LENGTH for value in flatten_params(self.config["recipe"]).values())


def can_bulk_insert(tracking_uri: str) -> bool:
    """Whether this is a database to whose tables we may write."""
    return tracking_uri.startswith("sqlite:///")


def insert_trials(client: MlflowClient, tracking_uri: str, sweep: MirroredSweep, trials: Sequence[EndedTrial]) -> None:
    """Add trials to a sweep, all of them or none."""
    from mlflow.store.tracking.dbmodels import models
    from sqlalchemy import NullPool, create_engine, insert

    place = client.get_experiment(sweep.experiment).artifact_location
    rows: dict[Any, list[dict[str, Any]]] = {
        kind: [] for kind in (models.SqlRun, models.SqlTag, models.SqlParam, models.SqlMetric, models.SqlLatestMetric)
    }
    mirrored: dict[str, MirroredRun] = {}
    for trial in trials:
        run, record, recipe = uuid.uuid4().hex, trial.record, trial.config["recipe"]
        at = modified_ms(trial.folder / "record.json")
        tags = {"mlflow.parentRunId": sweep.parent.id, "xfer.sweep": sweep.id, "xfer.trial": record.trial}
        tags |= {"xfer.phase": trial.config["phase"], "mlflow.runName": run_name(record.trial, recipe)}
        tags |= record_tags(record)
        found = [each for epoch in record.epochs for each in epoch_metrics(epoch, trial.folder)]
        measured = {_identity(each): each for each in [*found, *record_metrics(record, at)]}.values()
        latest: dict[str, Metric] = {}
        for each in sorted(measured, key=lambda one: (one.step, one.timestamp, one.value)):
            latest[each.key] = each
        rows[models.SqlRun].append(
            {
                "run_uuid": run,
                "name": tags["mlflow.runName"],
                "source_type": "UNKNOWN",
                "source_name": "",
                "entry_point_name": "",
                "user_id": "unknown",
                "status": MLFLOW_STATUS[record.status],
                "start_time": modified_ms(trial.folder / "config.json"),
                "end_time": at,
                "source_version": "",
                "lifecycle_stage": "active",
                "artifact_uri": f"{place}/{run}/artifacts",
                "experiment_id": int(sweep.experiment),
            }
        )
        rows[models.SqlTag] += [{"key": key, "value": value, "run_uuid": run} for key, value in tags.items()]
        rows[models.SqlParam] += [
            {"key": key, "value": value, "run_uuid": run} for key, value in flatten_params(recipe).items()
        ]
        rows[models.SqlMetric] += [_row(each, run) for each in measured]
        rows[models.SqlLatestMetric] += [_row(each, run) for each in latest.values()]
        last = {key: each.value for key, each in latest.items()}
        mirrored[record.trial] = MirroredRun(run, MLFLOW_STATUS[record.status], record.status, last, has_params=True)
    engine = create_engine(tracking_uri, poolclass=NullPool, connect_args={"timeout": 20})
    with engine.begin() as connection:
        for kind, those in rows.items():
            if those:
                connection.execute(insert(kind.__table__), those)
    engine.dispose()
    sweep.trials |= mirrored


def _identity(metric: Metric) -> tuple[Any, ...]:
    return metric.key, metric.step, metric.timestamp, metric.value


def _row(metric: Metric, run: str) -> dict[str, Any]:
    return {
        "key": metric.key,
        "value": metric.value,
        "timestamp": metric.timestamp,
        "step": metric.step,
        "is_nan": False,  # the store holds none
        "run_uuid": run,
    }
