"""Run: a recipe being trained. Iterate it and it yields one Epoch after another."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfer import backbones, checkpoints, digest
from xfer.data.loader import batches, shuffled
from xfer.data.pack import Pack
from xfer.data.split import split_pack
from xfer.measure.accuracy import evaluate
from xfer.measure.cost import Usage, count_parameters
from xfer.methods.augmentations import AUGMENTATIONS, Augmentation
from xfer.methods.freezing import Moment
from xfer.methods.losses import LOSSES, Loss
from xfer.methods.mixing import MIXINGS, Mixing
from xfer.methods.optimizers import OPTIMIZERS, groups_of
from xfer.methods.schedules import SCHEDULES, Schedule
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.params import Param, params_of
from xfer.randomness import seed_for
from xfer.recipe import Recipe
from xfer.records import Epoch, Evaluation, Part, Phase, Record, Status, as_dict, epoch_from

log = logging.getLogger(__name__)


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number: this run has come to nothing."""


def default_device() -> torch.device:
    """A GPU where there is one, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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

    Raises:
        ValueError: the pack or the weights are not the ones that the recipe names, or do not fit it.
    """

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        weights: Path | None = None,
        device: torch.device | None = None,
        folder: Path | None = None,
    ) -> None:
        if pack.hash != recipe.data:
            raise ValueError(f"the recipe was made for data {recipe.data[:12]}, this pack is {pack.hash[:12]}")
        if recipe.weights and (weights is None or digest.of_file(weights) != recipe.weights):
            raise ValueError(f"the recipe was made for weights {recipe.weights[:12]}, which {weights} does not hold")
        self.recipe = recipe
        self.pack = pack
        self.split = split_pack(pack, recipe.split_seed, recipe.draw)
        self.device = device or default_device()
        self.folder = folder
        self.epochs: tuple[Epoch, ...] = ()
        self.resumed_at: tuple[int, ...] = ()

        torch.manual_seed(seed_for(recipe.seed, "weights"))
        model = backbones.build(
            recipe.backbone,
            recipe.classes,
            recipe.image_size,
            weights if recipe.weights else None,
            dict(recipe.backbone_args),
        )
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self._prepare = backbones.Preparation(backbones.input_statistics(model), self.device)
        self._strategy: Strategy = recipe.strategy.build(STRATEGIES)
        self._schedule: Schedule = recipe.schedule.build(SCHEDULES)
        self._augment: Augmentation = recipe.augmentation.build(AUGMENTATIONS)
        self._mix: Mixing = recipe.mixing.build(MIXINGS)
        self._loss: Loss = recipe.loss.build(LOSSES)
        groups = groups_of(self.model, params_of(self.model), recipe.weight_decay)
        self._optimizer: torch.optim.Optimizer = recipe.optimizer.build(OPTIMIZERS, groups, recipe.learning_rate)
        self._val: Evaluation | None = None
        if folder is not None:
            self._resume(folder)

    def __iter__(self) -> Iterator[Epoch]:
        """Train on, one epoch at a time, until the recipe's last.

        Raises:
            DivergedError: the loss became NaN or infinite; the message names epoch and step.
        """
        while len(self.epochs) < self.recipe.epochs:
            epoch = self._train_epoch()
            self.epochs = (*self.epochs, epoch)
            if self.folder is not None:
                checkpoints.save(self.folder, len(self.epochs), self.state_dict())
            yield epoch

    def evaluate(self, part: Part) -> Evaluation:
        """Judge the network as it stands now on one part of the data."""
        if part == "val" and self._val is not None:
            return self._val
        places = self.split.of(part)
        found = batches(self.pack, places, batch_size=max(64, self.recipe.batch_size))
        return evaluate(self.model, found, self._prepare, part, places)

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
            trainable_parameters=self._count_moving(),
            seconds=sum(epoch.seconds for epoch in self.epochs),
            val=self.evaluate("val") if status == "finished" else None,
            error=error,
            resumed_at=self.resumed_at,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on, as nested plain data and tensors."""
        return {
            "recipe": self.recipe.id,
            "epochs": [as_dict(epoch) for epoch in self.epochs],
            "resumed_at": list(self.resumed_at),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was called.

        Raises:
            ValueError: the state belongs to another recipe.
        """
        if state["recipe"] != self.recipe.id:
            raise ValueError(f"this state belongs to recipe {state['recipe'][:12]}, not to {self.recipe.id[:12]}")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(_with_integer_keys(state["optimizer"]))
        _like_parameters(self._optimizer)
        self.epochs = tuple(epoch_from(epoch) for epoch in state["epochs"])
        self.resumed_at = tuple(state["resumed_at"])
        self._val = None

    def _resume(self, folder: Path) -> None:
        state = checkpoints.load(folder)
        if state is not None:
            self.load_state_dict(state)
            self.resumed_at = (*self.resumed_at, len(self.epochs))
            log.info("recipe %s goes on after epoch %d", self.recipe.id[:12], len(self.epochs))

    def _train_epoch(self) -> Epoch:
        usage = Usage(self.device)
        number = len(self.epochs)
        recipe = self.recipe
        torch.manual_seed(seed_for(recipe.seed, "dropout", number))
        chance = torch.Generator().manual_seed(seed_for(recipe.seed, "augmentation", number))
        order = shuffled(self.split.train, recipe.batch_size, seed_for(recipe.seed, "order", number))
        steps = math.ceil(len(order) / recipe.batch_size)
        self._set_pace(Moment(number, recipe.epochs))
        losses, hits, norms = [], [], []
        rate = 0.0
        for step, (images, labels) in enumerate(batches(self.pack, order, recipe.batch_size)):
            rate = recipe.learning_rate * self._schedule((number * steps + step) / (recipe.epochs * steps))
            loss, correct, norm = self._train_step(images, labels, rate, chance)
            losses.append(loss)
            hits.append(correct)
            norms.append(norm)
        # Only now are the numbers fetched: until here nothing made a GPU wait.
        loss_per_step = torch.stack(losses).tolist()
        training_seconds = usage.seconds
        for step, value in enumerate(loss_per_step):
            if not math.isfinite(value):
                raise DivergedError(
                    f"the training loss became {value} in epoch {number + 1}, step {step + 1} of {steps}"
                )
        self._val = None
        self._val = self.evaluate("val")
        if not math.isfinite(self._val.loss):
            raise DivergedError(f"the validation loss became {self._val.loss} after epoch {number + 1}")
        return Epoch(
            epoch=number + 1,
            train_loss=math.fsum(loss_per_step) / steps,
            train_accuracy=int(torch.stack(hits).sum()) / len(order),
            val_loss=self._val.loss,
            val_accuracy=self._val.accuracy,
            learning_rate=rate,
            gradient_norm=float(torch.stack(norms).mean()),
            seconds=usage.seconds,
            images_per_second=len(order) / training_seconds,
            **usage.so_far(),
        )

    def _train_step(
        self, images: Tensor, labels: Tensor, rate: float, chance: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, number of right answers and gradient norm, as scalars still on the device."""
        targets = functional.one_hot(labels, self.recipe.classes).float()
        images, targets = self._mix(self._augment(images, chance), targets, chance)
        targets = targets.to(self.device)
        logits = self.model(self._prepare(images)).float()
        loss = self._loss(logits, targets).mean()
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        moving = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in moving if parameter.grad is not None])
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(moving, self.recipe.clip_norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        self._optimizer.step()
        correct = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()
        return loss.detach(), correct, norm.detach()

    def _set_pace(self, moment: Moment) -> None:
        """Freeze and unfreeze: groups of pace 0 need no gradient, and what is wholly frozen stands in eval mode.

        A frozen batch norm would otherwise go on updating its running statistics.
        """
        for group in self._optimizer.param_groups:
            group["pace"] = self._strategy.pace(Param(group["depth"], group["kind"]), moment)
            for parameter in group["params"]:
                parameter.requires_grad_(group["pace"] > 0)
        _set_mode(self.model, training=True)

    def _count_moving(self) -> int:
        moments = [Moment(epoch, self.recipe.epochs) for epoch in range(self.recipe.epochs)]
        return sum(
            parameter.numel()
            for group in self._optimizer.param_groups
            if any(self._strategy.pace(Param(group["depth"], group["kind"]), moment) > 0 for moment in moments)
            for parameter in group["params"]
        )


def _set_mode(module: nn.Module, training: bool) -> None:
    """Training mode where anything below moves, evaluation mode where everything is frozen."""
    parameters = list(module.parameters())
    module.training = any(parameter.requires_grad for parameter in parameters) if parameters else training
    for child in module.children():
        _set_mode(child, module.training)


def _with_integer_keys(state: dict[str, Any]) -> dict[str, Any]:
    """JSON knows only strings as keys; an optimizer numbers its parameters."""
    return {**state, "state": {int(index): values for index, values in state["state"].items()}}


def _like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment the memory layout of its parameter: with another one, kernels may add in another order."""
    inner = getattr(optimizer, "_base_optimizer", optimizer)  # Lookahead keeps its state in the one it wraps
    for parameter, state in inner.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
