"""Heads: linear heads on frozen networks, trained side by side: in tasks of their own beside the Tuner, or without one.

What of the network is frozen is computed once, and hundreds of heads on it take about as long as one trial of the
Tuner takes to start. Each is a trial like any other, with its own recipe, record and checkpoint. None is stopped
early: there is nothing to be saved.
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
from xfer.features.feature_cache import FeatureCache
from xfer.features.frozen_features import FrozenFeatures
from xfer.features.model_split import split_at_classifier
from xfer.recipe import Recipe, recipe_from_dict
from xfer.records import Record, as_dict
from xfer.storage import local_cache, object_store
from xfer.training import checkpoints
from xfer.training.networks import build_network, build_preprocessor

log = logging.getLogger(__name__)

PROBE_BATCH_SIZE = 256
"""Heads in a task where nobody learns from the ones before."""
PROBES_PER_SAMPLER_UPDATE = 16
"""Heads that a sampler which learns proposes before it is told what came of them."""

MIN_PROBES_PER_TASK = 32
"""Heads that are worth a second process."""


def split_into_tasks(trials: Sequence[Trial], tasks: int) -> list[list[Trial]]:
    """Trials dealt to at most so many tasks, those of one network and augmentation together.

    What a task costs is mostly how many versions of the images its frozen network has to see: each is computed once.
    """
    streams: dict[str, list[Trial]] = {}
    for trial in trials:
        seen = json.dumps([trial.recipe[name] for name in ("backbone", "augmentation")], sort_keys=True)
        streams.setdefault(seen, []).append(trial)
    dealt: list[list[Trial]] = [[] for _ in range(tasks)]
    versions = [0] * tasks
    for stream in sorted(streams.values(), key=lambda stream: -(stream[0].recipe["views"] or 1)):
        lightest = versions.index(min(versions))
        dealt[lightest] += stream
        versions[lightest] += stream[0].recipe["views"] or 1
    return [each for each in dealt if each]


class ProbeTasks:
    """Collects linear probes into batches, trains them, and returns their records.

    A batch is trained in Ray tasks beside Ray Tune, or in this process as long as Ray Tune does not run: in a search of
    nothing but probes, starting other processes would take longer than all of the training.

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
        threads = torch.get_num_threads()
        train_probes([trial_config(trial, replace(self._context(trial), threads=cores)) for trial in trials])
        torch.set_num_threads(threads)
        release_freed_memory()
        return [record for trial in trials if (record := self._store.record(trial.name)) is not None]

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
                    record = failed_record(trial_config(trial, self._context(trial)), error)
                    self._store.add_record(record)
                if record is not None:
                    records.append(record)
        return records

    def _show(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            self._view.started(trial.name, dict(trial.recipe))


def train_probes(configs: list[dict[str, Any]]) -> None:
    """Train linear heads side by side and end each trial with a record; those that have one are left as they are.

    Args:
        configs: of `trainable.trial_config`, all of one sweep.
    """
    store = open_store(configs[0]["site"])
    left = [config for config in configs if store.record(config["trial"]) is None]
    if not left:
        return
    pack, device = open_context(TrialContext(**left[0]["site"]))
    recipes = [recipe_from_dict(config["recipe"]) for config in left]
    embedded: dict[Any, _Embedded] = {}  # of one network at a time, which is why its groups follow each other
    groups = group_recipes(recipes)
    networks = [network_key(recipes[group[0]]) for group in groups]
    for _, group in sorted(zip(map(networks.index, networks), groups, strict=True)):
        configs, members = [left[place] for place in group], [recipes[place] for place in group]
        try:
            _train_group(store, configs, members, pack, device, embedded)
        except object_store.StorageUnavailableError:
            raise  # another process may fare better
        except Exception as error:
            log.exception("heads %s failed", ", ".join(config["trial"] for config in configs))
            for config in configs:
                store.add_record(failed_record(config, f"{type(error).__name__}: {error}"))


def _train_group(
    store: Store,
    configs: list[dict[str, Any]],
    recipes: list[Recipe],
    pack: Pack,
    device: torch.device,
    embedded: dict[Any, _Embedded],
) -> None:
    site, first = TrialContext(**configs[0]["site"]), recipes[0]
    weights = local_weights(site)
    key = (network_key(first), first.split_seed, first.draw, first.images_per_class)
    if key not in embedded:
        embedded.clear()
        embedded[key] = _Embedded(first, pack, weights, device, open_feature_cache(site))
    embed = embedded[key]
    group = ProbeGroup(recipes, pack, embed, head_inits(recipes, weights), device)
    far = object_store.is_remote(
        store.folder
    )  # then each object is a request, and hundreds must not wait for one another
    for epochs in group:
        new = [(config["trial"], epoch) for config, epoch in zip(configs, epochs, strict=True) if epoch is not None]
        object_store.map_concurrently(lambda one: store.add_epoch(*one), new, far)
    ended = [_ended(group, member, config, embed.head) for member, config in enumerate(configs)]
    object_store.map_concurrently(lambda one: _keep(store, *one), ended, far)


def _ended(
    group: ProbeGroup, member: int, config: dict[str, Any], names: tuple[str, str]
) -> tuple[Record, dict[str, Tensor] | None]:
    """What one head has come to, and its tensors by their names in the network; None of one that failed."""
    record = group.record(member, config["trial"], config["phase"])
    if record.error is not None:
        return replace(record, error=f"{type(group.errors[member]).__name__}: {record.error}"), None
    return record, dict(zip(names, (group.head(member).weight, group.head(member).bias), strict=True))


def _keep(store: Store, record: Record, head: dict[str, Tensor] | None) -> None:
    if head is not None:
        with local_cache.staged_upload(store.checkpoints(record.trial)) as folder:
            checkpoints.save(folder, len(record.epochs), _state(record, head))
    store.add_record(record)


def _state(record: Record, head: dict[str, Tensor]) -> dict[str, Any]:
    """What `Run.load_state_dict` takes: the run is over, so nothing is said of its optimizer."""
    return {
        "recipe": record.id,
        "epochs": [as_dict(epoch) for epoch in record.epochs],
        "resumed_at": [],
        "start_accuracy": record.start_accuracy,
        "model": head,
    }


class _Embedded:
    """What the frozen network of some recipes makes of images (`together.Embeddings`)."""

    def __init__(
        self, recipe: Recipe, pack: Pack, weights: Path | None, device: torch.device, store: FeatureCache
    ) -> None:
        model = build_network(recipe, weights).to(device).to(memory_format=torch.channels_last).eval()
        head = model.get_classifier()
        place = next(name for name, module in model.named_modules() if module is head)
        self.head = (f"{place}.weight", f"{place}.bias")
        """The names of the head's tensors in the network's state."""
        self._below = split_at_classifier(model)
        self._pack = pack
        self._split = split_pack(pack, recipe.split_seed, recipe.draw, recipe.images_per_class)
        self._prepare = build_preprocessor(recipe, model, device)
        self._store = store
        self._frozen: dict[Any, FrozenFeatures] = {}

    def __call__(self, recipe: Recipe, view: int | None, places: Indices) -> Tensor:
        """Embeddings [len(places), D] of images as they are, or of a version under the recipe's augmentation."""
        if recipe.augmentation not in self._frozen:
            self._frozen[recipe.augmentation] = FrozenFeatures(
                self._below, recipe, self._pack, self._split, self._prepare, self._store
            )
        return self._frozen[recipe.augmentation].rows(places, view)
