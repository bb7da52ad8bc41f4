"""Hands a Run to Ray Tune: what happens in a trial's own process."""

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
from xfer.data.pack import Pack, fetch_pack
from xfer.devices.device import default_device
from xfer.devices.host_memory import release_freed_memory, retain_freed_memory
from xfer.distributed.launcher import WorkerLostError
from xfer.features.feature_cache import FeatureCache
from xfer.recipe import recipe_from_dict
from xfer.records import Record, as_dict
from xfer.run import Run
from xfer.storage import local_cache, object_store
from xfer.training.epochs import build_record
from xfer.training.export import save_classifier

log = logging.getLogger(__name__)


Trainable = Callable[[dict[str, Any]], None]
"""What happens in a trial's process, as `trainable.train_trial` promises it."""


@dataclass(frozen=True)
class Resources:
    """What each trial gets of a machine."""

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class TrialContext:
    """Where a trial finds what it needs, and what it may use: all that a process must know beside the recipe."""

    sweep: str
    """The sweep's folder; this and the others may be addresses in an object store."""
    pack: str
    """The pack's folder."""
    weights: str | None
    """The file of the recipe's weights."""
    threads: int
    gpus: float
    """Which share of a GPU the trial was given. With 0 it must not touch any; below 1 it is held to its share; from 2
    on it is trained on so many of one node together."""
    noisy: bool = False
    """Whether accuracy under noise is measured after every epoch."""
    compiled: bool = False
    """Whether training goes through torch.compile. What it computes in is the machine's own (`default_precision`)."""
    features: str | None = None
    """The folder of features that all sweeps in a storage share."""


def trial_config(trial: Trial, site: TrialContext) -> dict[str, Any]:
    """A trial as Ray Tune hands it to a process."""
    return {"trial": trial.name, "phase": trial.phase, "recipe": dict(trial.recipe), "site": asdict(site)}


def train_trial(config: dict[str, Any]) -> None:
    """Train a trial to its end, or until the scheduler stops it at one of its reports.

    What it comes to is written to the store before it is reported, so whatever dies afterwards, nothing is trained
    twice. A failure that would come again, such as a loss that is no number, ends the trial with a record; only a lost
    process is left to Ray to start again, and it goes on from the last checkpoint. So is one that has lost that of
    another of its GPUs.

    Raises:
        LostError: a process that trained together with this one was lost.
        AwayError: the storage could not be reached.
    """
    release_freed_memory()  # also where the trial before was stopped in the middle
    store, name = open_store(config["site"]), config["trial"]
    run: Run | None = None
    try:
        run = _run(config)
        for epoch in run.epochs:
            store.add_epoch(name, epoch)  # one that was saved but not yet written down when the process died
        record = run.record(name, config["phase"])
        if run.epochs:
            report_to_tune(record)  # the scheduler may not have judged it yet
        for epoch in run:
            _send_checkpoint(run, store, name)
            store.add_epoch(name, epoch)
            record = run.record(name, config["phase"])
            report_to_tune(record)
    except (WorkerLostError, object_store.StorageUnavailableError):
        raise  # another process may fare better
    except Exception as error:
        log.exception("trial %s failed", name)
        reason = f"{type(error).__name__}: {error}"
        record = failed_record(config, reason) if run is None else run.record(name, config["phase"], reason)
    store.add_record(record)


def report_to_tune(record: Record) -> None:
    """Tell the driver all there is to know: should the scheduler stop the trial here, this is its record."""
    from ray import tune  # only a trial of Tune's gets here: who trains heads alone does without Ray

    # As text, for Tune flattens whatever is nested.
    text = json.dumps(as_dict(record))
    tune.report({"epoch": len(record.epochs), "val_accuracy": record.val_accuracy, "record": text})


def evaluate_on_test(config: dict[str, Any]) -> None:
    """Judge a finished run on the test part, as it is and under noise, and write that down."""
    store = open_store(config["site"])
    store.add_test(config["trial"], _finished(config).evaluate("test", noisy=True))


def export_model(config: dict[str, Any], folder: str) -> None:
    """Write a finished run's network to a folder, for others to use."""
    run = _finished(config)
    with local_cache.staged_upload(object_store.as_path(folder)) as here:
        save_classifier(here, run.model, run.recipe, run.pack.classes)


def failed_record(config: dict[str, Any], error: str) -> Record:
    """The record of a trial that never got as far as having a network."""
    return build_record(recipe_from_dict(config["recipe"]), config["trial"], config["phase"], error=error)


def open_context(site: TrialContext) -> tuple[Pack, torch.device]:
    """The pack, and the device that this process may use; it uses as many threads, and logs where it should.

    Raises:
        ValueError: this machine does not see the storage.
    """
    store = open_store(asdict(site))
    if not object_store.is_remote(store.folder) and not store.folder.exists():
        raise ValueError(
            f"{socket.gethostname()} sees no {store.folder}: on a cluster --storage must be where every machine can "
            f"reach it, in a bucket (s3://bucket/runs, gs://bucket/runs) or in a folder that they share"
        )
    logs = store.local_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=logs / "trials.log", level=logging.WARNING)
    torch.set_num_threads(site.threads)
    retain_freed_memory()
    return fetch_pack(object_store.as_path(site.pack)), limit_gpu_memory(site.gpus)


def open_store(site: Mapping[str, Any]) -> Store:
    """The sweep that a site, as plain data, belongs to."""
    return Store(object_store.as_path(site["sweep"]))


def local_weights(site: TrialContext) -> Path | None:
    """The file of weights on this machine; None where the recipe begins with random ones."""
    return local_cache.fetch_file(object_store.as_path(site.weights)) if site.weights else None


def open_feature_cache(site: TrialContext) -> FeatureCache:
    """Where features are kept: on this machine and, where the storage is elsewhere, there too."""
    if site.features is None:
        return FeatureCache()
    folder = object_store.as_path(site.features)
    return FeatureCache(local_cache.local_path(folder), RemoteCache(folder) if object_store.is_remote(folder) else None)


def limit_gpu_memory(gpus: float) -> torch.device:
    """Hold this process to a share of a GPU, whatever an earlier trial in it was given; where it is to compute.

    A share is a number that Ray counts with and nobody enforces: a trial that took more would make its neighbours run
    out of memory. One that runs out of its own share goes on in smaller parts (`xfer.devices.microbatching`).
    """
    if gpus == 0:
        # Ray sees to it where we have started it (`tuning.ENVIRONMENT`); elsewhere nothing has asked for a GPU so far,
        # and CUDA reads this when somebody first does.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return torch.device("cpu")
    device = default_device()
    if device.type == "cuda":  # has not run on a GPU yet
        card = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, card), torch.cuda.current_device())
    return device


def _run(config: dict[str, Any]) -> Run:
    site = TrialContext(**config["site"])
    pack, device = open_context(site)
    folder = local_cache.pull(open_store(config["site"]).checkpoints(config["trial"]))
    recipe = recipe_from_dict(config["recipe"])
    # Where Ray gives out GPUs that torch cannot use, or that are only said to be there, as many processes use CPUs.
    devices = max(1, int(site.gpus))
    torch.set_num_threads(max(1, site.threads // devices))
    return Run(
        recipe,
        pack,
        local_weights(site),
        device,
        folder,
        noisy=site.noisy,
        features=open_feature_cache(site),
        compiled=site.compiled,
        devices=devices,
    )


def _send_checkpoint(run: Run, store: Store, trial: str) -> None:
    # Before the epoch is written down: what is known to others can be gone on from by others.
    assert run.folder is not None, "a trial keeps checkpoints"
    local_cache.push(run.folder, store.checkpoints(trial))


def _finished(config: dict[str, Any]) -> Run:
    run = _run(config)
    for _ in run:  # nothing to do, unless the last checkpoint was damaged: then its epochs are trained again
        pass
    return run
