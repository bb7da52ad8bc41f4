"""Plan to records: claims a sweep's folder, mirrors it, and runs its stages."""

from __future__ import annotations

import _thread
from contextlib import suppress

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.console.provenance import provenance
from sweeps.engine.planning.prepare import Prepared, plan_differences
from sweeps.engine.presearch.advice import recommend_strategies
from sweeps.engine.presearch.warm_start import find_warm_start
from sweeps.engine.resources import cluster
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.resources.prices import LOCAL_NODE_TYPE, Machine
from sweeps.engine.storage.lease import Lease
from sweeps.engine.storage.store import Store
from sweeps.engine.sweep import RunOptions, Sweep
from sweeps.engine.tracking import Mirror
from sweeps.reporting.formatting import format_cost_so_far
from xfer.data.pack import Progress
from xfer.storage import local_cache, object_store

LOCAL_SYNC_SECONDS, REMOTE_SYNC_SECONDS = 3.0, 15.0
"""Seconds between two syncs of MLflow. In an object store a look at a running trial is three requests, to be paid."""


class PlanChangedError(ValueError):
    """The plan is not the one that the sweep was started with."""


def claim_plan(prepared: Prepared, store: Store, progress: Progress = lambda done, total: None) -> None:
    """Fix the plan of a new sweep, or see that an old one is gone on with unchanged.

    Args:
        prepared: the plan.
        store: the sweep's.
        progress: told how many images have been measured for the advice that a new sweep begins with.

    Raises:
        ChangedPlanError: anything but the number of trials changed; the message lists what.
    """
    asked = {**prepared.described(), "name": store.name, "provenance": provenance()}
    stored = store.plan()
    if stored is not None:
        changes = plan_differences(stored, asked)
        if changes:
            raise PlanChangedError(
                f"{store.name} was started with another plan, and its trials can only be compared under one:\n  "
                + "\n  ".join(changes)
                + "\nGive it as it was, or start anew beside it with --fresh, or under another --name"
            )
        if stored["trials"] == asked["trials"]:
            return
        # The sweep stays the one that was begun then.
        asked["provenance"]["created"] = stored["provenance"]["created"]
        asked.update({name: stored[name] for name in ("advice", "warm_start", "prices") if name in stored})
    elif object_store.exists(store.folder / "trials"):
        raise ValueError(f"{store.folder} holds trials but no plan.json: put it back, or take another --name")
    else:
        asked["advice"] = recommend_strategies(
            prepared, progress
        )  # once: the order of the first trials must not change afterwards
        if prepared.plan.warm_start:
            asked["warm_start"] |= find_warm_start(prepared, store, asked["advice"], progress)
    store.put_plan(asked)


def local_machines() -> list[Machine]:
    """What a sweep is paid for before it has joined a cluster, and where it joins none: this machine alone."""
    return [] if cluster.has_cluster_address() else [Machine(LOCAL_NODE_TYPE)]


def run_sweep(prepared: Prepared, store: Store, run_options: RunOptions, watch: ProgressView) -> bool:
    """Run a sweep to its end, or on from where it was left; says whether all of it reached MLflow.

    Screening, where there are many backbones; search; then finals on new seeds; then, once their ranking is fixed, the
    test part for the finalists. Whatever has been done in an earlier start is not done again; where nothing is left to
    do, no Ray is started.

    Raises:
        HeldError: another driver is at work on it.
        ChangedPlanError: see `claim_plan`.
        ValueError: the cluster has not what a trial asks for.
    """
    with Lease(store.folder, on_wait=watch.print_line, on_lost=_thread.interrupt_main):
        claim_plan(prepared, store)
        period = REMOTE_SYNC_SECONDS if object_store.is_remote(store.folder) else LOCAL_SYNC_SECONDS
        with Mirror(store, run_options.tracking_uri, period) as mirror:
            # Within the mirror, so that MLflow is told what was spent up to the end.
            with CostTracker(store, run_options.prices, local_machines, watch.print_line) as meter:
                watch.cost = lambda: format_cost_so_far(meter.spent(), run_options.cost_budget)
                sweep = Sweep(prepared, store, run_options, watch, meter)
                try:
                    sweep.screen()
                    sweep.search()
                    sweep.finals()
                    sweep.open_test()
                    winner = sweep.export()
                finally:
                    with suppress(OSError):  # it is a copy, and must not hide why the sweep has ended
                        sweep.export_study()
            if winner is not None:
                mirror.log_model(
                    winner.trial, local_cache.sync_down(store.folder / "model"), sweep.winner_metrics(winner)
                )
            return mirror.close()
