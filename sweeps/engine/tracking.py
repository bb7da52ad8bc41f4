"""Mirrors a sweep's folder to MLflow: one writer on the driver, and the folder stays the only truth.

    experiment  plan["experiment"]
    parent run  the sweep: the plan's main values, how many trials ended how, the winner's model
    child runs  a trial each: its recipe as params, an epoch's values at step = epoch, how it ended as status

Trials never speak to MLflow. What MLflow already has is asked from MLflow, so any process can take a mirror up, and a
server that comes back gets everything that it missed, once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sweeps.engine import objects
from sweeps.engine.store import Store
from xfer.records import Epoch, Record, as_dict, epoch_from

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

STATUS = {
    "running": "RUNNING",
    "interrupted": "KILLED",
    "finished": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
}
"""From our word, the tag `xfer.status`, to MLflow's, which has none of its own for a trial that was pruned."""

SYSTEM = ("cpu_percent", "memory_mb", "gpu_percent", "gpu_memory_mb")
"""What an Epoch says of the machine: MLflow shows everything named `system/...` on a page of its own."""

SETTINGS = {
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

EPOCHS_PER_BATCH = 60
"""Of 12 values at most: MLflow takes 1,000 in a batch, and an epoch must not be torn between two."""


def default_uri(storage: Path) -> str:
    """Where a storage folder's sweeps are tracked unless another server is named: an SQLite file in it."""
    return f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def without_password(text: str) -> str:
    """`text` with the `user:password@` taken out of every address in it.

    >>> without_password("no answer from https://me:secret@host/mlflow")
    'no answer from https://host/mlflow'
    """
    return re.sub(r"://[^/\s@]+@", "://", text)


def flat(plain: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow's params; what is called by a name stands under the key itself.

    >>> flat({"strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 2}, "clip_norm": None})
    {'strategy': 'freeze_then_unfreeze', 'strategy.freeze_epochs': '2', 'clip_norm': 'none'}
    """
    params: dict[str, str] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            params |= {key if name == "name" else f"{key}.{name}": text for name, text in flat(value).items()}
        else:
            params[key] = "none" if value is None else str(value)
    return params


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
        return self.deleted or (self.state in ("finished", "pruned", "failed") and self.status == STATUS[self.state])


@dataclass(slots=True)
class MirroredSweep:
    """What MLflow has of one sweep."""

    id: str
    experiment: str
    parent: MirroredRun
    trials: dict[str, MirroredRun]


@dataclass(frozen=True)
class Winner:
    """An exported model, and what it reached."""

    trial: str
    folder: Path
    metrics: Mapping[str, float]


class Mirror:
    """Brings MLflow to what a store says: once by `sync`, or every few seconds between `start` and `close`.

    Whatever goes wrong on the way to the server is logged, once per kind, and tried again at the next sync; it never
    reaches the sweep. As a context manager, `close` is called at the end, and `complete` says whether all has arrived.
    """

    def __init__(self, store: Store, tracking_uri: str, period_seconds: float = 3.0) -> None:
        self.store = store
        self.tracking_uri = tracking_uri
        self.period_seconds = period_seconds
        self.complete = False
        """Whether the last sync brought everything over."""
        self._client: MlflowClient | None = None
        self._mirrored: MirroredSweep | None = None  # None: ask MLflow first
        self._winner: Winner | None = None  # until its model has arrived
        self._live = False
        self._troubles: set[str] = set()
        self._had_trouble = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin to mirror in the background. Until `close`, a trial that has not ended counts as running."""
        assert self._thread is None, "a mirror is started once"
        self._live = True
        # A daemon, so that a server that hangs cannot keep the process alive once `close` has lost patience.
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()
        return self

    def close(self, patience_seconds: float = 20.0) -> bool:
        """Sync a last time and stop; says whether everything has arrived within `patience_seconds`.

        What has not ended by now is marked as interrupted; resuming the sweep sets it back to running.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(patience_seconds)
        return self.complete and (self._thread is None or not self._thread.is_alive())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            wait = self.period_seconds if self.sync() else min(2 * wait + 1, 60.0)
        self.complete, self._live = False, False
        if self._had_trouble:
            self._mirrored = None  # a request that we gave up may have been carried out since
        self.sync()

    def sync(self) -> bool:
        """Bring MLflow to what the store says; says whether everything has arrived. Called again, it changes nothing.

        Outside of `start` and `close` a trial that has not ended counts as interrupted: not for use beside a driver.
        The cost is in proportion to what is new.
        """
        with self._lock:
            try:
                plan = self.store.plan()
                if plan is not None:
                    self._sync(plan)
            except Exception as error:  # whatever MLflow, its database or its server comes up with
                self._mirrored = None  # nothing is taken for granted any more
                self._report(error)
                self.complete = False
            else:
                if self._troubles:
                    log.info("MLflow at %s has everything now", without_password(self.tracking_uri))
                self._troubles.clear()
                self.complete = True
            return self.complete

    def log_model(self, trial: str, folder: Path, metrics: Mapping[str, float]) -> bool:
        """Log an exported model (see xfer/export.py) and what it reached as the sweep's winner.

        Says whether it, and everything else, has arrived; otherwise later syncs try again, so leave the folder there.
        """
        self._winner = Winner(trial, folder, metrics)
        return self.sync()

    def _report(self, error: Exception) -> None:
        kind = f"{type(error).__name__} {getattr(error, 'error_code', '')}"
        if kind not in self._troubles:
            where, what = without_password(self.tracking_uri), without_password(str(error))[:500]
            log.warning("MLflow at %s: %s. The sweep goes on, and this is tried again.", where, what)
        self._troubles.add(kind)
        self._had_trouble = True

    # --- one pass -------------------------------------------------------------------------------------------------

    def _sync(self, plan: Mapping[str, Any]) -> None:
        client = self._client = self._client or connect(self.tracking_uri)
        if self._mirrored is None:
            self._mirrored = _ask(client, plan, self.tracking_uri, self.store.folder.parent)
        sweep = self._mirrored
        if not sweep.parent.has_params:
            _log(client, sweep.parent, params=_params(plan))
        if self._live:
            _settle(client, sweep.parent, "running")
        troubles = []
        for name in _names(self.store.folder / "trials"):
            if name not in sweep.trials or not sweep.trials[name].closed:
                try:
                    self._sync_trial(client, sweep, name)
                except Exception as error:
                    if getattr(error, "get_http_status_code", lambda: 400)() >= 500:
                        raise  # the server's trouble; any other is this one trial's and stops no other
                    troubles.append(error)
        self._sync_tests(client, sweep)
        if troubles:
            raise troubles[0]
        if self._winner is not None:
            config = objects.get(self.store.trial_folder(self._winner.trial) / "config.json")
            _log_model(client, sweep, plan, {} if config is None else config["recipe"], self._winner)
            self._winner = None
        if not self._live:
            self._end(client, sweep, plan)

    def _sync_trial(self, client: MlflowClient, sweep: MirroredSweep, name: str) -> None:
        folder = self.store.trial_folder(name)
        config = objects.get(folder / "config.json")
        if config is None:  # just being begun, or set aside because it was damaged
            return
        if name not in sweep.trials:
            tags = {"mlflow.parentRunId": sweep.parent.id, "xfer.sweep": sweep.id, "xfer.trial": name}
            tags |= {"xfer.phase": config["phase"], "xfer.status": "running"}
            at, title = _modified(folder / "config.json"), _title(name, config["recipe"])
            run = client.create_run(sweep.experiment, at, tags, title)
            sweep.trials[name] = MirroredRun(run.info.run_id, "RUNNING", "running")
        mirrored = sweep.trials[name]
        record = self.store.record(name)
        epochs = _new_epochs(folder, mirrored.steps) if record is None else record.epochs
        epochs = tuple(epoch for epoch in epochs if epoch.epoch not in mirrored.steps)
        params = {} if mirrored.has_params else flat(config["recipe"])
        while epochs or params:
            batch, epochs = epochs[:EPOCHS_PER_BATCH], epochs[EPOCHS_PER_BATCH:]
            metrics = [metric for epoch in batch for metric in _metrics_of(epoch, folder)]
            _log(client, mirrored, metrics, params)
            mirrored.steps |= {epoch.epoch for epoch in batch}
            params = {}
        if record is None:
            _settle(client, mirrored, "running" if self._live else "interrupted")
        else:
            at = _modified(folder / "record.json")
            if mirrored.state != record.status:
                _log(client, mirrored, _costs_of(record, at), tags=_tags_of(record))
            _settle(client, mirrored, record.status, at)
            mirrored.steps.clear()

    def _sync_tests(self, client: MlflowClient, sweep: MirroredSweep) -> None:
        """The test part is opened long after a finalist's runs ended: ask for those, `0007` and `0007-s1`, alone."""
        finalists = {name.partition("-")[0] for name in sweep.trials if "-" in name}
        for name, run in sweep.trials.items():
            if name.partition("-")[0] in finalists and run.state == "finished" and "test_accuracy" not in run.metrics:
                test = self.store.test(name)
                if test is not None and not run.deleted:
                    at = _modified(self.store.trial_folder(name) / "test.json")
                    _log(client, run, _metrics({"test_accuracy": test.accuracy, "test_loss": test.loss}, at))

    def _end(self, client: MlflowClient, sweep: MirroredSweep, plan: Mapping[str, Any]) -> None:
        """Nobody drives the sweep any more: count, and say whether it is done."""
        search = [run for name, run in sweep.trials.items() if "-" not in name]
        states = Counter(run.state for run in search)
        values = {f"trials_{state}": float(states[state]) for state in ("finished", "pruned", "failed")}
        reached = [run.metrics["val_accuracy"] for run in search if run.state == "finished"]
        if reached:
            values["best_val_accuracy"] = max(reached)
        new = {key: value for key, value in values.items() if sweep.parent.metrics.get(key) != value}
        if new:
            _log(client, sweep.parent, _metrics(new, int(time.time() * 1000), len(search)))
        all_tried = len(search) >= plan["trials"] and all(run.closed for run in sweep.trials.values())
        if all_tried and not reached:
            state = "failed"
        elif all_tried and (self.store.decisions("openings") or not plan["finalists"]):
            state = "finished"
        else:
            state = "interrupted"
        _settle(client, sweep.parent, state)


# --- talking to MLflow --------------------------------------------------------------------------------------------


def connect(tracking_uri: str) -> MlflowClient:
    """A client of MLflow that neither phones home nor prints, and that gives up early.

    MLflow is imported here and not above, because it reads its settings while it is imported, and because that takes
    1.5 s, which no command that does without it should wait for.
    """
    os.environ.update(SETTINGS)
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


def _ask(client: MlflowClient, plan: Mapping[str, Any], tracking_uri: str, storage: Path) -> MirroredSweep:
    """What MLflow has of a sweep; the experiment and the parent run are created where they are missing."""
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(plan["experiment"])
    if experiment is None:
        # A server has a place of its own for artifacts; a database by itself would put them where we were started.
        place = None if tracking_uri.startswith("http") else (storage.resolve() / "mlartifacts").as_uri()
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
    tags = _tags_of_plan(plan)
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


def _log(
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


def _settle(client: MlflowClient, run: MirroredRun, state: str, at: int | None = None) -> None:
    """Set a run's state, ours and MLflow's. Where it is so already nothing is sent."""
    if run.state != state:
        _log(client, run, tags={"xfer.status": state})
    if run.status != STATUS[state]:
        if state == "running":
            client.update_run(run.id, "RUNNING")
        else:
            client.set_terminated(run.id, STATUS[state], at)
        run.status = STATUS[state]


# --- from the store's words to MLflow's ---------------------------------------------------------------------------


def _names(trials: Path) -> list[str]:
    """The trials that there are, without reading any of them."""
    return sorted(entry.name for entry in os.scandir(trials) if entry.is_dir()) if trials.exists() else []


def _new_epochs(folder: Path, steps: set[int]) -> tuple[Epoch, ...]:
    """The epochs of a trial but for those at `steps`, without reading these again."""
    paths = sorted(path for path in (folder / "epochs").glob("*.json") if int(path.stem) not in steps)
    return tuple(epoch_from(epoch) for epoch in map(objects.get, paths) if epoch is not None)


def _modified(*paths: Path) -> int:
    """When the first of `paths` that exists was written, in ms.

    Objects never change, so a value that is sent twice has the same time twice, and MLflow keeps one.
    """
    return next((path.stat().st_mtime_ns // 10**6 for path in paths if path.exists()), 0)


def _metrics(values: Mapping[str, float | None], at: int, step: int = 0, model_id: str | None = None) -> list[Metric]:
    from mlflow.entities import Metric

    present = {key: float(value) for key, value in values.items() if value is not None}
    return [Metric(key, value, at, step, model_id) for key, value in present.items()]


def _metrics_of(epoch: Epoch, folder: Path) -> list[Metric]:
    at = _modified(folder / "epochs" / f"{epoch.epoch:04d}.json", folder / "record.json")
    values = {key: value for key, value in as_dict(epoch).items() if key != "epoch"}
    return _metrics(
        {f"system/{key}" if key in SYSTEM else key: value for key, value in values.items()}, at, epoch.epoch
    )


def _costs_of(record: Record, at: int) -> list[Metric]:
    """What a trial took, in a section of its own: the UI makes a section of what stands before a slash."""
    costs = {
        "cost/seconds": record.seconds,
        "cost/parameters": record.parameters,
        "cost/trainable_parameters": record.trainable_parameters,
    }
    return _metrics(costs, at, len(record.epochs))


def _title(trial: str, recipe: Mapping[str, Any]) -> str:
    return f"{trial} {recipe['strategy']['name']}"


def _tags_of(record: Record) -> dict[str, str]:
    tags = {"xfer.status": record.status, "xfer.key": record.key, "xfer.id": record.id}
    if record.status == "pruned":  # MLflow draws KILLED like FAILED: the name says that all is well
        tags["xfer.pruned_at"] = str(len(record.epochs))
        tags["mlflow.runName"] = f"{_title(record.trial, record.recipe)}, pruned at {len(record.epochs)}"
    if record.error is not None:
        tags["xfer.error"] = without_password(record.error)
    if record.resumed_at:
        tags["xfer.resumed_at"] = ", ".join(map(str, record.resumed_at))
    return tags


def _tags_of_plan(plan: Mapping[str, Any]) -> dict[str, str]:
    """What may change when the sweep is resumed stands here: a param of MLflow's is fixed for ever."""
    command = without_password(plan["provenance"]["command"])
    return {
        "xfer.trials": str(plan["trials"]),
        "mlflow.note.content": f"{plan['question']}\n\n{_verbatim(command, *plan['data']['notes'])}",
        "mlflow.source.name": plan["experiment"],  # of a command the UI shows what follows its last slash
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(plan["provenance"]["commit"]),
    }


def _verbatim(*lines: str) -> str:
    """Lines for MLflow's Markdown that mean what they say: a file's or a class's name may hold anything."""
    return "".join(f"    {json.dumps(line, ensure_ascii=False)[1:-1]}\n" for line in lines)


def _params(plan: Mapping[str, Any]) -> dict[str, str]:
    data = {key: value for key, value in plan["data"].items() if key not in ("classes", "notes")}
    chosen = ("image_size", "epochs", "sampler", "scheduler", "finalists", "seeds", "seed", "space")
    return flat(
        {"data": {**data, "classes": len(plan["data"]["classes"])}}
        | {"backbones": ", ".join(backbone["name"] for backbone in plan["backbones"])}
        | {key: plan[key] for key in chosen}
    )


# --- the winner's model -------------------------------------------------------------------------------------------


def _log_model(
    client: MlflowClient,
    sweep: MirroredSweep,
    plan: Mapping[str, Any],
    recipe: Mapping[str, Any],
    winner: Winner,
) -> None:
    """Log the winner's model, unless the parent run has it already."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    if client.get_run(sweep.parent.id).data.tags.get("xfer.winner") == winner.trial:
        return
    about = json.loads((winner.folder / "model.json").read_text())
    size, card = about["image_size"], _card(plan, winner, about)
    images = TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(about["classes"])))
    tags = {"xfer.trial": winner.trial, "xfer.sweep": sweep.id, "mlflow.note.content": card}
    name = re.sub(r"[^\w-]", "-", plan["name"])  # MLflow takes no dots or colons here
    model = client.create_logged_model(
        sweep.experiment, name, sweep.parent.id, tags, flat(recipe), model_type="image classifier"
    )
    try:
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "model"
            save_model(
                saved,
                loader_module=__name__,  # calls _load_pyfunc below: nothing is pickled
                data_path=str(winner.folder),
                mlflow_model=Model(run_id=sweep.parent.id, model_id=model.model_id, model_uuid=model.model_id),
                signature=ModelSignature(Schema([images]), Schema([probabilities])),
                metadata=about,
                # Given, or MLflow loads the model in a process of its own to find out what that imports.
                pip_requirements=[f"{name}=={version(name)}" for name in ("numpy", "safetensors", "timm", "torch")],
            )
            (saved / "README.md").write_text(card)
            client.log_model_artifacts(model.model_id, str(saved))
        client.finalize_logged_model(model.model_id, "READY")
    except Exception:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(sweep.parent.id, [LoggedModelOutput(model.model_id, step=0)])
    reached = _metrics(winner.metrics, int(time.time() * 1000), model_id=model.model_id)
    _log(client, sweep.parent, reached, tags={"xfer.winner": winner.trial, "xfer.model": model.model_id})


def _card(plan: Mapping[str, Any], winner: Winner, about: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    data, size, classes = plan["data"], about["image_size"], about["classes"]
    reached = "".join(f"| {name} | {value:.4f} |\n" for name, value in winner.metrics.items())
    settings = [f"{key}: {about[key]}" for key in ("backbone", "image_size", "resize", "mean", "std")]
    return f"""# The winner: trial {winner.trial}

{_verbatim(f"sweep: {plan['name']}", f"data: {data['folder']}")}
{data["train"]} images to train on, {data["val"]} to select by, {data["test"]} to test on.

| metric | value |
|---|---|
{reached}
**Input**: photos, uint8 [N, {size}, {size}, 3]. **Output**: probabilities, float32 [N, {len(classes)}], of the classes

{_verbatim(*classes)}
**Preprocessing**: bring photos to that size yourself; mean and std, of values in [0, 1], are seen to.

{_verbatim(*settings)}
The weights are safetensors, and nothing here is pickled. With `sweeps` and `xfer` installed it is loaded by

    mlflow.pyfunc.load_model("models:/<the id of this model>").predict(images)
"""


class Predictor:
    """What MLflow calls a Python model: images in, a probability per class out."""

    def __init__(self, folder: Path) -> None:
        from xfer.export import load_classifier  # brings torch along, which a sweep's driver does without

        self._classifier = load_classifier(folder)

    def predict(self, images: np.ndarray[Any, Any], params: Mapping[str, Any] | None = None) -> np.ndarray[Any, Any]:
        """Probabilities [N, C] for uint8 images [N, H, W, 3]."""
        return np.asarray(self._classifier.probabilities(images), dtype=np.float32)


def _load_pyfunc(data_path: str) -> Predictor:
    """What MLflow looks for in a `loader_module`."""
    return Predictor(Path(data_path))
