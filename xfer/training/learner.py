"""Learner: the network of a recipe with its losses and its optimizer, one step at a time."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from xfer.devices.microbatching import MicroBatcher
from xfer.distributed.process_group import SINGLE_PROCESS, BatchShard, Rank
from xfer.distributed.sync_batch_norm import gather_batch, sync_batch_norm
from xfer.features.model_split import EMBEDDINGS, Embedder, SplitModel, split_at_frozen
from xfer.linear_heads import fit_closed_form, fit_head
from xfer.methods.augmentations import AUGMENTATIONS, GPU_AUGMENTATIONS, Augmentation
from xfer.methods.batch_norm import BATCH_NORM_MODES, BatchNormMode
from xfer.methods.embedding_losses import EMBEDDING_LOSSES, EmbeddingLoss
from xfer.methods.freezing import TrainingProgress
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.losses import LOSSES, Loss
from xfer.methods.mixing import MIXINGS, Mixing
from xfer.methods.optimizers import OPTIMIZERS, build_param_groups
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models.params import Param, named_params
from xfer.recipe import Recipe
from xfer.seeding import get_rng_state, set_rng_state
from xfer.training.networks import build_network, build_preprocessor

Precision = Literal["float32", "bfloat16"]
"""In which numbers a network computes while it is trained. Weights, loss and optimizer are float32 in any case."""


class Learner:
    """What learns: a network, what it is asked to do better at, and how it is changed.

    Args:
        recipe: what to train.
        weights: the file that the recipe names; None for a strategy from random weights.
        device: where.
        precision: what a step computes in. Evaluation and everything else is in float32, as is a network's use later.
        compiled: whether steps go through torch.compile, which takes minutes before the first one and again whenever
            other parameters move; torch keeps what it compiled for the user's other processes on this machine. Where it
            cannot compile, it goes on without. Not tried on a GPU yet.
    """

    def __init__(
        self,
        recipe: Recipe,
        weights: Path | None,
        device: torch.device,
        precision: Precision = "float32",
        compiled: bool = False,
    ) -> None:
        self._recipe = recipe
        self._device = device
        self._precision = precision
        model = build_network(recipe, weights)
        self.model: Any = model.to(device).to(memory_format=torch.channels_last)
        self._network: Any = _compiled(self.model) if compiled else self.model
        self.prepare = build_preprocessor(recipe, self.model, device)
        self._strategy: Strategy = recipe.strategy.build(STRATEGIES)
        self._augment: Augmentation = recipe.augmentation.build(AUGMENTATIONS)
        self._mix: Mixing = recipe.mixing.build(MIXINGS)
        self._loss: Loss = recipe.loss.build(LOSSES)
        self._follows: BatchNormMode = recipe.batch_norm.build(BATCH_NORM_MODES)
        self._term: EmbeddingLoss | None = recipe.embedding_loss.build(EMBEDDING_LOSSES)
        params = named_params(self.model)
        groups = build_param_groups(self.model, params, recipe.weight_decay)
        if self._strategy.regularizer is not None:
            for group in groups:
                group["weight_decay"] = group["weight_decay"] if group["depth"] == 0 else 0.0
        self._asked: nn.Module | None = None
        if self._term is not None:
            self._asked = self._term.build(self._width(), recipe.classes).to(device)
            if own := list(self._asked.parameters()):
                # What the term learns for itself is as new as the head, and goes with it.
                head = next(group for group in groups if group["depth"] == 0 and group["kind"] == "weight")
                groups.append({**head, "params": own})
        self._optimizer: torch.optim.Optimizer = recipe.optimizer.build(OPTIMIZERS, groups, recipe.learning_rate)
        self._paced = False
        self.split_model: SplitModel | None = None
        """The network in two, where steps begin with what the frozen half makes of images."""
        self._moved = self._names_that_move()
        body = self._body()
        self._start = [tensor.detach().clone() for tensor in body]
        self._anchored = body if self._strategy.regularizer is not None else []  # once: a step should not look for them
        self._fit = MicroBatcher()
        self._statistics: list[Tensor] = []
        self.this_rank: Rank = SINGLE_PROCESS
        """This device's place in a team, of which each takes a slice of every batch."""

    @property
    def micro_batch(self) -> int | None:
        """How many images go through the network at a time, where the memory does not hold a whole batch."""
        return self._fit.most

    @property
    def precision(self) -> Precision:
        """What steps compute in now: a head alone, on embeddings, in float32, as it does beside others of its kind."""
        return "float32" if self.trains_only_head else self._precision

    @property
    def trains_only_head(self) -> bool:
        """Whether steps move a head on embeddings that are there already, which takes next to no time."""
        return self.split_model is not None and self.split_model.place == EMBEDDINGS

    @property
    def can_augment_on_device(self) -> bool:
        """Whether images may be on the device before they are augmented."""
        return self._recipe.augmentation.name in GPU_AUGMENTATIONS

    def set_pace(self, moment: TrainingProgress) -> bool:
        """Freeze and unfreeze: groups of pace 0 need no gradient, and what is wholly frozen stands in eval mode.

        A frozen batch norm would otherwise go on updating its running statistics. Says whether other groups move than
        before; `halves` is then None, until whoever calls has cut the network anew.
        """
        before = [group["pace"] > 0 for group in self._optimizer.param_groups] if self._paced else None
        for group in self._optimizer.param_groups:
            group["pace"] = self._pace(group, moment)
            for parameter in group["params"]:
                parameter.requires_grad_(group["pace"] > 0)
        set_train_mode(self.model, True, self._follows)
        following = [each for each in self.model.modules() if isinstance(each, _BatchNorm) and each.training]
        self._statistics = [buffer for module in following for buffer in module.buffers()]
        self._paced = True
        changed = before != [group["pace"] > 0 for group in self._optimizer.param_groups]
        if changed:
            self.split_model = None
        return changed

    @property
    def lowest_block_is_frozen(self) -> bool:
        """Whether nothing moves, at the current pace, in the lowest block."""
        lowest = [group for group in self._optimizer.param_groups if group["depth"] > 0 and group["height"] == 0]
        return all(group["pace"] == 0 for group in lowest)

    def frozen_split(self) -> SplitModel | None:
        """The network cut as high as it is frozen now; None where it cannot be, or a loss wants what lies between.

        What comes of it becomes `halves` where whoever calls wants steps to begin with features.
        """
        channels = self._recipe.colour.build(INPUT_CHANNELS).channels
        found = split_at_frozen(self.model, self._recipe.image_size, channels)
        return None if found is not None and self._term is not None and found.place != EMBEDDINGS else found

    def soft_targets(self, labels: Tensor) -> Tensor:
        """Target probabilities [B, C] of labels [B]."""
        # Unlike one_hot, this asks nobody whether there are such classes: a GPU is not waited for.
        return torch.zeros(len(labels), self._recipe.classes, device=labels.device).scatter_(1, labels[:, None], 1.0)

    def augment_batch(self, images: Tensor, labels: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch, augmented and mixed with draws from `chance`.

        Once for each batch, in whatever parts a step then takes it.

        Args:
            images: uint8 [B, 3, H, W]; on the learner's device or, whatever the augmentation, in main memory.
            labels: int64 [B], in the same place.
            chance: what augmentation and mixing draw from.
        """
        images, targets = self._mix(self._augment(images, chance), self.soft_targets(labels), chance)
        return self.prepare(images), targets

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> tuple[Tensor, ...]:
        """Loss, number of right answers and gradient norm, as scalars still on the device.

        A batch that does not fit the memory goes through the network in parts, and the step is that of the whole batch:
        the gradients are added up, each part's weighted by its share of the images, before they are clipped. What the
        parts do not share are the statistics of a batch norm that follows its images, which are those of a part (and
        are updated once for each), and dropout's draws; a network without either takes the same step.

        In a team, this device takes its slice of the batch, in parts where it does not fit its memory, and gradients
        are added up over all devices before anything else is done with them. Batch norms that follow their images, and
        losses that compare them, then see the whole batch, so that here too only dropout's draws are others.

        Args:
            inputs: prepared images [B, C, H, W], or what the lower half makes of them where `halves` is set.
            targets: probabilities [B, C].
            rate: the learning rate where the pace is 1.

        Raises:
            MemoryError: not even the smallest parts fit.
            PartedError: another device of the team has ended.
        """
        own = self.this_rank.shard_of(len(inputs))
        inputs, targets = (each.to(self._device, non_blocking=True) for each in (inputs[own.place], targets))
        loss, correct = self._gradient(inputs, targets, own)
        if self._strategy.regularizer is not None:
            self._strategy.regularizer.add_gradient(self._anchored, self._start)
        moving = [each for group in self._optimizer.param_groups for each in group["params"] if each.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in moving])
        if self._recipe.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(moving, self._recipe.clip_norm, norm)
        if self._recipe.clip_value is not None:
            nn.utils.clip_grad_value_(moving, self._recipe.clip_value)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["pace"] * (1.0 if group["depth"] == 0 else self._recipe.body_rate)
        self._optimizer.step()
        return loss, correct, norm.detach()

    @property
    def needs_head_fit(self) -> bool:
        """Whether the strategy wants its head fitted before the first step."""
        return self._strategy.fit is not None and self._strategy.steps

    def fit_head(self, embeddings: Tensor, labels: Tensor) -> None:
        """Fit the head to convergence on embeddings [N, D] of the training part as it is, with labels [N]."""
        fit, head = self._strategy.fit, self.model.get_classifier()
        assert fit is not None, "a strategy that fits its head says how"
        embeddings, labels = embeddings.to(self._device), labels.to(self._device)
        if type(head) is not nn.Linear or head.bias is None:  # there is no closed form: from where it stands
            fit_head(head, embeddings, labels, penalty=fit.penalty)
            return
        [(weight, bias)] = fit_closed_form(fit.how, embeddings, labels, self._recipe.classes, [fit.penalty])
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)

    def count_trainable(self) -> int:
        """How many of the network's numbers move at any time during the run."""
        moving = self._ids_that_move()
        return sum(parameter.numel() for parameter in self.model.parameters() if id(parameter) in moving)

    def distance(self) -> float:
        """How far everything below the head is from where it started: L2, relative to the norm it had there."""
        with torch.no_grad():
            away = [now - start for now, start in zip(self._body(), self._start, strict=True)]
            return float(nn.utils.get_total_norm(away) / nn.utils.get_total_norm(self._start).clamp_min(1e-12))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step changes, and what it has found to fit the memory."""
        asked = {} if self._asked is None else {"embedding_loss": self._asked.state_dict()}
        moved = {name: tensor for name, tensor in self.model.state_dict().items() if name in self._moved}
        learned = {"model": moved, "optimizer": self._optimizer.state_dict(), **asked}
        return {**learned, "micro_batch": self._fit.most}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was called. A run that has come to its end needs no optimizer to be asked."""
        assert state["model"].keys() == self._moved, "a state holds what can move, and nothing else"
        self.model.load_state_dict(state["model"], strict=False)
        if self._asked is not None:
            self._asked.load_state_dict(state["embedding_loss"])
        if "optimizer" in state:
            self._optimizer.load_state_dict(_with_integer_keys(state["optimizer"]))
            _like_parameters(self._optimizer)
        self._fit = MicroBatcher(state.get("micro_batch"))

    def _gradient(self, inputs: Tensor, targets: Tensor, own: BatchShard) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the batch's mean loss with the parameters; that loss, and how many were right.

        An attempt for which the memory did not suffice leaves no trace: what it did to running statistics is undone,
        and dropout draws again what it drew. So a run whose memory runs out goes on like one that began with the
        smaller micro-batch.

        Args:
            inputs: of this device's slice of the batch.
            targets: of the whole batch.
            own: which slice that is.
        """
        statistics = [buffer.clone() for buffer in self._statistics]
        drawn = get_rng_state(self._device)
        answers = targets[own.place]

        def attempt(parts: list[slice]) -> tuple[Tensor, Tensor]:
            self._optimizer.zero_grad(set_to_none=True)
            losses, hits = [], []
            for part in parts:
                logits, loss = self._losses(inputs[part], answers[part], targets)
                loss = loss * ((part.stop - part.start) / len(inputs) * own.weight)
                torch.autograd.backward(loss)
                losses.append(loss.detach())
                hits.append((logits.argmax(dim=1) == answers[part].argmax(dim=1)).sum())
            return torch.stack(losses).sum(), torch.stack(hits).sum()

        def again() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(self._statistics, statistics, strict=True):
                buffer.copy_(before)
            set_rng_state(drawn, self._device)

        loss, correct = self._fit.run_split(
            len(inputs),
            attempt,
            again,
            least=2 if self._statistics else 1,  # one image has no variance
            indivisible_reason=self._undivided_because(),
        )
        if self.this_rank.size > 1:
            correct = correct * float(own.weight > 0)
            moving = [each for group in self._optimizer.param_groups for each in group["params"]]
            gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
            self.this_rank.all_reduce_many([*gradients, loss, correct])
        return loss, correct

    def _undivided_because(self) -> str | None:
        """Why this device cannot take its images in parts; None where it can."""
        if self._term is not None:
            return f"embedding_loss {self._recipe.embedding_loss} compares its images"
        if self._statistics and self.this_rank.size > 1:
            return (
                f"its batch norms follow the images of {self.this_rank.size} devices, which take them at the same time"
            )
        return None

    def _losses(self, inputs: Tensor, targets: Tensor, of_batch: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and the loss to be brought down, a scalar; `of_batch` are the whole batch's targets."""
        exchange = sync_batch_norm(self.this_rank, len(of_batch)) if self._statistics else nullcontext()
        if self._term is None or self._asked is None:
            with self._computing(), exchange:
                # What other devices are asked in the middle of a network cannot be compiled.
                network = self.model if self._statistics and self.this_rank.size > 1 else self._network
                logits = (network if self.split_model is None else self.split_model.upper)(inputs)
            return logits.float(), self._loss(logits.float(), targets).mean()
        with self._computing(), exchange:
            embeddings = inputs if self.split_model is not None else Embedder(self.model)(inputs)
            logits = self.model.get_classifier()(embeddings)
        compared = gather_batch(embeddings.float(), self.this_rank, len(of_batch))
        term = self._asked(compared, of_batch.argmax(dim=1))
        return logits.float(), self._loss(logits.float(), targets).mean() + self._term.weight * term

    def _computing(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _width(self) -> int:
        """How many numbers an embedding has."""
        size = self._recipe.image_size
        self.model.eval()
        with torch.no_grad():
            embeddings = Embedder(self.model)(self.prepare(torch.zeros(2, 3, size, size, dtype=torch.uint8)))
        return int(embeddings.shape[1])

    def _names_that_move(self) -> set[str]:
        """What of the network's state can differ at any time from what it started with."""
        parameters, moving = dict(self.model.named_parameters()), self._ids_that_move()
        moved = {name for name, parameter in parameters.items() if id(parameter) in moving}
        head = {id(parameter) for parameter in self.model.get_classifier().parameters()}
        statistics = self._follows(False) or any(id(parameters[name]) not in head for name in moved)
        return moved | (set(self.model.state_dict()) - parameters.keys() if statistics else set())

    def _ids_that_move(self) -> set[int]:
        moments = [TrainingProgress(epoch, self._recipe.epochs) for epoch in range(self._recipe.epochs)]
        return {
            id(parameter)
            for group in self._optimizer.param_groups
            if any(self._pace(group, moment) > 0 for moment in moments)
            for parameter in group["params"]
        }

    def _pace(self, group: dict[str, Any], moment: TrainingProgress) -> float:
        return self._strategy.pace(Param(group["depth"], group["kind"], group["height"]), moment)

    def _body(self) -> list[Any]:
        """Every tensor below the head as the network computes with it: with its adapter, where it has one."""
        head = {id(parameter) for parameter in self.model.get_classifier().parameters()}
        adapted = [module for module in self.model.modules() if parametrize.is_parametrized(module)]
        inside = {part for module in adapted for part in module.parametrizations.modules()}
        plain = [
            parameter
            for module in self.model.modules()
            if module not in inside
            for parameter in module.parameters(recurse=False)
            if id(parameter) not in head
        ]
        return plain + [getattr(module, name) for module in adapted for name in module.parametrizations]


def set_train_mode(module: nn.Module, training: bool, follows: BatchNormMode) -> None:
    """Training mode where anything below moves, evaluation mode where everything is frozen; batch norm as asked."""
    parameters = list(module.parameters())
    moves = any(parameter.requires_grad for parameter in parameters) if parameters else training
    module.training = follows(moves) if isinstance(module, _BatchNorm) else moves
    for child in module.children():
        set_train_mode(child, moves, follows)


def _compiled(model: nn.Module) -> Any:
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled is computed as it would have been without
    return torch.compile(model)


def _with_integer_keys(state: dict[str, Any]) -> dict[str, Any]:
    """JSON knows only strings as keys; an optimizer numbers its parameters."""
    return {**state, "state": {int(index): values for index, values in state["state"].items()}}


def _like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment the memory layout of its parameter: with another one, kernels may add in another order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
