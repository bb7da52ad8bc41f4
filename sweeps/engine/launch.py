"""Launch: takes the lease of a sweep's folder, writes or checks plan.json, and runs the stages under the mirror."""

from __future__ import annotations

import _thread
import logging
from collections.abc import Callable
from typing import Any

from sweeps.engine import tracking
from sweeps.engine.console.progress import ProgressView
from sweeps.engine.console.provenance import provenance
from sweeps.engine.console.time_left import format_time_left
from sweeps.engine.planning.plan_file import describe_plan, resumed_plan
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.presearch.advice import advised_plan, apply_advice, recommend_strategies
from sweeps.engine.presearch.frozen_body import feature_cache
from sweeps.engine.presearch.similar_sweeps import describe_similar_sweep
from sweeps.engine.presearch.warm_start import find_warm_start
from sweeps.engine.presearch.zero_effort import measure_before_training, measure_data_curve, measure_on_test
from sweeps.engine.resources import cluster
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.resources.prices import LOCAL_NODE_TYPE, Machine
from sweeps.engine.storage.lease import Lease
from sweeps.engine.storage.store import Store
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials import early_start
from sweeps.engine.trials.run_options import RunOptions
from sweeps.reporting.formatting import format_cost_so_far
from xfer.data.pack import Progress
from xfer.storage import local_cache, object_store
from xfer.storage.redaction import redact_all

log = logging.getLogger(__name__)

LOCAL_SYNC_SECONDS, REMOTE_SYNC_SECONDS = 3.0, 15.0
"""Seconds between two syncs of MLflow, each of which reads the trials that have changed from the storage."""


MLFLOW_DELAY_SECONDS = 15.0
"""Seconds before the first sync of a new sweep. Importing MLflow and creating its database takes a core 3 seconds, in
which the processes of the first trials start."""

SYNC_PATIENCE_SECONDS, INTERRUPT_PATIENCE_SECONDS = 20.0, 3.0
"""Seconds to wait for MLflow to receive the last results: at the end, and after an interrupt or if its server does not
answer. `python -m sweeps sync` sends what is missing."""


def leased(store: Store, on_wait: Callable[[str], None]) -> Lease:
    """Return the lease of a sweep's folder, a context manager to be held while the sweep is claimed and run.

    If another driver takes the lease over, the main thread is interrupted.

    Args:
        store: the sweep's.
        on_wait: called with a message if the driver on another host has to be waited for.
    """
    return Lease(store.folder, on_wait=on_wait, on_lost=_thread.interrupt_main)


def claim_plan(
    prepared: Prepared,
    store: Store,
    progress: Progress = lambda done, total: None,
    on_new: Callable[[], None] = lambda: None,
) -> tuple[str, ...]:
    """Write plan.json for a new sweep, or check that a resumed sweep has the same plan.

    Call it once, under the lease. Advice and warm start are decided here, and only for a new sweep: the order of its
    first trials must not change afterwards.

    Args:
        prepared: the plan.
        store: the sweep's.
        progress: called with the number of images that have been measured for the advice.
        on_new: called if the sweep is new, before the data are measured.

    Returns:
        Lines on the stored sweep that a new sweep resembles, if there is one; none for a resumed sweep.

    Raises:
        PlanChangedError: anything but the number of trials has changed; the message lists the changes.
        ValueError: plan.json is missing or damaged, and there are trials.
    """
    # As it will be stored, so that it equals the plan of an earlier start.
    plan: dict[str, Any] = redact_all({**describe_plan(prepared), "name": store.name, "provenance": provenance()})
    stored = store.plan()
    similar: tuple[str, ...] = ()
    if stored is not None:
        plan = resumed_plan(stored, plan)
        if all(plan.get(name) == stored.get(name) for name in ("trials", "noise", "margin")):
            return ()
    elif object_store.exists(store.folder / "trials"):
        raise ValueError(f"{store.folder} holds trials but no plan.json: put it back, or take another --name")
    else:
        on_new()
        similar = describe_similar_sweep(plan, store)
        plan = advised_plan(plan, prepared, recommend_strategies(prepared, progress, feature_cache(store)))
        if prepared.plan.warm_start:
            advised = apply_advice(prepared, plan["advice"])
            plan["warm_start"] |= find_warm_start(advised, store, plan["advice"], progress)
    store.put_plan(plan)
    return similar


def local_machines() -> list[Machine]:
    """Return the machines that are paid for before a cluster is joined: this one, unless a cluster will be joined."""
    return [] if cluster.has_cluster_address() else [Machine(LOCAL_NODE_TYPE)]


def run_sweep(
    prepared: Prepared,
    store: Store,
    run_options: RunOptions,
    view: ProgressView,
    on_ranking: Callable[[], None] = lambda: None,
) -> bool:
    """Run a claimed sweep, or resume it: screening, search, finals, test part, export, test part under noise.

    What an earlier start has done is not repeated; if nothing is left to do, Ray is not started.

    Args:
        prepared: the plan.
        store: the sweep's, whose lease is held and whose plan has been claimed.
        run_options: what this start may use.
        view: shows the progress.
        on_ranking: called when the ranking is complete and only the evaluation under noise is still to come.

    Returns:
        Whether MLflow has received everything.

    Raises:
        ValueError: the cluster lacks the resources of a single trial.
    """
    period = REMOTE_SYNC_SECONDS if object_store.is_remote(store.folder) else LOCAL_SYNC_SECONDS
    mirror = tracking.Mirror(store, run_options.tracking_uri, period)
    mirror.start(MLFLOW_DELAY_SECONDS if early_start.is_started() else 0.0)
    view.on_change = mirror.report
    patience = SYNC_PATIENCE_SECONDS
    try:
        # While the mirror runs, so that MLflow receives the final cost.
        with CostTracker(store, run_options.prices, local_machines, view.print_line) as cost_tracker:
            view.cost = lambda: format_cost_so_far(cost_tracker.spent(), run_options.cost_budget)
            sweep = Sweep(prepared, store, run_options, view, cost_tracker)
            view.images = len(prepared.split.val)
            view.time_left = lambda: format_time_left(sweep.time_left())
            if line := sweep.progress_line():
                view.print_line(line)
            try:
                measure_before_training(prepared, store, view.print_line)
                sweep.screen()
                sweep.search()
                sweep.finals()
                sweep.open_test()
                measure_on_test(prepared, store)
                measure_data_curve(prepared, store)
                winner = sweep.export()
                if sweep.is_noise_due():
                    on_ranking()
                    sweep.measure_noise()
                sweep.drop_checkpoints()
            except KeyboardInterrupt:
                view.print_line("stopping (a second Ctrl-C ends at once) ...")
                raise
            finally:
                sweep.disconnect()  # first: after an interrupt, trials would compete with what follows
                try:
                    sweep.export_study()
                except Exception as error:  # the study is a copy: its error must not hide the original one
                    log.warning("study.sqlite3 could not be written: %s", error)
        if not mirror.complete and not tracking.answers(run_options.tracking_uri):
            patience = INTERRUPT_PATIENCE_SECONDS
        elif winner is not None:
            mirror.log_model(winner.trial, local_cache.sync_down(store.folder / "model"), sweep.winner_metrics(winner))
    except KeyboardInterrupt:
        patience = INTERRUPT_PATIENCE_SECONDS
        raise
    finally:
        complete = mirror.close(patience)
    return complete
