"""Inserts many finished trials into MLflow's SQLite database in one transaction.

This is the only module that writes to MLflow's private tables: `runs`, `tags`, `params`, `metrics` and
`latest_metrics`, through the models of `mlflow.store.tracking.dbmodels`. All other writes use `MlflowClient`.

The public client is too slow for sweeps of thousands of short trials. It writes one run at a time, and each call
commits several transactions, which SQLite flushes to disk. Measured on 2026-11-30 with MLflow 3.17.2 on 2 cores and a
virtual disk, load 6, with 400 trials of 3 epochs and 19 params (milliseconds per trial):

    path                                                                  wall   processor
    create_run, one log_batch and set_terminated (the fewest calls)        135          25
    `Mirror` through the client, in its general order                      196          33
    this module                                                            2.5         1.1

The progress of the parent run, which always goes through the client, adds 0.3 ms of processor time per trial.

5,000 trials would take 11 to 16 minutes through the client and take 13 s here. Such a sweep itself takes 19 ms a trial
(benchmarks/RESULTS.md, row 4), less than the client's processor time alone, so the mirror would never catch up.

The inserted rows equal those that the client would write; tests/engine/tracking/test_bulk.py compares them row by row.
If an insert fails, for example because another version of MLflow has different tables, the transaction is rolled back,
and the mirror uses the client from its next sync on. Servers and other databases always use the client.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.engine.tracking.addresses import sqlite_path
from sweeps.engine.tracking.client import MLFLOW_STATUS, MirroredRun, MirroredSweep
from sweeps.engine.tracking.mapping import (
    epoch_metrics,
    flatten_params,
    modified_ms,
    record_metrics,
    record_params,
    record_state,
    record_tags,
    run_name,
)
from xfer.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

MIN_TRIALS = 8
"""Minimum number of trials to insert in bulk; for fewer, the client is fast enough."""
MAX_TRIALS = 200
"""Maximum number of trials per transaction, so that other writers do not wait for long."""
MAX_PARAM_LENGTH = 500
"""Maximum length of a param, in characters; a trial with a longer one is left to the client, which validates it."""


@dataclass(frozen=True)
class EndedTrial:
    """A trial that has ended and that MLflow does not have yet."""

    folder: Path
    config: Mapping[str, Any]
    record: Record

    @property
    def has_short_params(self) -> bool:
        """Whether all its params are short enough to be inserted without MLflow's validation."""
        return all(len(value) <= MAX_PARAM_LENGTH for value in flatten_params(self.config["recipe"]).values())


def can_bulk_insert(tracking_uri: str) -> bool:
    """Return whether the tracking URI is an SQLite file, the only kind of database that is written directly."""
    return sqlite_path(tracking_uri) is not None


def insert_trials(client: MlflowClient, tracking_uri: str, sweep: MirroredSweep, trials: Sequence[EndedTrial]) -> None:
    """Insert trials as child runs of a sweep, all or none, and add them to `sweep.trials`.

    Args:
        client: used to look up the experiment.
        tracking_uri: URI of the SQLite database.
        sweep: the sweep as MLflow has it; updated only if the insert succeeds.
        trials: trials that MLflow does not have yet.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database rejected a row; nothing was inserted.
    """
    from mlflow.store.tracking.dbmodels import models
    from sqlalchemy import NullPool, create_engine, insert

    artifact_root = client.get_experiment(sweep.experiment).artifact_location
    rows: dict[Any, list[dict[str, Any]]] = {
        model: [] for model in (models.SqlRun, models.SqlTag, models.SqlParam, models.SqlMetric, models.SqlLatestMetric)
    }
    mirrored: dict[str, MirroredRun] = {}
    for trial in trials:
        run_id, record, recipe = uuid.uuid4().hex, trial.record, trial.config["recipe"]
        state = record_state(record)
        ended_ms = modified_ms(trial.folder / "record.json")
        tags = {"mlflow.parentRunId": sweep.parent.id, "xfer.sweep": sweep.id, "xfer.trial": record.trial}
        tags |= {"xfer.phase": trial.config["phase"], "mlflow.runName": run_name(record.trial, recipe)}
        tags |= record_tags(record)
        of_epochs = [metric for epoch in record.epochs for metric in epoch_metrics(epoch, trial.folder)]
        metrics = {_identity(metric): metric for metric in [*of_epochs, *record_metrics(record, ended_ms)]}.values()
        latest: dict[str, Metric] = {}
        for metric in sorted(metrics, key=lambda metric: (metric.step, metric.timestamp, metric.value)):
            latest[metric.key] = metric
        rows[models.SqlRun].append(
            {
                "run_uuid": run_id,
                "name": tags["mlflow.runName"],
                "source_type": "UNKNOWN",
                "source_name": "",
                "entry_point_name": "",
                "user_id": "unknown",
                "status": MLFLOW_STATUS[state],
                "start_time": modified_ms(trial.folder / "config.json"),
                "end_time": ended_ms,
                "source_version": "",
                "lifecycle_stage": "active",
                "artifact_uri": f"{artifact_root}/{run_id}/artifacts",
                "experiment_id": int(sweep.experiment),
            }
        )
        rows[models.SqlTag] += [{"key": key, "value": value, "run_uuid": run_id} for key, value in tags.items()]
        rows[models.SqlParam] += [
            {"key": key, "value": value, "run_uuid": run_id}
            for key, value in {**flatten_params(recipe), **record_params(record)}.items()
        ]
        rows[models.SqlMetric] += [_metric_row(metric, run_id) for metric in metrics]
        rows[models.SqlLatestMetric] += [_metric_row(metric, run_id) for metric in latest.values()]
        values = {key: metric.value for key, metric in latest.items()}
        mirrored[record.trial] = MirroredRun(
            run_id, MLFLOW_STATUS[state], state, values, has_params=True, ended_ms=ended_ms
        )
    engine = create_engine(tracking_uri, poolclass=NullPool, connect_args={"timeout": 20})
    with engine.begin() as connection:
        for model, model_rows in rows.items():
            if model_rows:
                connection.execute(insert(model.__table__), model_rows)
    engine.dispose()
    sweep.trials |= mirrored


def _identity(metric: Metric) -> tuple[Any, ...]:
    return metric.key, metric.step, metric.timestamp, metric.value


def _metric_row(metric: Metric, run_id: str) -> dict[str, Any]:
    return {
        "key": metric.key,
        "value": metric.value,
        "timestamp": metric.timestamp,
        "step": metric.step,
        "is_nan": False,  # the store contains no NaN
        "run_uuid": run_id,
    }
