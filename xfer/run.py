"""Run: a recipe being trained. Iterate it and it yields one Epoch after another."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xfer import hashing
from xfer.data.loader import Batch, iter_batches, shuffle_indices, to_device
from xfer.data.pack import Pack
from xfer.data.split import Indices, split_pack
from xfer.distributed.process_group import SINGLE_PROCESS, Rank, WorkerGroup, check_devices
from xfer.features.augmented_views import augmented_view
from xfer.features.feature_cache import FeatureCache
from xfer.features.frozen_features import FrozenFeatures, is_worth_caching
from xfer.features.model_split import SplitModel, split_at_classifier
from xfer.measure.accuracy import evaluate
from xfer.measure.cost import ResourceUsage, count_flops, count_parameters
from xfer.measure.robustness import noisy_accuracies, noisy_batches
from xfer.methods.adapters import merge_adapters
from xfer.methods.freezing import TrainingProgress
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.schedules import SCHEDULES, Schedule
from xfer.recipe import Recipe
from xfer.records import Epoch, Evaluation, Part, Phase, Record, Status, as_dict, epoch_from_dict
from xfer.seeding import derive_seed
from xfer.training import checkpoints
from xfer.training.learner import Learner, Precision

log = logging.getLogger(__name__)

LOGGED_GRADIENT_NORMS = 50
"""Of so many steps the gradient norm is kept one by one: whether the random head's first gradients are large is what
freezing and clipping are about."""

MIN_EVALUATION_BATCH = 64
"""So many images at a time are at least judged: nothing of them has to be kept for a way back."""


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number: this run has come to nothing."""


def check_train_losses(losses: Sequence[float], epoch: int) -> None:
    """Raise a DivergedError unless the loss of every step of an epoch, counted from 1, is finite."""
    for step, value in enumerate(losses):
        if not math.isfinite(value):
            raise DivergedError(f"the training loss became {value} in epoch {epoch}, step {step + 1} of {len(losses)}")


def check_val_loss(loss: float, epoch: int) -> None:
    """Raise a DivergedError unless the validation loss after an epoch, counted from 1, is finite."""
    if not math.isfinite(loss):
        raise DivergedError(f"the validation loss became {loss} after epoch {epoch}")


def default_device() -> torch.device:
    """A GPU where there is one, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_precision(device: torch.device) -> Precision:
    """bfloat16 on a GPU that computes in it by itself, else float32.

    A property of the machine, as the number of threads is, and so none of the recipe: where there is no bfloat16 the
    same recipe is meant to be trained in float32, and no search should have to choose. A Record says which it was.
    """
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


@dataclass(frozen=True)
class StepStats:
    """What the steps of an epoch came to."""

    losses: list[float]
    hits: list[float]
    """How many images each step's network was right about."""
    norms: list[float]
    """Of the gradients."""
    rate: float
    """The learning rate of the last one."""
    images: int
    """How many there were in all of them."""


class Run:
    """A recipe being trained.

    Iterating trains; leaving the loop stops; iterating again goes on. With a folder for checkpoints every epoch is
    saved before it is yielded, and a new Run on the same folder goes on from the last one. Stopped and resumed equals
    uninterrupted, bit for bit, on a CPU with the same number of threads: no random state outlives an epoch, every
    draw follows from the recipe's seed and the epoch.

    Args:
        recipe: what to train.
        pack: the data that the recipe names.
        weights: the file that the recipe names; None for a strategy from random weights.
        device: where to train; the best there is unless given.
        folder: where checkpoints go; None keeps none.
        noisy: whether each epoch is also judged on a noisy copy of the validation part.
        features: where what frozen parts of networks make of images is kept, for whoever comes later; in this object
            unless given.
        precision: what training computes in; the device's own unless given. Accuracies are measured in float32.
        compiled: whether training goes through torch.compile (see `Learner`).
        devices: on how many devices of this machine, `device` the first of them, every batch is divided. The others
            have processes of their own (`xfer.distributed.process_group`), which live while this is iterated and come
            to the same weights.

    Raises:
        ValueError: the pack or the weights are not the ones that the recipe names, or do not fit it, or there are not
            so many devices.
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
    ) -> None:
        if pack.hash != recipe.data:
            raise ValueError(f"the recipe was made for data {recipe.data[:12]}, this pack is {pack.hash[:12]}")
        if recipe.weights and (weights is None or hashing.sha256_file(weights) != recipe.weights):
            raise ValueError(f"the recipe was made for weights {recipe.weights[:12]}, which {weights} does not hold")
        self.recipe = recipe
        self.pack = pack
        self.split = split_pack(pack, recipe.split_seed, recipe.draw, recipe.images_per_class)
        self._store = features or FeatureCache()
        self._frozen: FrozenFeatures | None = None
        self.device = device or default_device()
        self.folder = folder
        self.epochs: tuple[Epoch, ...] = ()
        self.resumed_at: tuple[int, ...] = ()

        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        self._compiled = compiled
        file = weights if recipe.weights else None
        precision = precision or default_precision(self.device)
        self._learner = Learner(recipe, file, self.device, precision, compiled)
        self._schedule: Schedule = recipe.schedule.build(SCHEDULES)
        self._noisy = noisy
        self._devices = devices
        check_devices(self.device, devices)
        self._team: WorkerGroup | None = None
        self._known: int | None = None
        self._job = {  # what a follower needs beside its device
            "recipe": recipe.as_dict(),
            "pack": str(pack.folder.absolute()),
            "weights": str(file.absolute()) if file else None,
            "features": str(self._store.root.absolute()) if self._store.root else None,
            "precision": precision,
            "compiled": compiled,
        }
        self._start_accuracy: float | None = None
        self._val: Evaluation | None = None
        if folder is not None:
            self._resume(folder)

    @property
    def model(self) -> nn.Module:
        """The network as it stands now."""
        network: nn.Module = self._learner.model
        return network

    def __iter__(self) -> Iterator[Epoch]:
        """Train on, one epoch at a time, until the recipe's last.

        Raises:
            DivergedError: the loss became NaN or infinite; the message names epoch and step.
            FollowerError: another of several devices could not go on; the message says why.
            LostError: the process of another device was lost. A new Run may go on from the last checkpoint.
        """
        try:
            while len(self.epochs) < self.recipe.epochs:
                if not self.epochs:
                    self._begin()
                self._call_team()
                epoch = self._train_epoch() if self.recipe.uses_gradient_steps else self._fit_epoch()
                self.epochs = (*self.epochs, epoch)
                if self.folder is not None:
                    checkpoints.save(self.folder, len(self.epochs), self.state_dict())
                yield epoch
        finally:  # whoever iterates may have left, or failed
            self._leave_team()

    def train_as_worker(self, this_rank: Rank, tasks: Iterable[dict[str, Any]]) -> None:
        """Train every epoch that the leader of a team begins, as another of its devices.

        Args:
            this_rank: the place of this one.
            tasks: what the leader said to each, as it comes (see `_call_team`).
        """
        self._learner.this_rank = this_rank
        for task in tasks:
            if task["state"] is not None:
                self._learner.load_state_dict(task["state"])
            self.epochs = tuple(epoch_from_dict(epoch) for epoch in task["epochs"])
            self._take_steps(len(self.epochs))

    def evaluate(self, part: Part, noisy: bool = False) -> Evaluation:
        """Judge the network as it stands now on one part of the data.

        Args:
            part: which.
            noisy: whether also under every kind of noise, which takes several times as long.
        """
        places = self.split.of(part)
        found = self._val if part == "val" else None
        if found is None and self._frozen is not None and part != "test":
            frozen, device = self._frozen, self.device
            upper, rows = frozen.split_model.upper, self._rows(frozen, places)
            self.model.eval()
            found = evaluate(upper, rows, lambda features: features.to(device), part, places)
        elif found is None:
            found = evaluate(self.model, self._batches(places), self._learner.prepare, part, places)
        if noisy:
            under = noisy_accuracies(self.model, lambda: self._batches(places), self._learner.prepare, places)
            return replace(found, noisy=under)
        return found

    def record(self, trial: str = "run", phase: Phase = "search", error: str | None = None) -> Record:
        """What the run has come to: finished after its last epoch, failed where there is an error, else pruned."""
        done = len(self.epochs) == self.recipe.epochs
        status: Status = "failed" if error else "finished" if done else "pruned"
        return Record(
            trial=trial,
            phase=phase,
            key=self.recipe.key,
            id=self.recipe.id,
            recipe=self.recipe.as_dict(),
            status=status,
            epochs=self.epochs,
            parameters=count_parameters(self.model),
            trainable_parameters=self._learner.count_trainable(),
            seconds=sum(epoch.seconds for epoch in self.epochs),
            val=self.evaluate("val") if status == "finished" else None,
            error=error,
            resumed_at=self.resumed_at,
            start_accuracy=self._start_accuracy,
            flops=self._flops,
            arithmetic=self._arithmetic,
        )

    @property
    def _arithmetic(self) -> str:
        said: list[str] = [self._learner.precision]
        said += ["compiled"] if self._compiled else []
        said += [f"{self._devices} devices"] if self._is_divided else []
        return ", ".join(said)

    @cached_property
    def _flops(self) -> int:
        # Counted by sending an image through, so only where a record asks: not in every process that opens the run.
        channels = self.recipe.colour.build(INPUT_CHANNELS).channels
        return count_flops(merge_adapters(self.model), self.recipe.image_size, channels)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on, as nested plain data and tensors."""
        return {
            "recipe": self.recipe.id,
            "epochs": [as_dict(epoch) for epoch in self.epochs],
            "resumed_at": list(self.resumed_at),
            "start_accuracy": self._start_accuracy,
            **self._learner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was called.

        Raises:
            ValueError: the state belongs to another recipe.
        """
        if state["recipe"] != self.recipe.id:
            raise ValueError(f"this state belongs to recipe {state['recipe'][:12]}, not to {self.recipe.id[:12]}")
        self._learner.load_state_dict(state)
        self.epochs = tuple(epoch_from_dict(epoch) for epoch in state["epochs"])
        self.resumed_at = tuple(state["resumed_at"])
        self._start_accuracy = state["start_accuracy"]
        self._val = None
        self._known = None
        if self.epochs:
            self._set_pace(len(self.epochs) - 1)  # whatever is asked of it now is asked as it would have been then

    def _resume(self, folder: Path) -> None:
        state = checkpoints.load(folder)
        if state is not None:
            self.load_state_dict(state)
            self.resumed_at = (*self.resumed_at, len(self.epochs))
            log.info("recipe %s goes on after epoch %d", self.recipe.id[:12], len(self.epochs))

    def _batches(self, places: Indices) -> Iterator[Batch]:
        found = iter_batches(self.pack, places, batch_size=max(MIN_EVALUATION_BATCH, self.recipe.batch_size))
        return to_device(found, self.device, copy_to_gpu=False)  # noise is made in main memory

    def _rows(self, frozen: FrozenFeatures, places: Indices) -> Iterator[Batch]:
        size = max(MIN_EVALUATION_BATCH, self.recipe.batch_size)
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            yield frozen.rows(chosen), torch.from_numpy(self.pack.labels[chosen])

    def _begin(self) -> None:
        if self._learner.needs_head_fit:
            self._fit_head()
        self._set_pace(0)
        self._start_accuracy = self.evaluate("val").accuracy

    def _fit_head(self) -> None:
        train = self.split.train
        embeddings = self._kept(split_at_classifier(self.model)).rows(train)
        self._learner.fit_head(embeddings, torch.from_numpy(self.pack.labels[train]))

    def _set_pace(self, number: int) -> None:
        """Freeze and unfreeze for an epoch; where something is frozen, begin with what that makes of images."""
        losses = tuple(epoch.val_loss for epoch in self.epochs[:number])
        if not self._learner.set_pace(TrainingProgress(number, self.recipe.epochs, losses)):
            return
        self._frozen = None
        # Mixed or freshly drawn images are others in every step: of those nothing can be kept.
        fixed = self.recipe.views is not None or self.recipe.augmentation.name == "none"
        if not fixed or self.recipe.mixing.name != "none" or not self._learner.lowest_block_is_frozen:
            return
        cut = self._learner.frozen_split()
        if cut is not None and is_worth_caching(cut, self.model, self.recipe, len(self.split.train_and_val)):
            self._learner.split_model = cut
            self._frozen = self._kept(cut)

    def _kept(self, frozen_split: SplitModel) -> FrozenFeatures:
        return FrozenFeatures(frozen_split, self.recipe, self.pack, self.split, self._learner.prepare, self._store)

    def _training_batches(self, order: Indices, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of an epoch's steps."""
        recipe, learner = self.recipe, self._learner
        chance = torch.Generator().manual_seed(derive_seed(recipe.seed, "augmentation", number))
        version = number % recipe.views if recipe.views is not None and learner.lowest_block_is_frozen else None
        if self._frozen is not None:
            for start in range(0, len(order), recipe.batch_size):
                chosen = order[start : start + recipe.batch_size]
                labels = torch.from_numpy(self.pack.labels[chosen])
                yield self._frozen.rows(chosen, version), learner.soft_targets(labels)
            return
        there = version is None and learner.can_augment_on_device
        found = to_device(iter_batches(self.pack, order, recipe.batch_size), self.device, there)
        for step, (images, labels) in enumerate(found):
            if version is None:
                yield learner.augment_batch(images, labels, chance)
            else:
                chosen = order[step * recipe.batch_size :][: recipe.batch_size]
                drawn = augmented_view(images, chosen, recipe.augmentation, version)
                yield learner.prepare(drawn), learner.soft_targets(labels)

    def _fit_epoch(self) -> Epoch:
        """The one epoch of a head in closed form."""
        usage = ResourceUsage(self.device)
        self._fit_head()
        training_seconds = usage.seconds
        train = self.evaluate("train")
        return self._epoch(usage, training_seconds, train.loss, train.accuracy)

    @property
    def _is_divided(self) -> bool:
        """Whether several devices take the steps of an epoch at the current pace.

        Not those of a head on embeddings: they take less time than to agree on them. The leader takes them alone, and
        tells the others of it once there is more to move.
        """
        return self._devices > 1 and self.recipe.uses_gradient_steps and not self._learner.trains_only_head

    def _call_team(self) -> None:
        """Let the other devices begin with the next epoch, if they are to take part in it."""
        if self._devices == 1:
            return
        number = len(self.epochs)
        self._set_pace(number)
        if not self._is_divided:
            self._learner.this_rank = SINGLE_PROCESS
            return
        if self._team is None:
            self._team = WorkerGroup({**self._job, "threads": torch.get_num_threads()}, self.device, self._devices)
        self._learner.this_rank = self._team.this_rank
        state = None if self._known == number else self._learner.state_dict()
        self._team.send_task({"epochs": [as_dict(epoch) for epoch in self.epochs], "state": state})
        self._known = number + 1

    def _leave_team(self) -> None:
        team, self._team, self._known = self._team, None, None
        self._learner.this_rank = SINGLE_PROCESS
        if team is not None:
            team.close()

    def _train_epoch(self) -> Epoch:
        usage = ResourceUsage(self.device)
        number = len(self.epochs)
        try:
            taken = self._take_steps(number)
        except RuntimeError as error:
            if self._team is not None:
                self._team.raise_worker_error(error)
            raise
        if self._learner.this_rank.size > 1 and self._team is not None:
            self._team.finish_task()
        training_seconds = usage.seconds
        check_train_losses(taken.losses, number + 1)
        steps = len(taken.losses)
        return replace(
            self._epoch(usage, training_seconds, math.fsum(taken.losses) / steps, sum(taken.hits) / taken.images),
            learning_rate=taken.rate,
            gradient_norm=math.fsum(taken.norms) / steps,
            gradient_norms=tuple(taken.norms[:LOGGED_GRADIENT_NORMS]) if number == 0 else (),
        )

    def _take_steps(self, number: int) -> StepStats:
        """Train an epoch, or this device's part in it."""
        recipe, rank = self.recipe, self._learner.this_rank.rank
        # Each device of a team drops other activations.
        torch.manual_seed(derive_seed(recipe.seed, "dropout", number, *([rank] if rank else [])))
        order = shuffle_indices(self.split.train, recipe.batch_size, derive_seed(recipe.seed, "order", number))
        steps = math.ceil(len(order) / recipe.batch_size)
        self._set_pace(number)
        seen: list[tuple[Tensor, ...]] = []
        rate = 0.0
        for step, (inputs, targets) in enumerate(self._training_batches(order, number)):
            rate = recipe.learning_rate * self._schedule((number * steps + step) / (recipe.epochs * steps))
            seen.append(self._learner.step(inputs, targets, rate))
        # Only now are the numbers fetched: until here nothing made a GPU wait.
        losses, hits, norms = (torch.stack(each).tolist() for each in zip(*seen, strict=True))
        return StepStats(losses, hits, norms, rate, len(order))

    def _epoch(self, usage: ResourceUsage, training_seconds: float, train_loss: float, train_accuracy: float) -> Epoch:
        """The network as it stands, judged, as the epoch that has just been trained; without what steps say."""
        number = len(self.epochs)
        self._val = None
        self._val = val = self.evaluate("val")
        check_val_loss(val.loss, number + 1)
        return Epoch(
            epoch=number + 1,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            val_top5_accuracy=val.top5_accuracy,
            val_balanced_accuracy=val.balanced_accuracy,
            val_calibration_error=val.calibration_error,
            val_noisy_accuracy=self._noisy_accuracy() if self._noisy else None,
            learning_rate=0.0,
            gradient_norm=0.0,
            distance=self._learner.distance(),
            micro_batch=self._learner.micro_batch,
            seconds=usage.seconds,
            images_per_second=len(self.split.train) / training_seconds,
            **usage.system_metrics(),
        )

    def _noisy_accuracy(self) -> float:
        places = self.split.val
        copy = noisy_batches(self._batches(places), places)
        return evaluate(self.model, copy, self._learner.prepare, "val", places).accuracy
