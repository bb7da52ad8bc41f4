"""Trainable: what runs in a trial's own process. It trains a `Run` and reports each epoch to Ray Tune."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sweeps.engine.resources.gpu_sharing import memory_fraction
from sweeps.engine.storage.remote_features import RemoteCache
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import machine_faults
from xfer.data.pack import Pack, fetch_pack
from xfer.devices import heartbeat
from xfer.devices.device import default_device
from xfer.devices.host_memory import release_freed_memory, retain_freed_memory
from xfer.distributed.launcher import WorkerLostError
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.recipe import recipe_from_dict
from xfer.records import Record, as_dict
from xfer.run import Run
from xfer.storage import local_cache, object_store
from xfer.storage.redaction import RedactingFormatter
from xfer.training.epochs import build_record
from xfer.training.export import is_intact, save_classifier

log = logging.getLogger(__name__)


EXPORTED_TRIAL_FILE = "trial.txt"
"""File that names the trial whose network was exported; written last."""

Trainable = Callable[[dict[str, Any]], None]
"""What runs in a trial's process, with the contract of `train_trial`."""


@dataclass(frozen=True)
class Resources:
    """What each trial gets of a machine."""

    cpus: int = 1
    gpus: float = 0.0
    """Fraction of one GPU, or a number of whole ones."""


@dataclass(frozen=True)
class TrialContext:
    """What a trial's process needs to know besides the recipe: where its inputs are and what it may use."""

    sweep: str
    """Folder of the sweep. All paths here may be URIs in an object store."""
    pack: str
    """Folder of the pack."""
    weights: str | None
    """File of the recipe's weights; None for random weights."""
    threads: int
    """Number of torch threads."""
    gpus: float
    """GPUs of the trial: 0 for none, a fraction whose memory it is limited to, or the number of GPUs of one node that
    train it together."""
    noisy: bool = False
    """Whether robustness to image noise is measured after every epoch."""
    compiled: bool = False
    """Whether training uses torch.compile. The precision is that of the machine (`default_precision`)."""
    features: str | None = None
    """Folder of the feature cache that all sweeps in a storage share; None for no cache on disk."""


def trial_config(trial: Trial, context: TrialContext) -> dict[str, Any]:
    """Return a trial and its context as the plain data that a trial's process receives."""
    return {"trial": trial.name, "phase": trial.phase, "recipe": dict(trial.recipe), "site": asdict(context)}


def train_trial(config: dict[str, Any]) -> None:
    """Train a trial to its end, or until the scheduler stops it at one of its reports.

    Each epoch is stored before it is reported, so nothing is trained twice, whatever fails afterwards. A failure that
    would happen again, such as a NaN loss, ends the trial with a record. A lost process is left for Ray to restart,
    also one on another GPU of the same trial; training then resumes from the last checkpoint. After another fault of
    the machine, such as a full disk, the next start of the sweep resumes the trial (`machine_faults`).

    Args:
        config: as returned by `trial_config`.

    Raises:
        WorkerLostError: a process on another GPU of this trial was lost.
        StorageUnavailableError: the storage could not be reached.
    """
    release_freed_memory()  # the process is reused, and the previous trial may have been stopped in the middle
    store, name = open_store(config["site"]), config["trial"]
    run: Run | None = None
    try:
        run = open_run(config)
        for epoch in run.epochs:
            store.add_epoch(name, epoch)  # the last one may be in the checkpoint only, if the process died in between
        record = run.record(name, config["phase"])
        if run.epochs:
            report_to_tune(record)  # the scheduler may not have seen it yet
        for epoch in run:
            _push_checkpoint(run, store, name)
            store.add_epoch(name, epoch)
            record = run.record(name, config["phase"])
            report_to_tune(record)
    except (WorkerLostError, object_store.StorageUnavailableError):
        raise  # another process may succeed
    except Exception as error:
        log.exception("trial %s failed", name)
        reason = f"{type(error).__name__}: {error}"
        if machine_faults.is_machine_fault(error):
            if machine_faults.try_again(store, name, reason):
                return
            reason = machine_faults.final_reason(reason)
        record = failed_record(config, reason) if run is None else run.record(name, config["phase"], reason)
    store.add_record(record)


def report_to_tune(record: Record) -> None:
    """Report a record to the driver. If the scheduler stops the trial now, this is its final record."""
    from ray import tune  # only trials in Ray Tune get here; probes are trained without Ray

    # As text, because Tune flattens nested data.
    text = json.dumps(as_dict(record))
    with heartbeat.waiting():  # the driver may be busy
        tune.report({"epoch": len(record.epochs), "val_accuracy": record.val_accuracy, "record": text})


def export_model(config: dict[str, Any], folder: str) -> None:
    """Write the network of a finished run to a folder, a path or a URI, as a classifier that can be loaded alone."""
    run, target = open_finished_run(config), object_store.as_path(folder)
    with local_cache.staged_upload(target) as local_folder:
        save_classifier(local_folder, run.model, run.recipe, run.pack.classes, run.pack.value_ranges)
    object_store.write_bytes(target / EXPORTED_TRIAL_FILE, config["trial"].encode())


def is_exported(folder: Path, trial: str) -> bool:
    """Return whether a folder has the network of a trial, undamaged."""
    note = folder / EXPORTED_TRIAL_FILE
    return (
        object_store.exists(note)
        and object_store.read_bytes(note) == trial.encode()
        and is_intact(local_cache.sync_down(folder))
    )


def failed_record(config: dict[str, Any], error: str) -> Record:
    """Return the record of a trial that failed before its network was built."""
    return build_record(recipe_from_dict(config["recipe"]), config["trial"], config["phase"], error=error)


def open_context(context: TrialContext) -> tuple[Pack, torch.device]:
    """Set up the process of a trial: log file, number of threads, memory limits.

    Returns:
        The pack, and the device that this process may use.

    Raises:
        ValueError: this machine cannot see the storage.
    """
    store = open_store(asdict(context))
    if not object_store.is_remote(store.folder) and not store.folder.exists():
        raise ValueError(
            f"{socket.gethostname()} sees no {store.folder}: on a cluster --storage must be where every machine can "
            f"reach it, in a bucket (s3://bucket/runs, gs://bucket/runs) or in a folder that they share"
        )
    logs = store.local_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(logs / "trials.log", encoding="utf-8", delay=True)
    handler.setFormatter(RedactingFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    torch.set_num_threads(context.threads)
    retain_freed_memory()
    return fetch_pack(object_store.as_path(context.pack)), limit_gpu_memory(context.gpus)


def open_store(context: Mapping[str, Any]) -> Store:
    """Return the store of the sweep that a `TrialContext`, as plain data, belongs to."""
    return Store(object_store.as_path(context["sweep"]))


def local_weights(context: TrialContext) -> Path | None:
    """Return the weights file on this machine, fetched if needed; None if the recipe starts from random weights."""
    return local_cache.fetch_file(object_store.as_path(context.weights)) if context.weights else None


def open_feature_cache(context: TrialContext) -> FeatureCache:
    """Return the feature cache: on this machine and, if the storage is remote, also there."""
    if context.features is None:
        return FeatureCache()
    folder = object_store.as_path(context.features)
    return FeatureCache(local_cache.local_path(folder), RemoteCache(folder) if object_store.is_remote(folder) else None)


def limit_gpu_memory(gpus: float) -> torch.device:
    """Limit this process to its GPUs, whatever an earlier trial in the same process was given.

    Ray counts fractions of a GPU but does not enforce them: a trial that took more memory would make others on the same
    GPU run out of it. A trial that exceeds its own limit continues in smaller micro-batches
    (`xfer.devices.microbatching`).

    Args:
        gpus: as in `TrialContext`.

    Returns:
        The device to train on.
    """
    if gpus == 0:
        # Ray sets this itself if the sweep has started it (`ray_connection.RAY_ENVIRONMENT`). Otherwise no code has
        # used CUDA yet, and CUDA reads the variable at its first use.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return torch.device("cpu")
    device = default_device()
    if device.type == "cuda":  # this branch has never run on a GPU
        gpu_bytes = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, gpu_bytes), torch.cuda.current_device())
    return device


def open_run(config: dict[str, Any]) -> Run:
    """Return the run of a trial, resumed from its last checkpoint if there is one.

    Args:
        config: as returned by `trial_config`.
    """
    context = TrialContext(**config["site"])
    pack, device = open_context(context)
    folder = local_cache.pull(open_store(config["site"]).checkpoints(config["trial"]))
    recipe = recipe_from_dict(config["recipe"])
    # If torch cannot use the GPUs that Ray has allocated, the same number of processes train on CPUs.
    devices = max(1, int(context.gpus))
    torch.set_num_threads(max(1, context.threads // devices))
    return Run(
        recipe,
        pack,
        local_weights(context),
        device,
        folder,
        noisy=context.noisy,
        features=open_feature_cache(context),
        compiled=context.compiled,
        devices=devices,
    )


def _push_checkpoint(run: Run, store: Store, trial: str) -> None:
    # Called before the epoch is stored, so that every stored epoch can be resumed from on any machine.
    assert run.folder is not None, "the run of a trial has a checkpoint folder"
    local_cache.push(run.folder, store.checkpoints(trial))


def open_finished_run(config: dict[str, Any]) -> Run:
    """Return the run of a trial with the weights after its last epoch.

    Args:
        config: as returned by `trial_config`.
    """
    run = open_run(config)
    for _ in run:  # a no-op unless the last checkpoint was damaged; its epochs are then trained again
        pass
    return run
