"""Mirror: the one writer, which compares a store with what MLflow has and sends the difference."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sweeps.engine.storage import json_objects
from sweeps.engine.storage.store import Store
from sweeps.engine.tracking import bulk
from sweeps.engine.tracking.client import (
    MirroredRun,
    MirroredSweep,
    connect_mlflow,
    fetch_sweep,
    log_batch,
    set_run_state,
)
from sweeps.engine.tracking.mapping import (
    best_metrics,
    epoch_metrics,
    flatten_params,
    list_trials,
    modified_ms,
    plan_objectives,
    plan_params,
    record_metrics,
    record_tags,
    redact_password,
    run_name,
    test_metrics,
    to_metrics,
    unsent_epochs,
)
from sweeps.engine.tracking.model import ExportedModel, log_model
from sweeps.reporting.cost import total_usd
from xfer.objectives import ACCURACY

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EPOCHS_PER_BATCH = 40
"""Of 20 values at most, and the first of 50 more: MLflow takes 1,000 in a batch, and an epoch must not be torn between
two."""


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
        self._winner: ExportedModel | None = None  # until its model has arrived
        self._live = False
        self._in_bulk = True
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
                    log.info("MLflow at %s has everything now", redact_password(self.tracking_uri))
                self._troubles.clear()
                self.complete = True
            return self.complete

    def log_model(self, trial: str, folder: Path, metrics: Mapping[str, float]) -> bool:
        """Log an exported model (see xfer/training/export.py) and what it reached as the sweep's winner.

        Says whether it, and everything else, has arrived; otherwise later syncs try again, so leave the folder there.
        """
        self._winner = ExportedModel(trial, folder, metrics)
        return self.sync()

    def _report(self, error: Exception) -> None:
        kind = f"{type(error).__name__} {getattr(error, 'error_code', '')}"
        if kind not in self._troubles:
            where, what = redact_password(self.tracking_uri), redact_password(str(error))[:500]
            log.warning("MLflow at %s: %s. The sweep goes on, and this is tried again.", where, what)
        self._troubles.add(kind)
        self._had_trouble = True

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
        troubles = []
        names = list_trials(self.store.folder / "trials")
        if self._in_bulk and bulk.can_bulk_insert(self.tracking_uri):
            try:
                self._add_ended(client, sweep, [name for name in names if name not in sweep.trials])
            except Exception:
                # Perhaps a version of MLflow with other tables: the next sync asks what has arrived, and goes the
                # client's way.
                self._in_bulk = False
                raise
        for name in names:
            if name not in sweep.trials or not sweep.trials[name].closed:
                try:
                    self._sync_trial(client, sweep, name)
                except Exception as error:
                    if getattr(error, "get_http_status_code", lambda: 400)() >= 500:
                        raise  # the server's trouble; any other is this one trial's and stops no other
                    troubles.append(error)
        self._sync_tests(client, sweep)
        self._sync_cost(client, sweep)
        if troubles:
            raise troubles[0]
        if self._winner is not None:
            config = json_objects.get(self.store.trial_folder(self._winner.trial) / "config.json")
            log_model(client, sweep, plan, {} if config is None else config["recipe"], self._winner)
            self._winner = None
        if not self._live:
            self._end(client, sweep, plan)

    def _add_ended(self, client: MlflowClient, sweep: MirroredSweep, names: Sequence[str]) -> None:
        """Of trials that MLflow has nothing of, add those that have ended, where they are many."""
        found = []
        for name in names if len(names) >= bulk.MIN_TRIALS else ():
            folder = self.store.trial_folder(name)
            config, record = json_objects.get(folder / "config.json"), self.store.record(name)
            if config is not None and record is not None and bulk.EndedTrial(folder, config, record).plain:
                found.append(bulk.EndedTrial(folder, config, record))
            if len(found) == bulk.MAX_TRIALS or (name == names[-1] and len(found) >= bulk.MIN_TRIALS):
                bulk.insert_trials(client, self.tracking_uri, sweep, found)
                found = []

    def _sync_trial(self, client: MlflowClient, sweep: MirroredSweep, name: str) -> None:
        folder = self.store.trial_folder(name)
        config = json_objects.get(folder / "config.json")
        if config is None:  # just being begun, or set aside because it was damaged
            return
        if name not in sweep.trials:
            tags = {"mlflow.parentRunId": sweep.parent.id, "xfer.sweep": sweep.id, "xfer.trial": name}
            tags |= {"xfer.phase": config["phase"], "xfer.status": "running"}
            at = modified_ms(folder / "config.json")
            run = client.create_run(sweep.experiment, at, tags, run_name(name, config["recipe"]))
            sweep.trials[name] = MirroredRun(run.info.run_id, "RUNNING", "running")
        mirrored = sweep.trials[name]
        record = self.store.record(name)
        epochs = unsent_epochs(folder, mirrored.steps) if record is None else record.epochs
        epochs = tuple(epoch for epoch in epochs if epoch.epoch not in mirrored.steps)
        params = {} if mirrored.has_params else flatten_params(config["recipe"])
        while epochs or params:
            batch, epochs = epochs[:EPOCHS_PER_BATCH], epochs[EPOCHS_PER_BATCH:]
            metrics = [metric for epoch in batch for metric in epoch_metrics(epoch, folder)]
            log_batch(client, mirrored, metrics, params)
            mirrored.steps |= {epoch.epoch for epoch in batch}
            params = {}
        if record is None:
            set_run_state(client, mirrored, "running" if self._live else "interrupted")
        else:
            at = modified_ms(folder / "record.json")
            if mirrored.state != record.status:
                log_batch(client, mirrored, record_metrics(record, at), tags=record_tags(record))
            set_run_state(client, mirrored, record.status, at)
            mirrored.steps.clear()

    def _sync_tests(self, client: MlflowClient, sweep: MirroredSweep) -> None:
        """The test part is opened long after a finalist's runs ended: ask for those, `0007` and `0007-s1`, alone."""
        finalists = {name.partition("-s")[0] for name in sweep.trials if "-s" in name}
        for name, run in sweep.trials.items():
            if name.partition("-s")[0] in finalists and run.state == "finished" and "test_accuracy" not in run.metrics:
                test = self.store.test(name)
                if test is not None and not run.deleted:
                    at = modified_ms(self.store.trial_folder(name) / "test.json")
                    log_batch(client, run, test_metrics(test, at))

    def _sync_cost(self, client: MlflowClient, sweep: MirroredSweep) -> None:
        """What all starts have spent, where prices are known."""
        cost = total_usd(self.store.spending())
        if cost is not None and sweep.parent.metrics.get("cost_usd") != cost:
            log_batch(client, sweep.parent, to_metrics({"cost_usd": cost}, int(time.time() * 1000), len(sweep.trials)))

    def _end(self, client: MlflowClient, sweep: MirroredSweep, plan: Mapping[str, Any]) -> None:
        """Nobody drives the sweep any more: count, and say whether it is done."""
        search = [run for name, run in sweep.trials.items() if "-" not in name]
        states = Counter(run.state for run in search)
        values = {f"trials_{state}": float(states[state]) for state in ("finished", "pruned", "failed")}
        finished = [run.metrics for run in search if run.state == "finished"]
        values |= best_metrics(finished, dict.fromkeys((ACCURACY, plan_objectives(plan)[0])))
        new = {key: value for key, value in values.items() if sweep.parent.metrics.get(key) != value}
        if new:
            log_batch(client, sweep.parent, to_metrics(new, int(time.time() * 1000), len(search)))
        all_tried = len(search) >= plan["trials"] and all(run.closed for run in sweep.trials.values())
        if all_tried and not finished:
            state = "failed"
        elif all_tried and (self.store.decisions("openings") or not plan["finalists"]):
            state = "finished"
        else:
            state = "interrupted"
        set_run_state(client, sweep.parent, state)
