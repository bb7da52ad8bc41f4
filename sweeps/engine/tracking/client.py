"""Connects to MLflow, fetches what it has of a sweep, and logs batches to its runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sweeps.engine.tracking.addresses import check_tracking_uri, sqlite_path, sqlite_uri
from sweeps.engine.tracking.mapping import created_ms, plan_tags, sweep_id
from sweeps.engine.tracking.view import progress_page, trials_page, view_tag
from xfer.storage import local_cache
from xfer.storage.redaction import redact, redact_all

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

MLFLOW_STATUS = {
    "running": "RUNNING",
    "interrupted": "KILLED",
    "finished": "FINISHED",
    "stopped early": "FINISHED",
    "failed": "FAILED",
}
"""MLflow's status for each value of the tag `xfer.status`. MLflow shows KILLED like FAILED, so a trial that was stopped
early, which is no error, is FINISHED."""

ENDED = ("finished", "stopped early", "failed")
"""Values of the tag `xfer.status` of a trial that has ended."""

PROGRESS_COUNTS = {"trials_finished": "finished", "trials_pruned": "stopped early", "trials_failed": "failed"}
"""Metrics of a sweep's parent run that count its ended trials, by the state that they count."""

MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # its queue is unbounded and drops failed batches
    "MLFLOW_UV_AUTO_DETECT": "false",  # use our requirements for a model, not those of the working directory
    # No retries inside the client: a run whose creation timed out would be created twice. The next sync retries, and
    # checks first what has arrived.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
}
"""Environment variables set before MLflow is imported."""


def resolve_tracking_uri(tracking_uri: str, storage: Path) -> str:
    """Return `tracking_uri` if not empty, else $MLFLOW_TRACKING_URI, else `default_tracking_uri(storage)`.

    Raises:
        ValueError: the address is malformed or of a kind that MLflow does not support.
    """
    if uri := tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
        check_tracking_uri(uri, "--tracking-uri" if tracking_uri else "MLFLOW_TRACKING_URI")
        return uri
    return default_tracking_uri(storage)


def default_tracking_uri(storage: Path) -> str:
    """Return the URI of the SQLite file in a storage folder, where its sweeps are tracked by default.

    An object store cannot hold a database. For such a storage the file is in this machine's local copy; it is a mirror
    and can be rebuilt.
    """
    return sqlite_uri(local_cache.local_path(storage).resolve() / "mlflow.db")


@dataclass(slots=True)
class MirroredRun:
    """A run as MLflow has it."""

    id: str
    status: str
    """Status of the run in MLflow, such as FINISHED."""
    state: str
    """Value of its tag `xfer.status`, a key of MLFLOW_STATUS."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Latest value of each metric."""
    has_params: bool = False
    deleted: bool = False
    """Whether a user has deleted it in MLflow; it is then left alone."""
    steps: set[int] = field(default_factory=set)
    """Epochs that MLflow has, tracked only until the trial has ended; of a parent run, the steps of its progress."""
    ended_ms: int = 0
    """When the trial ended, in ms since the epoch; 0 if it is not known to have ended."""

    @property
    def closed(self) -> bool:
        """Whether MLflow has everything of a trial that has ended, so that the trial need not be read again."""
        return self.deleted or (self.state in ENDED and self.status == MLFLOW_STATUS[self.state])


@dataclass(slots=True)
class MirroredSweep:
    """A sweep as MLflow has it."""

    id: str
    """Value of the tag `xfer.sweep` of its runs."""
    experiment: str
    """Id of the experiment in MLflow."""
    parent: MirroredRun
    trials: dict[str, MirroredRun]
    """Child runs by name of the trial."""


def connect_mlflow(tracking_uri: str) -> MlflowClient:
    """Return an MLflow client that sends no telemetry, prints nothing and has a short timeout.

    For an SQLite URI the database is created if it does not exist. MLflow is imported here and not at the top, because
    it reads its settings during the import, and because the import takes 1.5 s, which other commands should not pay.
    """
    os.environ.update(MLFLOW_SETTINGS)
    from mlflow import MlflowClient

    # The signature of a model is given explicitly, so an input example is not needed.
    warnings.filterwarnings("ignore", message=".*An input example was not provided")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if database := sqlite_path(tracking_uri):
        _create_database(database)
    return MlflowClient(tracking_uri, registry_uri=tracking_uri)


def _create_database(path: Path) -> None:
    """Create an empty MLflow database at `path` if there is none.

    MLflow's migrations run on a temporary file, which is then linked to `path`: if two processes ran them on the same
    file, one would fail, and a process killed during them would leave an unusable database. On file systems without
    hard links MLflow creates the database in place.
    """
    from mlflow import MlflowClient

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder, suppress(OSError):
            MlflowClient(sqlite_uri(Path(folder, path.name))).search_experiments(max_results=1)
            os.link(f"{folder}/{path.name}", path)


def fetch_sweep(client: MlflowClient, plan: Mapping[str, Any], tracking_uri: str, storage: Path) -> MirroredSweep:
    """Fetch a sweep from MLflow; creates the experiment and the parent run if they do not exist.

    Args:
        client: client of the tracking server or database.
        plan: the sweep's plan.json.
        tracking_uri: URI of the server or database, which decides where a new experiment stores artifacts.
        storage: the sweeps' storage folder.

    Raises:
        ValueError: a user has deleted the parent run.
    """
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(plan["experiment"])
    if experiment is None:
        # A server has its own artifact store; a plain database would store them in the working directory.
        artifact_location = (
            None
            if tracking_uri.startswith("http")
            else (local_cache.local_path(storage).resolve() / "mlartifacts").as_uri()
        )
        kind = {"mlflow.experimentKind": "custom_model_development"}  # hides the pages about prompts and agents
        created_id = client.create_experiment(plan["experiment"], artifact_location, kind)
        experiment = client.get_experiment(created_id)
    sweep = sweep_id(plan)
    key, view = view_tag(plan)
    if experiment.tags.get(key) != view:
        client.set_experiment_tag(experiment.experiment_id, key, view)
    runs: list[Run] = []
    token: str | None = None
    while token or not runs:
        filter_string, ids = f"tags.`xfer.sweep` = '{sweep}'", [experiment.experiment_id]
        page = client.search_runs(ids, filter_string, ViewType.ALL, max_results=1000, page_token=token)
        runs, token = [*runs, *page], page.token
        if not page:
            break
    tags = plan_tags(plan)
    trials = {name: _to_mirrored_run(run) for name, run in _run_by_tag(client, runs, "xfer.trial").items()}
    for trial in trials.values():
        if not trial.closed:
            trial.steps = {metric.step for metric in client.get_metric_history(trial.id, "val_accuracy")}
    parents = _run_by_tag(client, [run for run in runs if "xfer.trial" not in run.data.tags], "xfer.sweep")
    if parents:
        parent = parents[sweep]
        if parent.info.lifecycle_stage == "deleted":
            command = f"mlflow runs restore --run-id {parent.info.run_id}"
            raise ValueError(f"{plan['name']} was deleted in MLflow, so it is not mirrored. To restore it: {command}")
        if parent.data.tags.get("xfer.trials") != tags["xfer.trials"]:
            client.set_tag(parent.info.run_id, "xfer.trials", tags["xfer.trials"])
    else:
        tags |= {"xfer.sweep": sweep, "xfer.status": "running"}
        parent = client.create_run(experiment.experiment_id, created_ms(plan), redact_all(tags), plan["name"])
    mirrored = _to_mirrored_run(parent)
    for key in PROGRESS_COUNTS.keys() & mirrored.metrics.keys():
        mirrored.steps |= {metric.step for metric in client.get_metric_history(mirrored.id, key)}
    return MirroredSweep(sweep, experiment.experiment_id, mirrored, trials)


def sweep_pages(server: str, plan: Mapping[str, Any]) -> dict[str, str]:
    """Return the addresses of a sweep's pages in the UI of an MLflow server, by title; empty if it has no such sweep.

    Args:
        server: address of the server.
        plan: the sweep's plan.json.
    """
    try:
        client = connect_mlflow(server)
        experiment = client.get_experiment_by_name(plan["experiment"])
        if experiment is None:
            return {}
        filter_string = (
            f"tags.`xfer.sweep` = '{sweep_id(plan)}' AND tags.`xfer.trials` != ''"  # only parents have these
        )
        parents = client.search_runs([experiment.experiment_id], filter_string)
    except Exception:  # any error of MLflow or its server, which then has no pages either
        return {}
    if not parents:
        return {}
    has_view = view_tag(plan)[0] in experiment.tags
    return {
        "trials, best first": trials_page(server, experiment.experiment_id, plan, has_view),
        "progress": progress_page(server, experiment.experiment_id, parents[0].info.run_id),
    }


def _run_by_tag(client: MlflowClient, runs: Iterable[Run], tag: str) -> dict[str, Run]:
    """Return one run for each value of a tag, and delete duplicates.

    Duplicates arise when a creation that had timed out was carried out after all; the run with more data is kept.
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


def _to_mirrored_run(run: Run) -> MirroredRun:
    deleted = run.info.lifecycle_stage == "deleted"
    state, metrics = run.data.tags.get("xfer.status", "running"), dict(run.data.metrics)
    ended_ms = run.info.end_time or 0
    return MirroredRun(
        run.info.run_id, run.info.status, state, metrics, bool(run.data.params), deleted, ended_ms=ended_ms
    )


def log_batch(
    client: MlflowClient,
    run: MirroredRun,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log one batch to a run and update `run` accordingly.

    Args:
        client: client of the tracking server or database.
        run: the run; its latest metrics, `has_params` and `state` are updated.
        metrics: at most 1,000 metrics.
        params: params by name; MLflow rejects a changed value.
        tags: tags by name.
    """
    from mlflow.entities import Param, RunTag

    param_entities = [Param(key, redact(value)) for key, value in (params or {}).items()]
    tag_entities = [RunTag(key, redact(value)) for key, value in (tags or {}).items()]
    client.log_batch(run.id, metrics, param_entities, tag_entities, synchronous=True)
    run.metrics |= {metric.key: metric.value for metric in metrics}
    run.has_params |= bool(params)
    run.state = (tags or {}).get("xfer.status", run.state)


def set_run_state(client: MlflowClient, run: MirroredRun, state: str, end_ms: int | None = None) -> None:
    """Set a run's tag `xfer.status` and its MLflow status; sends nothing if both are set already.

    Args:
        client: client of the tracking server or database.
        run: the run; its `state` and `status` are updated.
        state: a key of MLFLOW_STATUS.
        end_ms: end of the run in ms since the epoch. Defaults to now.
    """
    if run.state != state:
        log_batch(client, run, tags={"xfer.status": state})
    if run.status != MLFLOW_STATUS[state]:
        if state == "running":
            client.update_run(run.id, "RUNNING")
        else:
            client.set_terminated(run.id, MLFLOW_STATUS[state], end_ms)
        run.status = MLFLOW_STATUS[state]
