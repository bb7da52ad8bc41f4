"""Mirror: compares a sweep's store with what MLflow has, and sends the difference."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sweeps.engine.storage import json_objects
from sweeps.engine.storage.store import Store
from sweeps.engine.tracking.bulk import MAX_TRIALS, MIN_TRIALS, EndedTrial, can_bulk_insert, insert_trials
from sweeps.engine.tracking.client import (
    MirroredRun,
    MirroredSweep,
    connect_mlflow,
    fetch_sweep,
    log_batch,
    set_run_state,
)
from sweeps.engine.tracking.mapping import (
    created_ms,
    epoch_metrics,
    flatten_params,
    modified_ms,
    plan_objectives,
    plan_params,
    record_metrics,
    record_params,
    record_state,
    record_tags,
    run_name,
    test_metrics,
    test_tags,
    to_metrics,
    unsent_epochs,
)
from sweeps.engine.tracking.model import ExportedModel, log_model
from sweeps.engine.tracking.progress import unsent_progress
from sweeps.reporting.cost import total_usd
from xfer.objectives import ACCURACY
from xfer.records import epoch_from_dict
from xfer.storage.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EPOCHS_PER_BATCH = 40
"""Epochs per batch. An epoch has at most 20 metrics, the first one 50 more; MLflow allows 1,000 metrics per batch, and
the metrics of an epoch must not be split over two batches."""

PROGRESS_STEPS_PER_BATCH = 150
"""Steps of the sweep's progress per batch. A step has at most five metrics."""
FULL_SYNC_SECONDS = 300.0
"""Seconds between two syncs that read every unfinished trial, while a driver reports what changes (`Mirror.report`)."""


class Mirror:
    """Updates MLflow from a store: once with `sync`, or every few seconds between `start` and `close`.

    Errors are logged, once per kind, and retried at the next sync; they never interrupt the sweep. As a context manager
    it calls `start` and `close`; afterwards `complete` says whether MLflow has everything.

    A driver that reports changes spares the storage: a sync then reads only the trials that have started or ended, and
    takes the epochs of running trials from their reports. Every few minutes all unfinished trials are read, in case a
    report was missed. Without reports every sync reads all of them, which is three requests per running trial.

    Args:
        store: the sweep's store.
        tracking_uri: URI of MLflow's server or database.
        period_seconds: seconds between two syncs in the background.
    """

    def __init__(self, store: Store, tracking_uri: str, period_seconds: float = 3.0) -> None:
        self.store = store
        self.tracking_uri = tracking_uri
        self.period_seconds = period_seconds
        self.complete = False
        """Whether MLflow has had everything since the last sync."""
        self._client: MlflowClient | None = None
        self._mirrored: MirroredSweep | None = None  # None: fetch it from MLflow first
        self._winner: ExportedModel | None = None  # None once its model is logged
        self._live = False
        self._use_bulk = True
        self._logged_errors: set[str] = set()
        self._had_error = False
        self._reports: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._reports_lock = threading.Lock()
        self._has_driver = False  # which reports changes
        self._full_sync_at = -math.inf  # when a sync last read every unfinished trial
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, delay_seconds: float = 0.0) -> Self:
        """Start mirroring in the background. Until `close`, trials that have not ended are marked as running.

        Args:
            delay_seconds: seconds before the first sync.
        """
        assert self._thread is None, "a mirror can be started only once"
        self._live = True
        # A daemon thread, so that a hanging server cannot keep the process alive after `close` has timed out.
        self._thread = threading.Thread(target=self._work, args=(delay_seconds,), name="mlflow-mirror", daemon=True)
        self._thread.start()
        return self

    def close(self, patience_seconds: float = 20.0) -> bool:
        """Sync a last time and stop.

        Trials that have not ended are marked as interrupted; resuming the sweep marks them as running again.

        Args:
            patience_seconds: seconds to wait for the last sync.

        Returns:
            Whether MLflow has everything.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(patience_seconds)
        return self.complete and (self._thread is None or not self._thread.is_alive())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self, trial: str, record: Mapping[str, Any] | None = None) -> None:
        """Take note that a trial has changed; returns at once, and the next sync logs it.

        Args:
            trial: its name.
            record: its record so far as plain data, as its process has reported it after an epoch; None if it has
                started or ended.
        """
        with self._reports_lock:
            self._has_driver = True
            # The record of a running trial is the one that it would have if it were stopped now. Without epochs here,
            # the trial is read from the store.
            self._reports[trial] = record["epochs"] if record is not None and record["status"] == "pruned" else ()

    def _work(self, wait: float) -> None:
        while not self._stop.wait(wait):
            wait = self.period_seconds if self.sync() else min(2 * wait + 1, 60.0)
        self.complete, self._live = False, False
        if self._had_error:
            self._mirrored = None  # a request that timed out may have been carried out since
        self.sync()

    def sync(self) -> bool:
        """Update MLflow from the store. Idempotent; the cost is proportional to what is new.

        Outside of `start` and `close`, trials that have not ended are marked as interrupted, so do not call it while a
        driver runs the sweep.

        Returns:
            Whether MLflow has everything.
        """
        with self._lock:
            try:
                plan = self.store.plan()
                if plan is not None:
                    self._sync(plan)
            except Exception as error:  # any error of MLflow, its database or its server
                self._mirrored = None  # the state in MLflow is unknown now
                self._full_sync_at = -math.inf  # and the reports of this sync have been taken
                self._log_error(error)
                self.complete = False
            else:
                if self._logged_errors:
                    log.info("MLflow at %s is up to date again", redact(self.tracking_uri))
                self._logged_errors.clear()
                self.complete = True
            return self.complete

    def log_model(self, trial: str, folder: Path, metrics: Mapping[str, float]) -> bool:
        """Log an exported model and its metrics as the sweep's winner, and sync.

        If it fails, later syncs retry, so the folder must not be deleted.

        Args:
            trial: name of the winning trial.
            folder: the model, as xfer/training/export.py writes it.
            metrics: its metrics by name.

        Returns:
            Whether MLflow has the model and everything else.
        """
        self._winner = ExportedModel(trial, folder, metrics)
        return self.sync()

    def _log_error(self, error: Exception) -> None:
        kind = f"{type(error).__name__} {getattr(error, 'error_code', '')}"
        if kind not in self._logged_errors:
            uri, message = redact(self.tracking_uri), redact(str(error))[:500]
            log.warning("MLflow at %s: %s. The sweep continues, and the mirror retries.", uri, message)
        self._logged_errors.add(kind)
        self._had_error = True

    # --- one pass -------------------------------------------------------------------------------------------------

    def _sync(self, plan: Mapping[str, Any]) -> None:
        client = self._client = self._client or connect_mlflow(self.tracking_uri)
        if self._mirrored is None:
            self._mirrored = fetch_sweep(client, plan, self.tracking_uri, self.store.folder.parent)
        sweep = self._mirrored
        if not sweep.parent.has_params:
            log_batch(client, sweep.parent, params=plan_params(plan))
        if self._live:
            set_run_state(client, sweep.parent, "running")
        errors = []
        names, reports = self._changed_trials()
        if self._use_bulk and can_bulk_insert(self.tracking_uri):
            try:
                self._bulk_insert_ended(client, sweep, [name for name in names if name not in sweep.trials])
            except Exception:
                # For example, this version of MLflow has different tables. The next sync fetches the state again and
                # uses the client.
                self._use_bulk = False
                raise
        for name in names:
            if name not in sweep.trials or not sweep.trials[name].closed:
                try:
                    self._sync_trial(client, sweep, name, reports.get(name, ()))
                except Exception as error:
                    if getattr(error, "get_http_status_code", lambda: 400)() >= 500:
                        raise  # the server failed; any other error concerns this trial only
                    errors.append(error)
        self._sync_test_results(client, sweep, plan)
        self._sync_progress(client, sweep, plan)
        if errors:
            raise errors[0]
        if self._winner is not None:
            config = json_objects.get(self.store.trial_folder(self._winner.trial) / "config.json")
            log_model(client, sweep, plan, {} if config is None else config["recipe"], self._winner)
            self._winner = None
        if not self._live:
            self._close_parent(client, sweep, plan)

    def _changed_trials(self) -> tuple[list[str], Mapping[str, Sequence[Mapping[str, Any]]]]:
        """Return the trials to sync, and the epochs of those that have only reported epochs."""
        with self._reports_lock:
            reports, self._reports = self._reports, {}
            has_driver = self._has_driver
        now = time.monotonic()
        if self._live and has_driver and now < self._full_sync_at + FULL_SYNC_SECONDS:
            return sorted(reports), reports
        self._full_sync_at = now
        return self.store.trial_names(), {}

    def _bulk_insert_ended(self, client: MlflowClient, sweep: MirroredSweep, names: Sequence[str]) -> None:
        """Insert those of the named trials that have ended, if they are many; MLflow must have none of them."""
        ended = []
        for name in names if len(names) >= MIN_TRIALS else ():
            folder = self.store.trial_folder(name)
            config, record = json_objects.get(folder / "config.json"), self.store.record(name)
            if config is not None and record is not None:
                trial = EndedTrial(folder, config, record)
                if trial.has_short_params:
                    ended.append(trial)
            if len(ended) == MAX_TRIALS or (name == names[-1] and len(ended) >= MIN_TRIALS):
                insert_trials(client, self.tracking_uri, sweep, ended)
                ended = []

    def _sync_trial(
        self, client: MlflowClient, sweep: MirroredSweep, name: str, reported: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Log what MLflow lacks of a trial: from the epochs that it has reported, if any, else from the store."""
        folder = self.store.trial_folder(name)
        needs_config = not reported or name not in sweep.trials or not sweep.trials[name].has_params
        config = json_objects.get(folder / "config.json") if needs_config else None
        if needs_config and config is None:  # the trial is just starting, or its damaged config was set aside
            return
        if config is not None and name not in sweep.trials:
            tags = {"mlflow.parentRunId": sweep.parent.id, "xfer.sweep": sweep.id, "xfer.trial": name}
            tags |= {"xfer.phase": config["phase"], "xfer.status": "running"}
            started_ms = modified_ms(folder / "config.json")
            run = client.create_run(sweep.experiment, started_ms, tags, run_name(name, config["recipe"]))
            sweep.trials[name] = MirroredRun(run.info.run_id, "RUNNING", "running")
        mirrored = sweep.trials[name]
        record = None if reported else self.store.record(name)
        if reported:
            epochs = tuple(map(epoch_from_dict, reported))
        else:
            epochs = unsent_epochs(folder, mirrored.steps) if record is None else record.epochs
        epochs = tuple(epoch for epoch in epochs if epoch.epoch not in mirrored.steps)
        params = {} if config is None or mirrored.has_params else flatten_params(config["recipe"])
        while epochs or params:
            batch, epochs = epochs[:EPOCHS_PER_BATCH], epochs[EPOCHS_PER_BATCH:]
            metrics = [metric for epoch in batch for metric in epoch_metrics(epoch, folder)]
            log_batch(client, mirrored, metrics, params)
            mirrored.steps |= {epoch.epoch for epoch in batch}
            params = {}
        if record is None:
            set_run_state(client, mirrored, "running" if self._live else "interrupted")
        else:
            ended_ms, state = modified_ms(folder / "record.json"), record_state(record)
            mirrored.ended_ms = ended_ms
            if mirrored.state != state:
                metrics = record_metrics(record, ended_ms)
                log_batch(client, mirrored, metrics, record_params(record), record_tags(record))
            set_run_state(client, mirrored, state, ended_ms)
            mirrored.steps.clear()

    def _sync_test_results(self, client: MlflowClient, sweep: MirroredSweep, plan: Mapping[str, Any]) -> None:
        """Log test results of finalists, such as 0007-s1, which appear long after their runs, under noise last."""
        finalists = {name.partition("-s")[0] for name in sweep.trials if "-s" in name}
        for name, run in sweep.trials.items():
            complete = "test_noisy_accuracy" in run.metrics
            if name.partition("-s")[0] in finalists and run.state == "finished" and not complete:
                test = self.store.test(name)
                if test is not None and not run.deleted:
                    folder = self.store.trial_folder(name)
                    tested_ms = modified_ms(folder / "noise.json", folder / "test.json")
                    metrics = [each for each in test_metrics(test, tested_ms) if each.key not in run.metrics]
                    if metrics:
                        log_batch(client, run, metrics, tags=test_tags(test, plan))

    def _sync_progress(self, client: MlflowClient, sweep: MirroredSweep, plan: Mapping[str, Any]) -> None:
        """Log the sweep's progress to its parent run: the curves over ended trials, and what changes in between."""
        objectives = list(dict.fromkeys((ACCURACY, plan_objectives(plan)[0])))
        unsent = list(unsent_progress(sweep, objectives, created_ms(plan)))
        for start in range(0, len(unsent), PROGRESS_STEPS_PER_BATCH):
            batch = unsent[start : start + PROGRESS_STEPS_PER_BATCH]
            log_batch(client, sweep.parent, [metric for _, metrics in batch for metric in metrics])
            sweep.parent.steps |= {step for step, _ in batch}
        running = float(sum(run.state == "running" for run in sweep.trials.values()))
        now = {"trials_running": running, "cost_usd": total_usd(self.store.spending())}  # None if no price is known
        known = {"trials_running": 0.0, **sweep.parent.metrics}
        changed = {key: value for key, value in now.items() if value is not None and value != known.get(key)}
        if changed:
            log_batch(client, sweep.parent, to_metrics(changed, int(time.time() * 1000), len(sweep.trials)))

    def _close_parent(self, client: MlflowClient, sweep: MirroredSweep, plan: Mapping[str, Any]) -> None:
        """Set the final state of a sweep that no driver runs any more."""
        search = [run for name, run in sweep.trials.items() if "-" not in name]
        all_tried = len(search) >= plan["trials"] and all(run.closed for run in sweep.trials.values())
        if all_tried and not any(run.state == "finished" for run in search):
            state = "failed"
        elif all_tried and (self.store.decisions("openings") or not plan["finalists"]):
            state = "finished"
        else:
            state = "interrupted"
        set_run_state(client, sweep.parent, state)
