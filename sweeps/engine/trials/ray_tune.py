"""The edge to Ray: runs trials in Ray Tune, in reused processes, and tasks next to it."""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.engine.resources import cluster, scratch
from sweeps.engine.resources.prices import PRICE_LABEL, Machine, parse_price_label
from sweeps.engine.storage.folders import MachineFaultError
from sweeps.engine.trials import heartbeats
from sweeps.engine.trials.trainable import Resources, Trainable, train_trial
from xfer.storage.object_store import StorageUnavailableError

# Tune sets a variable for PyTorch Lightning in the environment of each trial, and Ray gives an actor with variables of
# its own a new process: those that have started with Ray, and have imported torch, would stay idle.
class_cache.DEFAULT_ENV_VARS.clear()

MAX_NODE_FAILURES = 3
"""Number of times a trial is restarted after its process was lost. Lost machines are not counted."""

HEAD_NODE_RESOURCE = "node:__internal_head__"
"""Resource that Ray defines on the head node only."""

RETRY_OPTIONS: dict[str, Any] = {"max_retries": 20, "retry_exceptions": [StorageUnavailableError]}
"""Options of tasks next to Ray Tune. Ray counts lost machines and processes alike, and a storage that is unavailable
from one machine may be available from another."""

DEFAULT_MAX_CONCURRENT_TRIALS = 1024
"""Maximum number of concurrent trials unless `--concurrent` is higher; Tune's controller can handle about as many."""

NODE_DIED_MESSAGE = "its node has died"
"""Part of Ray's message about a process whose machine was lost."""

ResultT = TypeVar("ResultT")

_task_numbers = itertools.count(1)


class TrialSource(Protocol):
    """Decides which trials run and how long; called by Ray Tune's loop, one call at a time."""

    def next_trial(self) -> dict[str, Any] | None:
        """Return the configuration of the next trial to start (`trainable.trial_config`); None if there is none."""
        ...

    def may_have_more(self) -> bool:
        """Return whether `next_trial`, after it gave None, may give a trial once a running one has ended."""
        ...

    def should_continue(self, trial: str, record: dict[str, Any]) -> bool:
        """Return whether a trial continues; called after each epoch with its record so far."""
        ...

    def ended(self, trial: str, error: str | None) -> None:
        """Handle the end of a trial; called once, with the reason if its process was lost for good."""
        ...


def max_cluster_resource(resource: str) -> float:
    """Return the amount of a resource (CPU, GPU) now, or after the cluster has grown to its maximum if that is more."""
    now: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(now.get(resource, 0.0), cluster.max_resource(resource, *_startable()))


def _startable() -> tuple[list[cluster.NodeType], int | None]:
    return cluster.worker_node_types() if cluster.has_cluster_address() else ([], None)


def _fits_one_machine(resources: Resources) -> bool:
    """Return whether any machine that is up or can be started has all resources of a trial."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    machines += [node_type.resources for node_type in _startable()[0]]
    return any(
        machine.get("CPU", 0.0) >= resources.cpus and machine.get("GPU", 0.0) >= resources.gpus for machine in machines
    )


def summary_line() -> str:
    """Return a line on the current and the maximum size of the cluster."""
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


def max_concurrent_trials(resources: Resources) -> int:
    """Return how many trials the cluster can run at a time once it has grown to its maximum, at least 1.

    Args:
        resources: what a trial gets of a machine.

    Raises:
        ValueError: the cluster, or each single machine of it, lacks the CPUs or GPUs of one trial.
    """
    cpus, gpus = max_cluster_resource("CPU"), max_cluster_resource("GPU")
    if resources.gpus > gpus:
        raise ValueError(f"--gpus-per-trial {resources.gpus:g}, but Ray sees {gpus:g} GPUs here")
    if resources.cpus > cpus:
        raise ValueError(f"--cpus-per-trial {resources.cpus}, but Ray sees {cpus:g} CPUs here")
    if not _fits_one_machine(resources):
        raise ValueError(
            f"a trial requests {resources.cpus} CPUs and {resources.gpus:g} GPUs of one machine, and none has as many: "
            f"take less with --cpus-per-trial and --gpus-per-trial, or add larger machines to the cluster"
        )
    fitting = int(min(cpus // resources.cpus, gpus / resources.gpus if resources.gpus else cpus))
    return max(1, fitting)


def alive_machines() -> list[Machine]:
    """Return the machines of the cluster that are up.

    The type of a node is its name in the cluster file, if autoscaler v2 or KubeRay report it; otherwise its kind of
    GPU, "head" or "worker".

    Raises:
        ConnectionError: Ray is not connected, or no longer.
    """
    if not ray.is_initialized():  # ray.nodes would start Ray
        raise ConnectionError("Ray is not connected")
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node_machine(node.get("Labels") or {}, node.get("Resources") or {}) for node in nodes if node["Alive"]]


def node_machine(labels: Mapping[str, str], resources: Mapping[str, float]) -> Machine:
    """Return a node as a machine with a type and a price.

    >>> node_machine({"ray.io/node-group": "l4", "xfer/usd-per-hour": "0.35"}, {})
    Machine(node_type='l4', label_price=0.35)
    """
    role = "head" if HEAD_NODE_RESOURCE in resources else "worker"
    node_type = labels.get("ray.io/node-group") or labels.get("ray.io/accelerator-type") or role
    return Machine(node_type, parse_price_label(labels.get(PRICE_LABEL)))


def placement_resources(param_space: dict[Any, Any]) -> tune.PlacementGroupFactory:
    """Return the resources that Ray reserves for a trial, from its context.

    Args:
        param_space: as returned by `to_param_space`.
    """
    context = _from_param_space(param_space)["site"]
    return tune.PlacementGroupFactory([{"CPU": context["threads"], "GPU": context["gpus"]}])


def run_trials(source: TrialSource, concurrent: int, trainable: Trainable = train_trial) -> None:
    """Run trials in Ray Tune until their source has no more.

    Args:
        source: decides which trials run, and how long.
        concurrent: maximum number of concurrent trials. Fewer run if their resources differ, because Ray starts a trial
            when the resources in its context are free.
        trainable: what runs in a trial's process.
    """
    with_resources = tune.with_resources(_with_param_space(trainable), placement_resources)
    with tempfile.TemporaryDirectory(prefix="tune-", dir=scratch.current().folder) as folder:
        tuner = tune.Tuner(
            with_resources,
            tune_config=tune.TuneConfig(
                search_alg=_SearcherAdapter(source),
                scheduler=_SchedulerAdapter(source),
                num_samples=-1,  # the searcher decides when there are no more
                # Without this, Tune keeps one trial pending for a custom searcher.
                max_concurrent_trials=concurrent,
                # A new process costs ten seconds of imports, and train_trial leaves no state behind.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_NODE_FAILURES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[MachineLossCallback()],
            ),
        )
        tuner.fit()


def map_on_cluster(
    function: Callable[..., None],
    calls: list[tuple[Any, ...]],
    resources: Resources,
    on_wait: Callable[[], None] = lambda: None,
    wait_seconds: float = 2.0,
) -> None:
    """Call a function once per tuple of arguments, each in a task with these resources, and wait for all.

    Args:
        function: what to call.
        calls: its arguments.
        resources: what each task gets of a machine.
        on_wait: called while tasks run, and after the last one.
        wait_seconds: seconds between two calls of `on_wait`.

    Raises:
        MachineFaultError: a task hung twice.
    """
    remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, **RETRY_OPTIONS)(run_task)
    tasks = running = [remote.remote(_task_name(function), function, *arguments) for arguments in calls]
    while running:
        _, running = ray.wait(running, num_returns=len(running), timeout=wait_seconds)
        on_wait()
    try:
        ray.get(tasks)
    except heartbeats.HangError as error:
        reason = f"{getattr(function, '__name__', 'a task')}: {getattr(error, 'cause', error)}"
        raise MachineFaultError(
            f"{reason}. Everything that was trained is stored; once the cause is removed, the same command resumes"
        ) from error


def call_remote(function: Callable[[], ResultT], resources: Resources) -> ResultT:
    """Call a function in a task with these resources, for example on a machine that has a GPU.

    Returns:
        Its result.
    """
    remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, **RETRY_OPTIONS)(run_task)
    result: ResultT = ray.get(remote.remote(_task_name(function), function))
    return result


def submit(function: Callable[..., None], argument: Any, resources: Resources) -> Any:
    """Start a call of a function in a process of its own.

    On this machine the task requests no CPU, because trials may hold all of them while the driver waits for the task.
    On a cluster it requests CPUs; otherwise it would run on the head, and no machine would be started for it.

    Returns:
        The task, for `finished_tasks` and `task_error`.
    """
    remote = ray.remote(
        num_cpus=resources.cpus if cluster.has_cluster_address() else 0, num_gpus=resources.gpus, **RETRY_OPTIONS
    )(run_task)
    return remote.remote(_task_name(function), function, argument)


def run_task(work: str, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Call a function in a process that the watchdog looks at.

    Raises:
        HangError: the watchdog has given the work up.
    """
    if reason := heartbeats.why_given_up(work):
        raise heartbeats.HangError(reason)
    with heartbeats.watched(work):
        return function(*arguments)


def _task_name(function: Callable[..., Any]) -> str:
    """Return what the watchdog calls a new task; numbered, because several tasks call the same function."""
    name = getattr(function, "__name__", "task").replace("_", " ").strip()
    return f"task {next(_task_numbers)} ({name})"


def finished_tasks(tasks: list[Any], wait: bool) -> list[Any]:
    """Return the tasks that have ended; with `wait`, wait for all of them."""
    done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=None if wait else 0)
    return done


def task_error(task: Any) -> str | None:
    """Return the error of a task that has ended; None if it succeeded."""
    try:
        ray.get(task)
    except Exception as error:  # its process was lost, or the function has raised
        error = getattr(error, "cause", None) or error  # the error of the function, without the stack of its process
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def to_param_space(config: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's configuration in the form that Tune gets: as text, because Tune keeps a history of numbers."""
    return {"trial": config["trial"], "all": json.dumps(config)}


def _from_param_space(param_space: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(param_space["all"])
    return config


def _with_param_space(trainable: Trainable) -> Trainable:
    def run_trial(param_space: dict[str, Any]) -> None:
        config = _from_param_space(param_space)
        if heartbeats.why_given_up(_work(config["trial"])) is None:
            with heartbeats.watched(_work(config["trial"])):
                trainable(config)

    return run_trial


def _work(trial: str) -> str:
    """Return what the watchdog calls a trial."""
    return f"trial {trial}"


def _clear_metrics(trial: Any) -> None:
    """Free the averages that Tune keeps of every metric of an ended trial, 17 KB per trial."""
    with contextlib.suppress(AttributeError):  # internals of Tune, which differ between versions
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.metric_analysis.clear()


class _SearcherAdapter(Searcher):
    """Lets Tune ask a `TrialSource` for trials."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self._source = source
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        config = self._source.next_trial()
        if config is None:
            return None if self._source.may_have_more() else Searcher.FINISHED  # None: Tune asks again
        self._names[trial_id] = config["trial"]
        return to_param_space(config)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self._names.get(trial_id)
        if name is not None:
            lost = f"its process was lost {MAX_NODE_FAILURES + 1} times" if error else None
            self._source.ended(name, heartbeats.why_given_up(_work(name)) or lost)
            del self._names[trial_id]  # last, because Tune runs a trial again if handling its end has failed

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the source when Tune pickles its searcher."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: a sweep is resumed from its store."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its store, not from Ray Tune's files")


class MachineLossCallback(tune.Callback):
    """Keeps Tune from counting the loss of a trial's machine as a failure of the trial."""

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Take the loss of a machine back from the number of failures that Tune has counted."""
        # Tune has just written the error to this file. It copies it to where `get_pickled_error` looks later or, with
        # our settings, never.
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes()) if trial.pickled_error_file else None
        if is_machine_lost(error):
            trial.run_metadata.num_failures -= 1


def is_machine_lost(error: Exception | None) -> bool:
    """Return whether an error says that a trial's machine was lost, and Tune has counted it as a failure.

    Tune itself does not count announced losses (preemptions). A machine that is cut off is reported as "unavailable" at
    first, which a process that dies on a running machine never is. With any other message the loss counts as that of a
    process, of which `MAX_NODE_FAILURES` are tolerated.
    """
    if not isinstance(error, RayActorError) or error.preempted:
        return False
    return isinstance(error, ActorUnavailableError) or NODE_DIED_MESSAGE in str(error)


class _SchedulerAdapter(FIFOScheduler):
    """Lets Tune ask a `TrialSource` whether trials continue."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source = source

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the source when Tune pickles its scheduler."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "epoch" not in result:  # added by Tune to a trial that has ended without a report
            return str(TrialScheduler.CONTINUE)
        continues = self._source.should_continue(trial.config["trial"], json.loads(result["record"]))
        if not continues:
            _clear_metrics(trial)
        return str(TrialScheduler.CONTINUE if continues else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        _clear_metrics(trial)
