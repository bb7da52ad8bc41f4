"""The edge to Ray Tune: it runs trials in reused processes, and this hands it what to run and whether to go on."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.engine.resources import cluster
from sweeps.engine.resources.prices import PRICE_LABEL, Machine, parse_price_label
from sweeps.engine.trials.trainable import Resources, Trainable, train_trial
from xfer.storage.object_store import StorageUnavailableError

MAX_NODE_FAILURES = 3
"""How often a trial whose process is lost is started again before it is given up. Preemptions are not counted."""

HEAD_NODE_RESOURCE = "node:__internal_head__"
"""Ray's own resource that only the head has."""


RETRY_OPTIONS: dict[str, Any] = {"max_retries": 20, "retry_exceptions": [StorageUnavailableError]}
"""For tasks beside the Tuner: Ray counts a lost machine and a process that died alike, and a storage that could not be
reached from one machine may be from another."""

MAX_CONCURRENT_TRIALS = 1024
"""More trials than this are not asked for at a time, however large a cluster may grow; `--concurrent` can say more."""

NODE_DIED_MESSAGE = "its node has died"
"""What Ray says of a process whose machine is gone."""

ResultT = TypeVar("ResultT")


class TrialSource(Protocol):
    """Who decides: asked by Ray Tune's loop, one call at a time."""

    def next_trial(self) -> dict[str, Any] | None:
        """The configuration of another trial to start (see `trainable.trial_config`); None when there are no more."""
        ...

    def may_have_more(self) -> bool:
        """After `next_trial` gave none: may there be another once one of those that run has ended?"""
        ...

    def should_continue(self, trial: str, record: dict[str, Any]) -> bool:
        """Told after each epoch what the trial has come to so far: does it go on?"""
        ...

    def ended(self, trial: str, error: str | None) -> None:
        """Told once for each trial that it runs no more, and why if its process was lost for good."""
        ...


RAY_ENVIRONMENT: dict[str, str] = {
    # An interrupt belongs to whoever called, and Tune's own files are no part of our truth.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Its snapshots of all trials grow with the sweep, and nobody reads them.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # A trial that fails before its first report must not end the sweep.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would otherwise leave CUDA_VISIBLE_DEVICES unset, and so every GPU in sight, where none was asked for.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Tune runs a trial in a thread, and glibc would give that a small arena of its own, from which large blocks go back
    # to the system whatever `xfer.devices.host_memory` says: a training step was a sixth slower (2026-11-25).
    "MALLOC_ARENA_MAX": "1",
    # Blocks of memory that grow: parts of other sizes, evaluation and the next trial of a process would otherwise each
    # leave gaps that fit nobody else, and gaps count against the share that a process is capped at.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
"""What the processes of a cluster that is started here inherit; whoever joins one has to set it on its machines."""


LOCAL_RAY_ENVIRONMENT: dict[str, str] = {
    # Left alone Ray keeps as many idle processes as CPUs are free: none while trials have them all, and each batch of
    # heads would import torch again, 7 to 13 seconds of a core that trials could use (2026-11-27).
    "RAY_num_workers_soft_limit": str((os.cpu_count() or 1) + 1),
}
"""What they inherit besides where they are started on this machine alone."""


def connect_ray() -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine; quietly."""
    for name, value in (
        RAY_ENVIRONMENT if cluster.has_cluster_address() else {**RAY_ENVIRONMENT, **LOCAL_RAY_ENVIRONMENT}
    ).items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        dashboard = None if cluster.has_cluster_address() else False  # a cluster brings its own
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=dashboard)
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place of whatever was there


def max_cluster_resource(resource: str) -> float:
    """How much there is of a resource (CPU, GPU), or can be once the cluster has started all the machines it may."""
    now: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(now.get(resource, 0.0), cluster.max_resource(resource, *_startable()))


def _startable() -> tuple[list[cluster.NodeType], int | None]:
    return cluster.worker_node_types() if cluster.has_cluster_address() else ([], None)


def _one_machine_has(share: Resources) -> bool:
    """Whether a machine that is up, or could be, has all that a trial asks for: it cannot be spread over several."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    each = [node["Resources"] for node in nodes if node["Alive"]] + [kind.resources for kind in _startable()[0]]
    return any(has.get("CPU", 0.0) >= share.cpus and has.get("GPU", 0.0) >= share.gpus for has in each)


def summary_line() -> str:
    """What there is of the cluster now, and what it can come to, in words."""
    up: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    parts = [
        f"{up.get(kind, 0):g} of {max_cluster_resource(kind):g} {kind}s"
        for kind in ("GPU", "CPU")
        if max_cluster_resource(kind)
    ]
    grows = any(up.get(kind, 0) < max_cluster_resource(kind) for kind in ("GPU", "CPU"))
    return (
        f"cluster: {' and '.join(parts)} are up" + "; it grows as trials ask, and a new machine takes minutes" * grows
    )


def max_concurrent_trials(share: Resources) -> int:
    """How many trials the cluster can run at a time, once it has grown as far as it may.

    Raises:
        ValueError: not even one, for want of CPUs or GPUs, in all or on one machine.
    """
    cpus, gpus = max_cluster_resource("CPU"), max_cluster_resource("GPU")
    if share.gpus > gpus:
        raise ValueError(f"--gpus-per-trial {share.gpus:g}, but Ray sees {gpus:g} GPUs here")
    if share.cpus > cpus:
        raise ValueError(f"--cpus-per-trial {share.cpus}, but Ray sees {cpus:g} CPUs here")
    if not _one_machine_has(share):
        raise ValueError(
            f"a trial asks for {share.cpus} CPUs and {share.gpus:g} GPUs of one machine, and none has as many: "
            f"take less with --cpus-per-trial and --gpus-per-trial, or add larger machines to the cluster"
        )
    fitting = int(min(cpus // share.cpus, gpus / share.gpus if share.gpus else cpus))
    return min(max(1, fitting), MAX_CONCURRENT_TRIALS)


def alive_machines() -> list[Machine]:
    """Those of the cluster that are alive now.

    A node's type is its name in the cluster file (autoscaler v2 and KubeRay say it), else what it is to Ray: its kind
    of GPU, the head, or a worker.
    """
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node_machine(node.get("Labels") or {}, node.get("Resources") or {}) for node in nodes if node["Alive"]]


def node_machine(labels: Mapping[str, str], resources: Mapping[str, float]) -> Machine:
    """A node as one that is paid for.

    >>> node_machine({"ray.io/node-group": "l4", "xfer/usd-per-hour": "0.35"}, {})
    Machine(node_type='l4', label_price=0.35)
    """
    to_ray = "head" if HEAD_NODE_RESOURCE in resources else "worker"
    node_type = labels.get("ray.io/node-group") or labels.get("ray.io/accelerator-type") or to_ray
    return Machine(node_type, parse_price_label(labels.get(PRICE_LABEL)))


def placement_resources(told: dict[Any, Any]) -> tune.PlacementGroupFactory:
    """What Ray is asked for on behalf of a trial: its own share, as its site says."""
    site = _read(told)["site"]
    return tune.PlacementGroupFactory([{"CPU": site["threads"], "GPU": site["gpus"]}])


def run_trials(source: TrialSource, concurrent: int, trainable: Trainable = train_trial) -> None:
    """Run trials, `concurrent` at a time, until the driver has no more.

    Each gets the share that its site says. Where shares differ, fewer than `concurrent` may run at a time: Ray starts a
    trial when its share is free.
    """
    placed = tune.with_resources(_reading(trainable), placement_resources)
    with tempfile.TemporaryDirectory(prefix="xfer-tune-") as scratch:
        tuner = tune.Tuner(
            placed,
            tune_config=tune.TuneConfig(
                search_alg=_Feed(source),
                scheduler=_Judge(source),
                num_samples=-1,  # the driver says when there are no more
                # With a searcher of one's own Tune keeps one trial pending unless this is set.
                max_concurrent_trials=concurrent,
                # A fresh process costs ten seconds of imports; train_trial leaves nothing behind that could matter.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_NODE_FAILURES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[LostMachineCallback()],
            ),
        )
        tuner.fit()


def map_on_cluster(function: Callable[..., None], calls: list[tuple[Any, ...]], share: Resources) -> None:
    """Call a function once for each tuple of arguments, each with a trial's share, and wait for all."""
    remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, **RETRY_OPTIONS)(function)
    ray.get([remote.remote(*arguments) for arguments in calls])


def call_remote(function: Callable[[], ResultT], share: Resources) -> ResultT:
    """What a function says on a machine with a trial's share: this one may have no GPU to be asked about."""
    remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, **RETRY_OPTIONS)(function)
    found: ResultT = ray.get(remote.remote())
    return found


def submit(function: Callable[..., None], argument: Any, share: Resources) -> Any:
    """Start to call a function in a process of its own; what comes back is for `finished_tasks` and `task_error`.

    On this machine it asks for no CPU, for trials may hold them all while the driver waits for it. On a cluster it
    does, or it would run on the head, and no machine be started for it.
    """
    remote = ray.remote(
        num_cpus=share.cpus if cluster.has_cluster_address() else 0, num_gpus=share.gpus, **RETRY_OPTIONS
    )(function)
    return remote.remote(argument)


def finished_tasks(tasks: list[Any], wait: bool) -> list[Any]:
    """Those of some tasks that have ended; with `wait`, all of them, once they have."""
    done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=None if wait else 0)
    return done


def task_error(task: Any) -> str | None:
    """Why a task that has ended came to nothing; None where it did not."""
    try:
        ray.get(task)
    except Exception as error:  # its process was lost, or it raised whatever it raised
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def encode_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as Tune is told it: Tune takes every number for a hyperparameter, and keeps a history of each."""
    return {"trial": config["trial"], "all": json.dumps(config)}


def _read(told: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(told["all"])
    return config


def _reading(trainable: Trainable) -> Trainable:
    return lambda told: trainable(_read(told))


def _forget(trial: Any) -> None:
    """Let go of the averages that Tune keeps of every number of a trial, 17 KB each: it runs no more."""
    with contextlib.suppress(AttributeError):  # Tune's own business: another version may keep them elsewhere
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.metric_analysis.clear()


class _Feed(Searcher):
    def __init__(self, source: TrialSource) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self._driver = source
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        config = self._driver.next_trial()
        if config is None:
            return None if self._driver.may_have_more() else Searcher.FINISHED  # None: Tune asks again
        self._names[trial_id] = config["trial"]
        return encode_config(config)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self._names.get(trial_id)
        if name is not None:
            self._driver.ended(name, f"its process was lost {MAX_NODE_FAILURES + 1} times" if error else None)
            del self._names[trial_id]  # not sooner: Tune runs a trial again whose end could not be taken note of

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; the driver stays here."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the store is the truth."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its store, not from Ray Tune's files")


class LostMachineCallback(tune.Callback):
    """A trial whose machine was lost, announced or not, has not failed: how often that happens says nothing of it."""

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        # The error is where it was just written: to where `get_pickled_error` looks Tune copies it later or, as we have
        # it, never.
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes()) if trial.pickled_error_file else None
        if is_machine_lost(error):
            trial.run_metadata.num_failures -= 1


def is_machine_lost(error: Exception | None) -> bool:
    """Whether an error says that a trial's machine was lost, and Tune has counted it.

    Announced losses Tune leaves out by itself. A machine that is cut off is at first only "unavailable", as no process
    that dies on a machine that lives is. In another wording it would count as a lost process, of which `MAX_NODE_FAILURES` are
    forgiven.
    """
    if not isinstance(error, RayActorError) or error.preempted:
        return False
    return isinstance(error, ActorUnavailableError) or NODE_DIED_MESSAGE in str(error)


class _Judge(FIFOScheduler):
    def __init__(self, source: TrialSource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = source

    def __getstate__(self) -> dict[str, Any]:
        """See `_Feed`."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "epoch" not in result:  # Tune's own last word on a trial that ended without a report
            return str(TrialScheduler.CONTINUE)
        goes_on = self._driver.should_continue(trial.config["trial"], json.loads(result["record"]))
        if not goes_on:
            _forget(trial)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        _forget(trial)
