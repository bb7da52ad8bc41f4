"""Run: a recipe being trained. Iterating it yields one Epoch after another."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xfer import hashing
from xfer.data.loader import shuffle_indices
from xfer.data.pack import Pack, load_pack
from xfer.data.split import split_pack
from xfer.devices import heartbeat
from xfer.devices.device import Precision, check_devices, default_device, default_precision
from xfer.distributed.launcher import Task, TrainAsWorker, WorkerGroup
from xfer.distributed.process_group import SINGLE_PROCESS, Rank
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.frozen_features import FrozenFeatures, is_worth_caching
from xfer.feature_extraction.model_split import EMBEDDINGS
from xfer.measure.accuracy import evaluate
from xfer.measure.cost import ResourceUsage, count_flops, count_parameters
from xfer.measure.robustness import noise_sample, noisy_accuracies, noisy_batches
from xfer.methods.adapters import merge_adapters
from xfer.methods.balance import BALANCES, Balance, balanced_indices
from xfer.methods.freezing import TrainingProgress
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.schedules import SCHEDULES, Schedule
from xfer.recipe import Recipe, recipe_from_dict
from xfer.records import NOT_COMPILED, Epoch, Evaluation, Part, Phase, Record, as_dict, epoch_from_dict
from xfer.seeding import derive_seed
from xfer.training import checkpoints
from xfer.training.averaging import NO_STEPS
from xfer.training.candidates import Selection, head_weights, keep_best, start_weights
from xfer.training.epochs import StepStats, TrainStats, build_epoch, build_record, check_val_loss
from xfer.training.inputs import BatchTransform, RunInputs, check_packs
from xfer.training.learner import Learner

log = logging.getLogger(__name__)


class Run:
    """A recipe being trained.

    Iterating trains, leaving the loop stops, and iterating again continues. With a checkpoint folder every epoch is
    saved before it is yielded, and a new Run on the same folder resumes after the last one. A stopped and resumed run
    equals an uninterrupted one bit for bit, on a CPU with the same number of threads: no random state outlives an
    epoch, and every draw follows from the recipe's seed and the epoch.

    After the last epoch the network gets the best of three candidates on validation: its last weights, their moving
    average, or its start (`xfer.training.candidates`). A run that only trains a head keeps its last weights.

    With several devices, each has a process of its own (`xfer.distributed`), which lives while the run is iterated. A
    script that trains on several devices needs the `if __name__ == "__main__"` guard of Python's multiprocessing.

    Args:
        recipe: what to train.
        pack: the data that the recipe names.
        weights: the file that the recipe names; None for a strategy from random weights.
        device: where to train; by default a GPU if there is one.
        folder: where checkpoints are saved; None saves none.
        noisy: whether to also evaluate each epoch on a noisy copy of the validation part.
        features: cache of features of frozen network parts; by default one that lives as long as the run.
        precision: number format of training; by default that of the device. Accuracies are measured in float32.
        compiled: whether to train through torch.compile (see `Learner`).
        devices: number of devices of this machine that share every batch, `device` being the first of them.
        eval_pack: the same images in the recipe's `eval_size`; only for a recipe that has one.

    Raises:
        ValueError: the pack or the weights are not those that the recipe names, or do not fit it, or there are fewer
            devices.
    """

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        weights: Path | None = None,
        device: torch.device | None = None,
        folder: Path | None = None,
        noisy: bool = False,
        features: FeatureCache | None = None,
        precision: Precision | None = None,
        compiled: bool = False,
        devices: int = 1,
        eval_pack: Pack | None = None,
    ) -> None:
        check_packs(recipe, pack, eval_pack := eval_pack or pack)
        if recipe.weights and (weights is None or hashing.sha256_file(weights) != recipe.weights):
            raise ValueError(f"the recipe was made for weights {recipe.weights[:12]}, which {weights} does not hold")
        self.recipe = recipe
        self.pack = pack
        self.split = split_pack(pack, recipe.split_seed, recipe.draw, recipe.images_per_class)
        self.device = device or default_device()
        self.devices = devices
        check_devices(self.device, devices)
        self.folder = folder
        self.epochs: tuple[Epoch, ...] = ()
        self.resumed_at: tuple[int, ...] = ()
        """Number of completed epochs at each resumption."""

        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        self._weights = weights = weights if recipe.weights else None
        precision = precision or default_precision(self.device)
        cache = features or FeatureCache()
        train_labels = torch.from_numpy(pack.labels[self.split.train])
        counts = torch.bincount(train_labels, minlength=recipe.classes)
        self.learner = Learner(recipe, weights, self.device, precision, compiled, counts)
        transform = BatchTransform(recipe, self.learner.model, self.device)
        self.inputs = RunInputs(recipe, pack, eval_pack, self.split, transform, self.device, cache)
        self._balance: Balance = recipe.balance.build(BALANCES)
        self._schedule: Schedule = recipe.schedule.build(SCHEDULES)
        self._noisy = noisy
        self._start_accuracy: float | None = None
        self._fitted_head: dict[str, Tensor] = {}  # at the start, by name in the network; empty if it is not fitted
        self._val: Evaluation | None = None  # of the current weights

        self._workers: WorkerGroup | None = None
        self._epochs_on_workers: int | None = None  # with how many completed epochs the workers are up to date
        self._worker_job = {  # arguments of `open_worker`
            "recipe": recipe.as_dict(),
            "pack": str(pack.folder.absolute()),
            "eval_pack": str(eval_pack.folder.absolute()),
            "weights": str(weights.absolute()) if weights else None,
            "features": str(cache.root.absolute()) if cache.root else None,
            "precision": precision,
            "compiled": compiled,
        }
        if folder is not None:
            self._resume(folder)

    @property
    def model(self) -> nn.Module:
        """The network with its current weights."""
        model: nn.Module = self.learner.model
        return model

    def __iter__(self) -> Iterator[Epoch]:
        """Train until the recipe's last epoch, and yield each.

        Raises:
            DivergedError: the loss became NaN or infinite; the message names epoch and step.
            WorkerError: another device failed; the message says why.
            WorkerLostError: the process of another device died. A new Run can resume from the last checkpoint.
        """
        try:
            while not self._is_finished:
                if not self.epochs:
                    self._begin()
                self._start_workers_epoch()
                epoch = self._train_epoch() if self.recipe.uses_gradient_steps else self._fit_epoch()
                self.epochs = (*self.epochs, epoch)
                if self.folder is not None:
                    checkpoints.save(self.folder, len(self.epochs), self.state_dict())
                yield epoch
        finally:  # also after an error, or when the caller leaves the loop
            self._close_workers()

    def evaluate(self, part: Part, noisy: bool = False) -> Evaluation:
        """Evaluate the network with its current weights on one part of the data.

        Args:
            part: which one.
            noisy: whether to also evaluate a sample of it under every kind of noise, which takes several times as long.
        """
        indices, prepare = self.split.of(part), self.inputs.transform.prepare
        features = self.inputs.eval_features
        if part == "val" and self._val is not None:
            evaluation = self._val
        elif features is not None and (part != "test" or self.frozen_body is not None):
            batches = self.inputs.feature_batches(features, indices)
            self.model.eval()
            evaluation = evaluate(features.split_model.upper, batches, self._to_device, part, indices)
        else:
            evaluation = evaluate(self.model, self.inputs.evaluation_batches(indices), prepare, part, indices)
        if noisy:
            sample = noise_sample(self.pack.labels, indices, self.recipe.split_seed)
            noise_batches = partial(self.inputs.evaluation_batches, sample)
            return replace(evaluation, noisy=noisy_accuracies(self.model, noise_batches, prepare, sample))
        return evaluation

    @property
    def frozen_body(self) -> FrozenFeatures | None:
        """Features of everything below the head, while all of it is frozen and they are cached; None otherwise.

        They are of images in the size of evaluation. Runs with the same `identity` share them.
        """
        features = self.inputs.eval_features
        return features if features is not None and features.split_model.cut_point == EMBEDDINGS else None

    def record(self, trial: str = "run", phase: Phase = "search", error: str | None = None) -> Record:
        """Return the result so far: finished after the last epoch, failed with an error, else pruned."""
        return build_record(
            self.recipe,
            trial,
            phase,
            self.epochs,
            parameters=count_parameters(self.model),
            trainable_parameters=self.learner.count_trainable(),
            val=self.evaluate("val") if self._is_finished and not error else None,
            error=error,
            resumed_at=self.resumed_at,
            start_accuracy=self._start_accuracy,
            flops=self._flops,
            arithmetic=self._arithmetic,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to resume, as nested plain data and tensors."""
        return {
            "recipe": self.recipe.id,
            "epochs": [as_dict(epoch) for epoch in self.epochs],
            "resumed_at": list(self.resumed_at),
            "start_accuracy": self._start_accuracy,
            "fitted_head": self._fitted_head,
            **self.learner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state belongs to another recipe.
        """
        if state["recipe"] != self.recipe.id:
            raise ValueError(f"this state belongs to recipe {state['recipe'][:12]}, not to {self.recipe.id[:12]}")
        self.learner.load_state_dict(state)
        self.epochs = tuple(epoch_from_dict(epoch) for epoch in state["epochs"])
        self.resumed_at = tuple(state["resumed_at"])
        self._start_accuracy = state["start_accuracy"]
        self._fitted_head = state.get("fitted_head", {})
        self._val = None
        self._epochs_on_workers = None
        if self.epochs:
            self.set_pace(len(self.epochs) - 1)  # so that evaluation gives the same as right after that epoch

    def set_pace(self, epoch: int) -> None:
        """Freeze and unfreeze for an epoch, counted from 0, and cache features if that pays off."""
        val_losses = tuple(past.val_loss for past in self.epochs[:epoch])
        if not self.learner.set_pace(TrainingProgress(epoch, self.recipe.epochs, val_losses)):
            return
        self.inputs.use_features(None)
        if self._is_finished and self.learner.average is not None:
            return  # as when the weights to keep were selected, which may differ below what was frozen last
        if not self.inputs.repeats_images or not self.learner.lowest_block_is_frozen:
            return
        split_model = self.learner.frozen_split()
        images = len(self.split.train_and_val)
        if split_model is not None and is_worth_caching(split_model, self.model, self.recipe, images):
            self.learner.split_model = split_model
            self.inputs.use_features(split_model)

    def take_steps(self, epoch: int) -> StepStats:
        """Take all steps of an epoch, counted from 0, or this device's part in them; does not evaluate."""
        recipe, rank = self.recipe, self.learner.rank.index
        # Each device drops other activations.
        torch.manual_seed(derive_seed(recipe.seed, "dropout", epoch, *([rank] if rank else [])))
        indices = self.split.train
        if self._balance.resamples:
            seed = derive_seed(recipe.seed, "balance", epoch)
            indices = balanced_indices(indices, self.pack.labels[indices], seed)
        order = shuffle_indices(indices, recipe.batch_size, derive_seed(recipe.seed, "order", epoch))
        steps = math.ceil(len(order) / recipe.batch_size)
        self.set_pace(epoch)
        step_stats: list[tuple[Tensor, ...]] = []
        learning_rate = 0.0
        batches = self.inputs.training_batches(order, epoch, fixed_views=self.learner.lowest_block_is_frozen)
        for step, (inputs, targets) in enumerate(batches):
            progress = (epoch * steps + step) / (recipe.epochs * steps)
            learning_rate = recipe.learning_rate * self._schedule(progress)
            step_stats.append(self.learner.step(inputs, targets, learning_rate))
            heartbeat.beat()
        # Numbers are only read here: until now nothing had to wait for a GPU.
        losses, hits, norms = (torch.stack(values).tolist() for values in zip(*step_stats, strict=True))
        return StepStats(losses, hits, norms, learning_rate, len(order))

    def train_as_worker(self, rank: Rank, tasks: Iterable[Task]) -> None:
        """Train as one of several devices, led by another process's Run.

        Args:
            rank: this device.
            tasks: one per epoch, as the leader sends them (see `_start_workers_epoch`).
        """
        self.learner.rank = rank
        for task in tasks:
            if task["state"] is not None:
                self.learner.load_state_dict(task["state"])
            self.epochs = tuple(epoch_from_dict(epoch) for epoch in task["epochs"])
            self.take_steps(len(self.epochs))

    @property
    def _is_finished(self) -> bool:
        return len(self.epochs) == self.recipe.epochs

    def _resume(self, folder: Path) -> None:
        state = checkpoints.load(folder)
        if state is not None:
            self.load_state_dict(state)
            self.resumed_at = (*self.resumed_at, len(self.epochs))
            log.info("recipe %s resumes after epoch %d", self.recipe.id[:12], len(self.epochs))

    def _begin(self) -> None:
        if self.learner.needs_head_fit:
            self._fit_head()
            self._fitted_head = head_weights(self.model)
        self.set_pace(0)
        self._start_accuracy = self.evaluate("val").accuracy

    def _train_epoch(self) -> Epoch:
        usage = ResourceUsage(self.device)
        try:
            stats = self.take_steps(len(self.epochs))
        except RuntimeError as error:
            if self._workers is not None:
                self._workers.raise_worker_error(error)
            raise
        if self.learner.rank.size > 1 and self._workers is not None:
            self._workers.finish_task()
        training_seconds = usage.seconds
        return self._finish_epoch(usage, training_seconds, stats.summarize(len(self.epochs) + 1))

    def _fit_epoch(self) -> Epoch:
        """The only epoch of a head in closed form."""
        usage = ResourceUsage(self.device)
        self._fit_head()
        training_seconds = usage.seconds
        train = self.evaluate("train")
        return self._finish_epoch(usage, training_seconds, TrainStats(train.loss, train.accuracy))

    def _fit_head(self) -> None:
        self.learner.fit_head(*self.inputs.train_embeddings(self.model))

    def _finish_epoch(self, usage: ResourceUsage, training_seconds: float, train: TrainStats) -> Epoch:
        number = len(self.epochs) + 1
        selects = number == self.recipe.epochs and self.learner.average is not None
        if selects:  # features would be those of the last weights
            self.learner.split_model = None
            self.inputs.use_features(None)
        val = self._evaluate_val()
        check_val_loss(val.loss, number)
        selection = self._keep_best(val) if selects else None
        self._val = val = selection.val if selection else val
        noisy_accuracy = self._noisy_accuracy() if self._noisy else None
        return build_epoch(
            number,
            train,
            val,
            distance=self.learner.distance(),
            micro_batch=self.learner.micro_batch,
            val_noisy_accuracy=noisy_accuracy,
            selection=selection,
            seconds=usage.seconds,
            images_per_second=len(self.split.train) / training_seconds,
            system=usage.system_metrics(),
        )

    def _evaluate_val(self) -> Evaluation:
        self._val = None
        return self.evaluate("val")

    def _keep_best(self, last: Evaluation) -> Selection:
        """Keep the best weights after the last epoch; see `keep_best`."""
        learner, inputs = self.learner, self.inputs
        assert learner.average is not None, "only a run that trains more than a head selects weights"
        assert self._start_accuracy is not None, "the start is evaluated before the first step"
        average = partial(learner.use_average, inputs.statistics_images(), inputs.transform.prepare)
        selection = keep_best(
            self.model,
            learner.trainable_names,
            last,
            self._evaluate_val,
            average if learner.average.steps else None,
            partial(start_weights, self.recipe, self._weights, learner.trainable_names, self._fitted_head),
            self._start_accuracy,
        )
        learner.average.load_state_dict(NO_STEPS)
        return selection

    def _noisy_accuracy(self) -> float:
        indices = self.split.val
        batches = noisy_batches(self.inputs.evaluation_batches(indices), indices)
        return evaluate(self.model, batches, self.inputs.transform.prepare, "val", indices).accuracy

    def _to_device(self, features: Tensor) -> Tensor:
        return features.to(self.device)

    @property
    def _arithmetic(self) -> str:
        words: list[str] = [self.learner.precision]
        words += ["compiled"] if self.learner.compiled else []
        words += [f"{self.devices} devices"] if self._uses_workers else []
        words += [f"{NOT_COMPILED}{self.learner.compile_error}"] if self.learner.compile_error else []
        return ", ".join(words)

    @cached_property
    def _flops(self) -> int:
        # Counting runs an image through the network, so it is done only when a record is made.
        channels = self.recipe.colour.build(INPUT_CHANNELS).channels
        return count_flops(merge_adapters(self.model), self.recipe.evaluation_size, channels)

    @property
    def _uses_workers(self) -> bool:
        """Whether several devices share the steps of an epoch at the current pace.

        A head on cached embeddings trains on the leader alone: its steps take less time than their communication. The
        workers get its weights once there is more to train.
        """
        return self.devices > 1 and self.recipe.uses_gradient_steps and not self.learner.trains_only_head

    def _start_workers_epoch(self) -> None:
        """Make the other devices start the next epoch, if they take part in it."""
        if self.devices == 1:
            return
        epoch = len(self.epochs)
        self.set_pace(epoch)
        if not self._uses_workers:
            self.learner.rank = SINGLE_PROCESS
            return
        if self._workers is None:
            self._workers = WorkerGroup(open_worker, self._worker_job, self.device, self.devices)
        self.learner.rank = self._workers.rank
        state = None if self._epochs_on_workers == epoch else {**self.learner.state_dict(), "average": None}
        self._workers.send_task({"epochs": [as_dict(past) for past in self.epochs], "state": state})
        self._epochs_on_workers = epoch + 1

    def _close_workers(self) -> None:
        workers, self._workers, self._epochs_on_workers = self._workers, None, None
        self.learner.rank = SINGLE_PROCESS
        if workers is not None:
            workers.close()


def open_worker(job: Mapping[str, Any], device: torch.device) -> TrainAsWorker:
    """Make the same Run in a worker process."""
    pack = load_pack(Path(job["pack"]))
    run = Run(
        recipe_from_dict(job["recipe"]),
        pack,
        Path(job["weights"]) if job["weights"] else None,
        device,
        features=FeatureCache(Path(job["features"])) if job["features"] else None,
        precision=job["precision"],
        compiled=job["compiled"],
        eval_pack=pack if job["eval_pack"] == job["pack"] else load_pack(Path(job["eval_pack"])),
    )
    return run.train_as_worker
