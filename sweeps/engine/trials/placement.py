"""Placement: where trials run, how many at a time, and which resources and files each of them gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.resources import cluster, machine_watch, memory_probe
from sweeps.engine.resources.budget import Budget
from sweeps.engine.resources.gpu_sharing import GpuAllocation
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import early_start
from sweeps.engine.trials.trainable import Resources, TrialContext
from sweeps.engine.trials.watchdog import Watchdog
from xfer.storage import local_cache, object_store

LOCAL_WAIT_SECONDS, REMOTE_WAIT_SECONDS = 2.0, 15.0
"""Seconds between two looks at the progress of tasks. In an object store each look costs a few paid requests."""


class Placement:
    """Connects to Ray when it is first needed, and gives each trial its context.

    Args:
        prepared: the plan with its data and weights.
        store: the sweep's.
        view: shows the state of the cluster.
        budget: charged for the machines of the cluster.
        resources: what a trial gets of a machine.
        max_concurrent: limit on the number of concurrent trials; None for as many as fit, at most 1,024.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        view: ProgressView,
        budget: Budget,
        resources: Resources,
        max_concurrent: int | None = None,
    ) -> None:
        self._prepared = prepared
        self._store = store
        self._view = view
        self._budget = budget
        self.resources = resources
        """What a trial gets of a machine, before GPUs are shared."""
        self._max_concurrent = max_concurrent
        self._shared_by: Prepared | None = None
        self._allocation: GpuAllocation | None = None
        self._watchdog: Watchdog | None = None
        self.concurrent = 1
        """Number of concurrent trials, known once Ray is connected."""
        self.connected = False
        """Whether Ray has been connected."""

    @property
    def is_local(self) -> bool:
        """Whether work that does not need Ray Tune may run in this process: no GPU is allocated, no cluster joined."""
        return not self.resources.gpus and not cluster.has_cluster_address()

    def share_gpus(self, prepared: Prepared) -> None:
        """From the next `connect` on, let trials share GPUs as far as memory probes show that they fit.

        Args:
            prepared: the plan with the space that is searched, which decides what is probed.
        """
        self._shared_by = prepared

    def connect(self) -> None:
        """Connect to Ray if that has not been done yet, and update `concurrent`.

        Raises:
            ValueError: the cluster lacks the resources of a single trial, or the prices that a cost budget needs.
        """
        early_start.wait()
        from sweeps.engine.trials import heartbeats, ray_connection, ray_tune  # Ray takes a second to import

        ray_connection.connect_ray()
        if cluster.has_cluster_address():
            if not self.connected:
                self._view.print_line(ray_tune.summary_line())
                machine_watch.start_watch(self._view.print_line)
            self._budget.use_cluster(ray_tune.alive_machines)
        if not self.connected:
            self._watchdog = Watchdog(heartbeats.RayProcesses(), self._view.print_line)
            self._watchdog.start()
        self.connected = True
        smallest = self.resources
        if self._shared_by is not None:
            self._allocation = self._allocation or self._probe_memory(self._shared_by)
            smallest = replace(smallest, gpus=self._allocation.smallest_fraction())
        fitting = ray_tune.max_concurrent_trials(smallest)
        self.concurrent = min(fitting, self._max_concurrent or ray_tune.DEFAULT_MAX_CONCURRENT_TRIALS)

    def map(
        self,
        function: Callable[..., None],
        calls: list[tuple[Any, ...]],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Call a function once per tuple of arguments, in Ray tasks with the resources of a trial, and wait for all.

        Args:
            function: what to call.
            calls: its arguments.
            on_wait: called every few seconds while tasks run, and after the last one.
        """
        from sweeps.engine.trials import ray_tune

        self.connect()
        wait_seconds = REMOTE_WAIT_SECONDS if object_store.is_remote(self._store.folder) else LOCAL_WAIT_SECONDS
        ray_tune.map_on_cluster(function, calls, self.resources, on_wait, wait_seconds)

    def context(self, trial: Trial) -> TrialContext:
        """Return what the process of a trial needs to know besides the recipe."""
        storage, pack = self._store.folder.parent, self._prepared.pack_of(trial.recipe).folder
        return TrialContext(
            sweep=object_store.absolute_uri(self._store.folder),
            pack=object_store.absolute_uri(storage / "packs" / pack.name if object_store.is_remote(storage) else pack),
            weights=self._weights(trial),
            threads=self.resources.cpus,
            gpus=self.resources.gpus if self._allocation is None else self._allocation.of(trial.recipe),
            compiled=self._allocation is not None
            and self._allocation.compiled(trial.recipe, len(self._prepared.split.train)),
            noisy="noisy_accuracy" in self._prepared.plan.objective and trial.phase != "screen",
            features=object_store.absolute_uri(storage / "features"),
        )

    def disconnect(self) -> None:
        """Interrupt the running trials, and leave the cluster or stop the Ray of this machine, if it was connected."""
        if self.connected:
            from sweeps.engine.trials import ray_connection

            if self._watchdog is not None:
                self._watchdog.stop()
            ray_connection.disconnect_ray()
            self.connected = False

    def _weights(self, trial: Trial) -> str | None:
        """Return the path or URI of a trial's weights, published if other machines have to read them."""
        file = self._prepared.backbone(str(trial.recipe["backbone"])).file if trial.recipe["weights"] else None
        if file is None:
            return None
        storage = self._store.folder.parent
        if not cluster.has_cluster_address() and not object_store.is_remote(storage):
            return str(file)
        name = f"{str(trial.recipe['weights'])[:16]}{file.suffix}"
        return object_store.absolute_uri(local_cache.publish_file(file, storage / "weights", name))

    def _probe_memory(self, prepared: Prepared) -> GpuAllocation:
        from sweeps.engine.trials import ray_tune

        self._view.print_line("GPU: seeing how many trials fit side by side, once for each kind of trial")
        call = partial(ray_tune.map_on_cluster, resources=self.resources)
        folder: Path = self._store.folder.parent / "probes"
        kind = (
            ray_tune.call_remote(memory_probe.local_gpu_kind, self.resources)
            if cluster.has_cluster_address()
            else memory_probe.local_gpu_kind()
        )
        return memory_probe.load_or_run_probes(memory_probe.candidate_recipes(prepared), folder, kind, call)
