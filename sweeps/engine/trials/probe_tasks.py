"""Probe tasks: linear probes on frozen networks, trained in batches, in Ray tasks next to Ray Tune or in this process.

The frozen features are computed once, and hundreds of probes on them take about as long as Ray Tune needs to start a
single trial. Each probe is a trial like any other, with its own recipe, record and checkpoint. Probes are not stopped
early, because that would save nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.resources import cluster
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import early_start, machine_faults
from sweeps.engine.trials.trainable import (
    Resources,
    TrialContext,
    failed_record,
    local_weights,
    open_context,
    open_feature_cache,
    open_store,
    trial_config,
)
from xfer.batched_probes.compatibility import can_batch, group_recipes, head_inits, network_key
from xfer.batched_probes.group import ProbeGroup
from xfer.data.pack import Pack
from xfer.data.split import Indices, split_pack
from xfer.devices.host_memory import release_freed_memory
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.feature_extraction.model_split import split_at_classifier
from xfer.recipe import Recipe, recipe_from_dict
from xfer.records import Record, as_dict
from xfer.storage import local_cache, object_store
from xfer.training import checkpoints
from xfer.training.networks import build_network, build_preprocessor

log = logging.getLogger(__name__)

PROBE_BATCH_SIZE = 256
"""Number of probes per batch if the sampler does not learn from earlier trials."""
PROBES_PER_SAMPLER_UPDATE = 16
"""Number of probes that a learning sampler proposes before it learns their results."""

MIN_PROBES_PER_TASK = 32
"""Minimum batch size that is divided between several processes."""


def split_into_tasks(trials: Sequence[Trial], tasks: int) -> list[list[Trial]]:
    """Divide probes between tasks of about the same cost.

    The cost of a task is mostly the number of augmented views that its frozen network has to process. Each view is
    computed once, so probes with the same images, backbone and augmentation stay together.

    Args:
        trials: the probes.
        tasks: maximum number of tasks.

    Returns:
        The probes of each task, without empty tasks.
    """
    streams: dict[str, list[Trial]] = {}
    for trial in trials:
        key = json.dumps([trial.recipe[name] for name in ("data", "backbone", "augmentation")], sort_keys=True)
        streams.setdefault(key, []).append(trial)
    batches: list[list[Trial]] = [[] for _ in range(tasks)]
    views = [0] * tasks
    for stream in sorted(streams.values(), key=lambda stream: -(stream[0].recipe["views"] or 1)):
        lightest = views.index(min(views))
        batches[lightest] += stream
        views[lightest] += stream[0].recipe["views"] or 1
    return [batch for batch in batches if batch]


class ProbeTasks:
    """Collects linear probes into batches, trains them, and returns their records.

    A batch is trained in Ray tasks next to Ray Tune, or in this process as long as Ray Tune does not run: in a search
    of nothing but probes, starting other processes would take longer than all of the training.

    Args:
        store: the sweep's.
        view: told of each trial that is started.
        context: returns what a trial's process needs to know.
        resources: what a task gets of a machine. Probes need one GPU at most, whatever a trial gets.
        batch_size: number of probes that are collected before they are trained.
        tasks: number of Ray tasks that a large batch is divided between.
        in_process: whether probes are trained in this process while Ray Tune does not run.
    """

    def __init__(
        self,
        store: Store,
        view: ProgressView,
        context: Callable[[Trial], TrialContext],
        resources: Resources,
        batch_size: int = PROBE_BATCH_SIZE,
        tasks: int = 1,
        in_process: bool = False,
    ) -> None:
        self._store = store
        self._view = view
        self._context = context
        self._resources = replace(resources, gpus=min(resources.gpus, 1.0))
        self._batch_size = batch_size
        self._num_tasks = tasks
        self._in_process = in_process
        self.tune_is_running = False
        """Whether Ray Tune runs. Its trials may hold the GPUs that probes need and can only finish inside the Tune
        loop, so nothing here blocks on probes then."""
        self.interrupted: list[str] = []
        """Probes that have ended without a record, because of a fault of the machine. `Stage` takes them from here."""
        self._collected: list[Trial] = []
        self._running: dict[Any, list[Trial]] = {}  # by Ray task

    def add(self, trial: Trial) -> bool:
        """Add a trial to the next batch.

        Returns:
            False if it cannot be batched and has to run alone.
        """
        if self._context(trial).noisy or not can_batch(recipe_from_dict(trial.recipe)):
            return False
        self._collected.append(trial)
        return True

    def start(self) -> list[Record]:
        """Start the collected probes, unless they are trained in this process and the batch is not full.

        Returns:
            The records of probes that were trained in this process.
        """
        if self._trains_here and len(self._collected) < self._batch_size:
            return []
        return self._start()

    def start_few(self) -> list[Record]:
        """Train the collected probes in this process, if they are few: another one would take longer to start.

        Returns:
            Their records.
        """
        return self._start() if self._trains_here and len(self._collected) < MIN_PROBES_PER_TASK else []

    def collect(self) -> list[Record]:
        """Start a full batch and return the records of finished probes.

        Waits for running probes if there is a whole batch of them, so that the sampler learns from it first.
        """
        records = self._start() if len(self._collected) >= self._batch_size else []
        if sum(map(len, self._running.values())) >= self._batch_size:
            records += self.settle()
        return records + self._finished(wait=False)

    def settle(self) -> list[Record]:
        """Start the collected probes and return the records of all, except of those that must not be waited for."""
        records = self._start()
        needs_tune_loop = self.tune_is_running and (self._resources.gpus > 0 or cluster.has_cluster_address())
        return records + self._finished(wait=not needs_tune_loop)

    @property
    def _trains_here(self) -> bool:
        return self._in_process and not self.tune_is_running

    def _start(self) -> list[Record]:
        trials, self._collected = self._collected, []
        if self._trains_here:
            return self._train_here(trials)
        from sweeps.engine.trials import ray_tune  # Ray takes a second to import

        for batch in split_into_tasks(trials, self._num_tasks if len(trials) >= MIN_PROBES_PER_TASK else 1):
            configs = [trial_config(trial, self._context(trial)) for trial in batch]
            self._show(batch)
            self._running[ray_tune.submit(train_probes, configs, self._resources)] = batch
        return []

    def _train_here(self, trials: Sequence[Trial]) -> list[Record]:
        if not trials:
            return []
        self._show(trials)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if early_start.is_started():
            cores = max(1, cores // 2)  # Ray's processes import torch on the others
        threads = torch.get_num_threads()
        train_probes([trial_config(trial, replace(self._context(trial), threads=cores)) for trial in trials])
        torch.set_num_threads(threads)
        release_freed_memory()
        records = {trial.name: self._store.record(trial.name) for trial in trials}
        self.interrupted += [name for name, record in records.items() if record is None]
        return [record for record in records.values() if record is not None]

    def _finished(self, wait: bool) -> list[Record]:
        if not self._running:
            return []
        from sweeps.engine.trials import ray_tune

        records = []
        for task in ray_tune.finished_tasks(list(self._running), wait):
            trials = self._running.pop(task)
            error = ray_tune.task_error(task)
            for trial in trials:
                record = self._store.record(trial.name)
                if record is None and error is not None:
                    _end_after_error(
                        self._store, trial_config(trial, self._context(trial)), error, is_machine_fault=True
                    )
                    record = self._store.record(trial.name)
                if record is not None:
                    records.append(record)
                else:
                    self.interrupted.append(trial.name)
        return records

    def _show(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            self._view.started(trial.name, dict(trial.recipe))


def train_probes(configs: list[dict[str, Any]]) -> None:
    """Train a batch of probes and end each with a record. Probes that have a record already are skipped.

    Args:
        configs: as returned by `trainable.trial_config`, all of one sweep.
    """
    store = open_store(configs[0]["site"])
    configs = [config for config in configs if store.record(config["trial"]) is None]
    if not configs:
        return
    packs: dict[str, Pack] = {}  # by folder: probes may differ in their image size
    recipes = [recipe_from_dict(config["recipe"]) for config in configs]
    features: dict[Any, _FrozenNetwork] = {}  # of one network at a time, so groups of one network are consecutive
    groups = group_recipes(recipes)
    networks = [network_key(recipes[group[0]]) for group in groups]
    for _, group in sorted(zip(map(networks.index, networks), groups, strict=True)):
        group_configs, group_members = [configs[index] for index in group], [recipes[index] for index in group]
        context = TrialContext(**group_configs[0]["site"])
        if context.pack not in packs:
            packs[context.pack], device = open_context(context)
        try:
            _train_group(store, group_configs, group_members, packs[context.pack], device, features)
        except object_store.StorageUnavailableError:
            raise  # another process may succeed
        except Exception as error:
            log.exception("heads %s failed", ", ".join(config["trial"] for config in group_configs))
            reason, is_machine_fault = f"{type(error).__name__}: {error}", machine_faults.is_machine_fault(error)
            for config in group_configs:
                _end_after_error(store, config, reason, is_machine_fault)


def _end_after_error(store: Store, config: dict[str, Any], reason: str, is_machine_fault: bool) -> None:
    """End a probe with a record, unless it has one or the next start of the sweep is to try it again."""
    if store.record(config["trial"]) is not None:
        return
    if is_machine_fault:
        if machine_faults.try_again(store, config["trial"], reason):
            return
        reason = machine_faults.final_reason(reason)
    store.add_record(failed_record(config, reason))


def _train_group(
    store: Store,
    configs: list[dict[str, Any]],
    recipes: list[Recipe],
    pack: Pack,
    device: torch.device,
    networks: dict[Any, _FrozenNetwork],
) -> None:
    context, first = TrialContext(**configs[0]["site"]), recipes[0]
    weights = local_weights(context)
    key = (network_key(first), first.split_seed, first.draw, first.images_per_class)
    if key not in networks:
        networks.clear()
        networks[key] = _FrozenNetwork(first, pack, weights, device, open_feature_cache(context))
    network = networks[key]
    group = ProbeGroup(recipes, pack, network, head_inits(recipes, weights), device)
    # In an object store each object is a request, and hundreds of them must not wait for one another.
    remote = object_store.is_remote(store.folder)
    for epochs in group:
        new = [(config["trial"], epoch) for config, epoch in zip(configs, epochs, strict=True) if epoch is not None]
        object_store.map_concurrently(lambda item: store.add_epoch(*item), new, remote)
    results = [_result(group, index, config, network.head) for index, config in enumerate(configs)]
    object_store.map_concurrently(lambda result: _store_result(store, *result), results, remote)


def _result(
    group: ProbeGroup, index: int, config: dict[str, Any], names: tuple[str, str]
) -> tuple[Record, dict[str, Tensor] | None]:
    """Return the record of a probe, and its tensors by their names in the network; None if it failed."""
    record = group.record(index, config["trial"], config["phase"])
    if record.error is not None:
        return replace(record, error=f"{type(group.errors[index]).__name__}: {record.error}"), None
    return record, dict(zip(names, (group.head(index).weight, group.head(index).bias), strict=True))


def _store_result(store: Store, record: Record, head: dict[str, Tensor] | None) -> None:
    if head is not None:
        with local_cache.staged_upload(store.checkpoints(record.trial)) as folder:
            checkpoints.save(folder, len(record.epochs), _state(record, head))
    store.add_record(record)


def _state(record: Record, head: dict[str, Tensor]) -> dict[str, Any]:
    """Return what `Run.load_state_dict` takes, without an optimizer state because the run is complete."""
    return {
        "recipe": record.id,
        "epochs": [as_dict(epoch) for epoch in record.epochs],
        "resumed_at": [],
        "start_accuracy": record.start_accuracy,
        "model": head,
    }


class _FrozenNetwork:
    """Computes the features below the head for a group of recipes; an `EmbeddingSource` for `ProbeGroup`."""

    def __init__(
        self, recipe: Recipe, pack: Pack, weights: Path | None, device: torch.device, cache: FeatureCache
    ) -> None:
        model = build_network(recipe, weights).to(device).to(memory_format=torch.channels_last).eval()
        head = model.get_classifier()
        head_name = next(name for name, module in model.named_modules() if module is head)
        self.head = (f"{head_name}.weight", f"{head_name}.bias")
        """Names of the head's tensors in the network's state dict."""
        self._backbone = split_at_classifier(model)
        self._pack = pack
        self._split = split_pack(pack, recipe.split_seed, recipe.draw, recipe.images_per_class)
        self._preprocess = build_preprocessor(recipe, model, device)
        self._cache = cache
        self._features: dict[Any, FrozenFeatures] = {}  # by augmentation

    def __call__(self, recipe: Recipe, view: int | None, places: Indices) -> Tensor:
        """Return features [len(places), D] of the original images or, with `view`, of an augmented view."""
        if recipe.augmentation not in self._features:
            self._features[recipe.augmentation] = FrozenFeatures(
                self._backbone, recipe, self._pack, self._split, self._preprocess, self._cache
            )
        return self._features[recipe.augmentation].rows(places, view)
