"""Talking to MLflow: what it has of a sweep, and one batch at a time of what it lacks."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sweeps.engine.tracking.mapping import plan_tags
from xfer.storage import local_cache

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

MLFLOW_STATUS = {
    "running": "RUNNING",
    "interrupted": "KILLED",
    "finished": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
}
"""From our word, the tag `xfer.status`, to MLflow's, which has none of its own for a trial that was pruned."""

MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # its queue is unbounded and drops a batch that failed
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model's requirements are ours, not those of the folder we are started in
    # Were the client to repeat a request by itself, a run whose creation was answered too late would be there twice.
    # Our next sync is the retry, and it looks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
}


def resolve_tracking_uri(asked: str, storage: Path) -> str:
    """Where to track: what was asked for, else what MLflow's own variable says, else `default_tracking_uri`."""
    return asked or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(storage)


def default_tracking_uri(storage: Path) -> str:
    """Where a storage folder's sweeps are tracked unless another server is named: an SQLite file in it.

    No database lives in an object store: of such a storage this machine has its own. It is a mirror, and made anew.
    """
    return f"sqlite:///{local_cache.local_path(storage).resolve() / 'mlflow.db'}"


@dataclass(slots=True)
class MirroredRun:
    """What MLflow has of one run."""

    id: str
    status: str
    """MLflow's word."""
    state: str
    """Ours, a key of STATUS."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of each."""
    has_params: bool = False
    deleted: bool = False
    """A person put it into MLflow's bin, and there it is left."""
    steps: set[int] = field(default_factory=set)
    """Which epochs have arrived; kept only until the trial has ended."""

    @property
    def closed(self) -> bool:
        """Whether everything has arrived, up to the trial's end, so that nobody need look at it again."""
        return self.deleted or (
            self.state in ("finished", "pruned", "failed") and self.status == MLFLOW_STATUS[self.state]
        )


@dataclass(slots=True)
class MirroredSweep:
    """What MLflow has of one sweep."""

    id: str
    experiment: str
    parent: MirroredRun
    trials: dict[str, MirroredRun]


def connect_mlflow(tracking_uri: str) -> MlflowClient:
    """A client of MLflow that neither phones home nor prints, and that gives up early.

    MLflow is imported here and not above, because it reads its settings while it is imported, and because that takes
    1.5 s, which no command that does without it should wait for.
    """
    os.environ.update(MLFLOW_SETTINGS)
    from mlflow import MlflowClient

    # Without an example of its input a model has the signature that we give it; we are told so each time.
    warnings.filterwarnings("ignore", message=".*An input example was not provided")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if tracking_uri.startswith("sqlite:///"):
        _create_database(Path(tracking_uri.removeprefix("sqlite:///")))
    return MlflowClient(tracking_uri, registry_uri=tracking_uri)


def _create_database(path: Path) -> None:
    """Put an empty database at `path` unless there is one.

    MLflow's migrations run under another name: of two processes that race them one fails, and a kill in their midst
    leaves a database that cannot be opened. Where the file system has no hard links MLflow makes it in place.
    """
    from mlflow import MlflowClient

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder, suppress(OSError):
            MlflowClient(f"sqlite:///{folder}/{path.name}").search_experiments(max_results=1)
            os.link(f"{folder}/{path.name}", path)


def fetch_sweep(client: MlflowClient, plan: Mapping[str, Any], tracking_uri: str, storage: Path) -> MirroredSweep:
    """What MLflow has of a sweep; the experiment and the parent run are created where they are missing."""
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(plan["experiment"])
    if experiment is None:
        # A server has a place of its own for artifacts; a database by itself would put them where we were started.
        place = (
            None
            if tracking_uri.startswith("http")
            else (local_cache.local_path(storage).resolve() / "mlartifacts").as_uri()
        )
        kind = {"mlflow.experimentKind": "custom_model_development"}  # and not of prompts and agents
        experiment = client.get_experiment(client.create_experiment(plan["experiment"], place, kind))
    created = datetime.fromisoformat(plan["provenance"]["created"])
    sweep = hashlib.sha256(f"{plan['name']} {created.isoformat()}".encode()).hexdigest()[:16]  # nothing to quote
    runs: list[Run] = []
    token: str | None = None
    while token or not runs:
        where, everything = f"tags.`xfer.sweep` = '{sweep}'", ViewType.ALL
        page = client.search_runs([experiment.experiment_id], where, everything, max_results=1000, page_token=token)
        runs, token = [*runs, *page], page.token
        if not page:
            break
    tags = plan_tags(plan)
    trials = {name: _mirrored(run) for name, run in _one_each(client, runs, "xfer.trial").items()}
    for trial in trials.values():
        if not trial.closed:
            trial.steps = {metric.step for metric in client.get_metric_history(trial.id, "val_accuracy")}
    parents = _one_each(client, [run for run in runs if "xfer.trial" not in run.data.tags], "xfer.sweep")
    if parents:
        parent = parents[sweep]
        if parent.info.lifecycle_stage == "deleted":
            command = f"mlflow runs restore --run-id {parent.info.run_id}"
            raise ValueError(f"{plan['name']} was deleted there, so nothing is added to it. To get it back: {command}")
        if parent.data.tags.get("xfer.trials") != tags["xfer.trials"]:
            client.set_tag(parent.info.run_id, "xfer.trials", tags["xfer.trials"])
    else:
        tags |= {"xfer.sweep": sweep, "xfer.status": "running"}
        parent = client.create_run(experiment.experiment_id, int(created.timestamp() * 1000), tags, plan["name"])
    return MirroredSweep(sweep, experiment.experiment_id, _mirrored(parent), trials)


def _one_each(client: MlflowClient, runs: Iterable[Run], tag: str) -> dict[str, Run]:
    """The run for every value of a tag.

    Where a creation that we had given up was carried out after all there are two: the emptier one goes to the bin.
    """
    groups = defaultdict(list)
    for run in runs:
        if tag in run.data.tags:
            groups[run.data.tags[tag]].append(run)
    chosen = {}
    for value, group in groups.items():
        group.sort(key=lambda run: (run.info.lifecycle_stage == "active", len(run.data.metrics), len(run.data.params)))
        *others, chosen[value] = group
        for other in others:
            if other.info.lifecycle_stage == "active":
                client.delete_run(other.info.run_id)
    return chosen


def _mirrored(run: Run) -> MirroredRun:
    deleted = run.info.lifecycle_stage == "deleted"
    state, metrics = run.data.tags.get("xfer.status", "running"), dict(run.data.metrics)
    return MirroredRun(run.info.run_id, run.info.status, state, metrics, bool(run.data.params), deleted)


def log_batch(
    client: MlflowClient,
    run: MirroredRun,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """One batch, and a note of what it brought."""
    from mlflow.entities import Param, RunTag

    as_params = [Param(key, value) for key, value in (params or {}).items()]
    as_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
    client.log_batch(run.id, metrics, as_params, as_tags, synchronous=True)
    run.metrics |= {metric.key: metric.value for metric in metrics}
    run.has_params |= bool(params)
    run.state = (tags or {}).get("xfer.status", run.state)


def set_run_state(client: MlflowClient, run: MirroredRun, state: str, at: int | None = None) -> None:
    """Set a run's state, ours and MLflow's. Where it is so already nothing is sent."""
    if run.state != state:
        log_batch(client, run, tags={"xfer.status": state})
    if run.status != MLFLOW_STATUS[state]:
        if state == "running":
            client.update_run(run.id, "RUNNING")
        else:
            client.set_terminated(run.id, MLFLOW_STATUS[state], at)
        run.status = MLFLOW_STATUS[state]
