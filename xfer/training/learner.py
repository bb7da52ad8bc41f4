"""Learner: the network of a recipe with its loss and optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from xfer.devices.device import Precision
from xfer.devices.microbatching import MicroBatcher
from xfer.distributed.process_group import SINGLE_PROCESS, PeerLostError, Rank
from xfer.distributed.sync_batch_norm import gather_batch, sync_batch_norm
from xfer.feature_extraction.model_split import EMBEDDINGS, Embedder, SplitModel, split_at_frozen
from xfer.linear_heads import fit_closed_form, fit_head
from xfer.measure.accuracy import Preprocess
from xfer.methods.balance import BALANCES, Balance
from xfer.methods.batch_norm import BATCH_NORM_MODES, BatchNormMode
from xfer.methods.embedding_losses import EMBEDDING_LOSSES, EmbeddingLoss
from xfer.methods.freezing import TrainingProgress
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.losses import LOSSES, Loss
from xfer.methods.optimizers import OPTIMIZERS, build_param_groups
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models.params import Param, named_params
from xfer.recipe import Recipe
from xfer.training.averaging import (
    NO_STEPS,
    WeightAverage,
    estimate_statistics,
    following_batch_norms,
    trained_parameters,
)
from xfer.training.gradient import clip_gradient, compute_gradient, parameters_of
from xfer.training.networks import build_network
from xfer.training.optimizer_state import load_optimizer_state

Result = TypeVar("Result")

log = logging.getLogger(__name__)

MAX_ERROR_LENGTH = 200
"""Maximum length of the reason for which torch.compile has failed, in characters; it may hold a compiler's command."""


class Learner:
    """Model, loss and optimizer of a recipe; runs one training step at a time.

    Args:
        recipe: what to train.
        weights: file with the recipe's weights; None for a strategy that starts from random weights.
        device: where to train.
        precision: number format of training steps. Evaluation and everything else uses float32.
        compiled: whether steps go through torch.compile. Compiling takes minutes before the first step, and again when
            other parameters start to move; torch caches the result for the user's other processes on this machine. If
            compiling fails, training continues without, and `compile_error` says why. Not run on a GPU.
        class_counts: number of training images of each class [C], for `recipe.balance`; by default all are equal.
    """

    def __init__(
        self,
        recipe: Recipe,
        weights: Path | None,
        device: torch.device,
        precision: Precision = "float32",
        compiled: bool = False,
        class_counts: Tensor | None = None,
    ) -> None:
        self._recipe = recipe
        self._device = device
        self._precision = precision
        model = build_network(recipe, weights)
        self.model: Any = model.to(device).to(memory_format=torch.channels_last)
        self.compile_error = ""
        """Why torch.compile has failed; empty if it has not, or was not asked for."""
        self._compiled_model: Any = torch.compile(self.model) if compiled else self.model
        self._strategy: Strategy = recipe.strategy.build(STRATEGIES)
        self._loss: Loss = recipe.loss.build(LOSSES)
        balance: Balance = recipe.balance.build(BALANCES)
        counts = (torch.ones(recipe.classes) if class_counts is None else class_counts.float()).clamp(min=1).to(device)
        self._class_weights = balance.loss_weights(counts) if balance.loss_weights else None
        self._logit_offsets = balance.logit_offsets(counts) if balance.logit_offsets else None
        self._batch_norm_mode: BatchNormMode = recipe.batch_norm.build(BATCH_NORM_MODES)
        self._embedding_loss: EmbeddingLoss | None = recipe.embedding_loss.build(EMBEDDING_LOSSES)
        params = named_params(self.model)
        groups = build_param_groups(self.model, params, recipe.weight_decay)
        if self._strategy.regularizer is not None:
            for group in groups:
                group["weight_decay"] = group["weight_decay"] if group["depth"] == 0 else 0.0
        self.embedding_loss_module: nn.Module | None = None
        """Computes the embedding loss from embeddings [B, D] and labels [B]; None if the recipe has none."""
        if self._embedding_loss is not None:
            self.embedding_loss_module = self._embedding_loss.build(self._embedding_width(), recipe.classes).to(device)
            if loss_parameters := list(self.embedding_loss_module.parameters()):
                # Parameters of the loss itself are as new as the head, so they train like it.
                head = next(group for group in groups if group["depth"] == 0 and group["kind"] == "weight")
                groups.append({**head, "params": loss_parameters})
        self.optimizer: torch.optim.Optimizer = recipe.optimizer.build(OPTIMIZERS, groups, recipe.learning_rate)
        self._has_pace = False
        self.split_model: SplitModel | None = None
        """The network in two halves, if steps start from features of the frozen half."""
        self.trainable_names = self._names_trained_at_any_time()
        """Entries of the network's state that can ever differ from their start."""
        averaged = trained_parameters(self.model, self.trainable_names)
        self.average: WeightAverage | None = WeightAverage(averaged) if averaged else None
        """Moving average of the weights, from the first step that trains more than the head; None if no step does."""
        body = self.body_tensors()
        self.initial_body = [tensor.detach().clone() for tensor in body]
        """Copies of `body_tensors` from before the first step."""
        self._regularized = body if self._strategy.regularizer is not None else []  # looked up once, not in every step
        self.microbatcher = MicroBatcher()
        self._running_statistics: list[Tensor] = []
        self.rank: Rank = SINGLE_PROCESS
        """This device's rank among those that share every batch."""

    @property
    def micro_batch(self) -> int | None:
        """Number of images that go through the network at a time; None if whole batches fit in memory."""
        return self.microbatcher.size

    @property
    def precision(self) -> Precision:
        """Current number format of steps. A head alone on embeddings trains in float32, as in a batch of probes."""
        return "float32" if self.trains_only_head else self._precision

    @property
    def compiled(self) -> bool:
        """Whether steps at the current pace go through torch.compile: those of the whole network on its own."""
        exchanges = bool(self._running_statistics) and self.rank.size > 1
        whole = self.split_model is None and self._embedding_loss is None
        return self._compiled_model is not self.model and whole and not exchanges

    @property
    def trains_only_head(self) -> bool:
        """Whether steps only train a head on cached embeddings, which takes very little time."""
        return self.split_model is not None and self.split_model.cut_point == EMBEDDINGS

    @property
    def lowest_block_is_frozen(self) -> bool:
        """Whether the lowest block is frozen at the current pace."""
        lowest = [group for group in self.optimizer.param_groups if group["depth"] > 0 and group["height"] == 0]
        return all(group["pace"] == 0 for group in lowest)

    @property
    def needs_head_fit(self) -> bool:
        """Whether the strategy fits the head before the first step."""
        return self._strategy.fit is not None and self._strategy.steps

    def set_pace(self, progress: TrainingProgress) -> bool:
        """Freeze and unfreeze for an epoch: groups of pace 0 need no gradient, and frozen modules go to eval mode.

        In training mode a frozen batch norm would keep updating its running statistics.

        Returns:
            Whether other groups move than before. If so, `split_model` is reset to None.
        """
        before = [group["pace"] > 0 for group in self.optimizer.param_groups] if self._has_pace else None
        for group in self.optimizer.param_groups:
            group["pace"] = self._pace(group, progress)
            for parameter in group["params"]:
                parameter.requires_grad_(group["pace"] > 0)
        set_train_mode(self.model, True, self._batch_norm_mode)
        batch_norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.training]
        self._running_statistics = [buffer for module in batch_norms for buffer in module.buffers()]
        self._has_pace = True
        changed = before != [group["pace"] > 0 for group in self.optimizer.param_groups]
        if changed:
            self.split_model = None
        return changed

    def frozen_split(self) -> SplitModel | None:
        """Split the network as high as it is frozen now, to be assigned to `split_model` if features are cached.

        Returns:
            None if the network cannot be split, or the embedding loss needs embeddings below the split.
        """
        channels = self._recipe.colour.build(INPUT_CHANNELS).channels
        split = split_at_frozen(self.model, self._recipe.image_size, channels)
        if split is not None and self._embedding_loss is not None and split.cut_point != EMBEDDINGS:
            return None
        return split

    def step(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> tuple[Tensor, ...]:
        """Train one step on a batch.

        A batch that does not fit in memory goes through the network in micro-batches, and the step is that of the whole
        batch: gradients are averaged, weighted by the number of images, before they are clipped. Two things differ:
        batch norms in training mode use the statistics of a micro-batch (and are updated once for each), and dropout
        draws other numbers. A network without either takes the same step.

        On several devices, each takes its shard of the batch, in micro-batches if necessary, and gradients are summed
        over devices before anything else is done with them. Batch norms in training mode and losses that compare images
        then see the whole batch, so only dropout's numbers differ.

        Args:
            inputs: prepared images [B, C, H, W], or features of the lower half if `split_model` is set.
            targets: probabilities [B, C].
            learning_rate: for groups of pace 1.

        Returns:
            Loss, number of correctly classified images, and gradient norm before clipping: scalars on the device.

        Raises:
            MemoryError: not even the smallest micro-batches fit.
            PeerLostError: another device's process has ended.
        """
        images = len(inputs)
        shard = self.rank.shard_of(images)
        inputs = inputs[shard.indices].to(self._device, non_blocking=True)
        targets = targets.to(self._device, non_blocking=True)
        shard_targets = targets[shard.indices]

        def micro_batch_loss(part: slice) -> tuple[Tensor, Tensor]:
            return self._logits_and_loss(inputs[part], shard_targets[part], targets)

        def gradient() -> tuple[Tensor, Tensor]:
            return compute_gradient(
                micro_batch_loss,
                shard_targets,
                self.optimizer,
                self._running_statistics,
                self.microbatcher,
                shard,
                self.rank,
                self._indivisible_reason(),
            )

        loss, correct = self._compiled_or_plain(gradient)
        if self._strategy.regularizer is not None:
            self._strategy.regularizer.add_gradient(self._regularized, self.initial_body)
        moving = [parameter for parameter in parameters_of(self.optimizer) if parameter.grad is not None]
        norm = clip_gradient(moving, self._recipe.clip_norm, self._recipe.clip_value)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["pace"] * (1.0 if group["depth"] == 0 else self._recipe.body_rate)
        self.optimizer.step()
        if self.average is not None and self.rank.index == 0 and (self.average.steps or self._trains_body):
            self.average.update()
        return loss, correct, norm

    def fit_head(self, embeddings: Tensor, labels: Tensor) -> None:
        """Fit the head to convergence.

        Args:
            embeddings: of the unaugmented training part, [N, D].
            labels: int64 [N].
        """
        fit, head = self._strategy.fit, self.model.get_classifier()
        assert fit is not None, "only a strategy with a head fit can fit its head"
        embeddings, labels = embeddings.to(self._device), labels.to(self._device)
        if type(head) is not nn.Linear or head.bias is None:  # no closed form: iterate from the current head
            fit_head(head, embeddings, labels, penalty=fit.penalty)
            return
        [(weight, bias)] = fit_closed_form(fit.how, embeddings, labels, self._recipe.classes, [fit.penalty])
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)

    def use_average(self, images: Tensor, prepare: Preprocess) -> None:
        """Replace the weights by their average, and the batch statistics that follow them by those of images.

        Args:
            images: uint8 [N, 3, H, W], see `estimate_statistics`.
            prepare: preprocesses the images.
        """
        assert self.average is not None, "a run that only trains a head has no average"
        self.model.load_state_dict(self.average.tensors, strict=False)
        if batch_norms := following_batch_norms(self.model, self.trainable_names, self._batch_norm_mode):
            estimate_statistics(self.model, batch_norms, images, prepare)

    def count_trainable(self) -> int:
        """Count the network's parameters that move at any time during the run."""
        trained = self._ids_trained_at_any_time()
        return sum(parameter.numel() for parameter in self.model.parameters() if id(parameter) in trained)

    def distance(self) -> float:
        """Return the L2 distance of everything below the head from its start, relative to its initial norm."""
        with torch.no_grad():
            moved = [now - start for now, start in zip(self.body_tensors(), self.initial_body, strict=True)]
            return float(nn.utils.get_total_norm(moved) / nn.utils.get_total_norm(self.initial_body).clamp_min(1e-12))

    def body_tensors(self) -> list[Any]:
        """Return all tensors below the head as the network uses them: a weight with its adapter, if it has one."""
        head = {id(parameter) for parameter in self.model.get_classifier().parameters()}
        adapted = [module for module in self.model.modules() if parametrize.is_parametrized(module)]
        adapters = {part for module in adapted for part in module.parametrizations.modules()}
        plain = [
            parameter
            for module in self.model.modules()
            if module not in adapters
            for parameter in module.parameters(recurse=False)
            if id(parameter) not in head
        ]
        return plain + [getattr(module, name) for module in adapted for name in module.parametrizations]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a step changes, and the micro-batch size that fits in memory."""
        loss_module = self.embedding_loss_module
        loss_state = {} if loss_module is None else {"embedding_loss": loss_module.state_dict()}
        trained = {name: tensor for name, tensor in self.model.state_dict().items() if name in self.trainable_names}
        state = {"model": trained, "optimizer": self.optimizer.state_dict(), **loss_state}
        average = {"average": self.average.state_dict()} if self.average is not None and self.average.steps else {}
        return {**state, **average, "micro_batch": self.microbatcher.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. A finished run may come without the optimizer's state."""
        assert state["model"].keys() == self.trainable_names, "a state must hold exactly the tensors that can move"
        self.model.load_state_dict(state["model"], strict=False)
        if self.embedding_loss_module is not None:
            self.embedding_loss_module.load_state_dict(state["embedding_loss"])
        if "optimizer" in state:
            load_optimizer_state(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state.get("average") or NO_STEPS)
        self.microbatcher = MicroBatcher(state.get("micro_batch"))

    def _compiled_or_plain(self, compute: Callable[[], Result]) -> Result:
        """Compute something with the compiled network, and from the first error on without torch.compile.

        Failed compilations raise many kinds of errors. One that has another cause is raised again without compilation.
        """
        try:
            return compute()
        except Exception as error:
            if not self.compiled or isinstance(error, MemoryError | PeerLostError):
                raise
            cause = getattr(error, "inner_exception", error)
            lines = str(getattr(cause, "output", None) or cause).strip().splitlines() or [""]
            reason = next(
                (line for line in lines if "error:" in line), lines[0]
            )  # a compiler's, if it was one that failed
            self.compile_error = f"{type(cause).__name__}: {reason}"[:MAX_ERROR_LENGTH]
            self._compiled_model = self.model
            log.warning("torch.compile has failed, and training continues without it: %s", self.compile_error)
        return compute()  # only here is the error freed, and with it what the attempt had allocated

    def _indivisible_reason(self) -> str | None:
        """Why this device cannot split its shard; None if it can."""
        if self._embedding_loss is not None:
            return f"embedding_loss {self._recipe.embedding_loss} compares its images"
        if self._running_statistics and self.rank.size > 1:
            return f"its batch norms use the statistics of all {self.rank.size} devices, which must run in step"
        return None

    def _logits_and_loss(self, inputs: Tensor, targets: Tensor, batch_targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and mean loss of a micro-batch; `batch_targets` are those of the whole batch on all devices."""
        exchanges = bool(self._running_statistics)
        exchange = sync_batch_norm(self.rank, len(batch_targets)) if exchanges else nullcontext()
        if self._embedding_loss is None or self.embedding_loss_module is None:
            with self._autocast(), exchange:
                # Communication with other devices inside the network cannot be compiled.
                model = self._compiled_model if self.compiled else self.model
                logits = (model if self.split_model is None else self.split_model.upper)(inputs)
            return logits.float(), self._classification_loss(logits.float(), targets)
        with self._autocast(), exchange:
            embeddings = inputs if self.split_model is not None else Embedder(self.model)(inputs)
            logits = self.model.get_classifier()(embeddings)
        batch_embeddings = gather_batch(embeddings.float(), self.rank, len(batch_targets))
        embedding_loss = self.embedding_loss_module(batch_embeddings, batch_targets.argmax(dim=1))
        loss = self._classification_loss(logits.float(), targets) + self._embedding_loss.weight * embedding_loss
        return logits.float(), loss

    def _classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = self._loss(logits if self._logit_offsets is None else logits + self._logit_offsets, targets)
        return (losses if self._class_weights is None else losses * (targets @ self._class_weights)).mean()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _embedding_width(self) -> int:
        size, channels = self._recipe.image_size, self._recipe.colour.build(INPUT_CHANNELS).channels
        self.model.eval()
        with torch.no_grad():
            embeddings = Embedder(self.model)(torch.zeros(2, channels, size, size, device=self._device))
        return int(embeddings.shape[1])

    def _names_trained_at_any_time(self) -> set[str]:
        parameters, trained_ids = dict(self.model.named_parameters()), self._ids_trained_at_any_time()
        trained = {name for name, parameter in parameters.items() if id(parameter) in trained_ids}
        head = {id(parameter) for parameter in self.model.get_classifier().parameters()}
        statistics_move = self._batch_norm_mode(False) or any(id(parameters[name]) not in head for name in trained)
        return trained | (set(self.model.state_dict()) - parameters.keys() if statistics_move else set())

    def _ids_trained_at_any_time(self) -> set[int]:
        epochs = [TrainingProgress(epoch, self._recipe.epochs) for epoch in range(self._recipe.epochs)]
        return {
            id(parameter)
            for group in self.optimizer.param_groups
            if any(self._pace(group, progress) > 0 for progress in epochs)
            for parameter in group["params"]
        }

    @property
    def _trains_body(self) -> bool:
        return any(group["depth"] > 0 and group["pace"] > 0 for group in self.optimizer.param_groups)

    def _pace(self, group: dict[str, Any], progress: TrainingProgress) -> float:
        return self._strategy.pace(Param(group["depth"], group["kind"], group["height"]), progress)


def set_train_mode(module: nn.Module, training: bool, batch_norm_mode: BatchNormMode) -> None:
    """Set modules to training mode if anything in them moves, else to evaluation mode.

    Args:
        module: set recursively.
        training: mode of modules without parameters.
        batch_norm_mode: decides the mode of batch norms.
    """
    parameters = list(module.parameters())
    moves = any(parameter.requires_grad for parameter in parameters) if parameters else training
    module.training = batch_norm_mode(moves) if isinstance(module, _BatchNorm) else moves
    for child in module.children():
        set_train_mode(child, moves, batch_norm_mode)
