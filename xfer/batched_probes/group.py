"""ProbeGroup: linear probes trained together, on embeddings that are computed once.

Each probe has the result of its own `Run`, within rounding: the same initial head, images, learning rates, loss and
clipping, and the same record. Heads in closed form are fitted together: several penalties need one decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from xfer.batched_probes.compatibility import HeadInit, can_batch, data_order_key, group_key
from xfer.batched_probes.heads import BatchedHeads, Head
from xfer.data.loader import shuffle_indices
from xfer.data.pack import Pack
from xfer.data.split import Indices, split_pack
from xfer.devices import heartbeat
from xfer.devices.device import default_device
from xfer.linear_heads import fit_closed_form
from xfer.measure.accuracy import Predictions
from xfer.measure.cost import ResourceUsage
from xfer.methods.schedules import SCHEDULES
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.recipe import Recipe
from xfer.records import Epoch, Evaluation, Part, Phase, Record
from xfer.seeding import derive_seed
from xfer.training.epochs import DivergedError, StepStats, TrainStats, build_epoch, build_record, check_val_loss

MAX_ROWS_PER_CHUNK = 8_192
"""Number of embeddings that are read at a time; at least one batch."""
MAX_LOGITS_PER_CHUNK = 2**22
"""Number of logits that are evaluated at a time: 16 MiB."""


class EmbeddingSource(Protocol):
    """Computes or reads embeddings of a frozen network."""

    def __call__(self, recipe: Recipe, view: int | None, indices: Indices, /) -> Tensor:
        """Return embeddings of images.

        Args:
            recipe: its network and augmentation.
            view: number of the augmented view; None for the images as they are.
            indices: of the images in the pack.

        Returns:
            float32 [len(indices), D], in the order of `indices`.
        """
        ...


class ProbeGroup:
    """Recipes that are trained together: a `Run` for many linear probes, without checkpoints.

    Iterating yields each probe's `Epoch` after every epoch, None for a probe that has failed or was stopped. The others
    train on, unchanged bit for bit.

    Args:
        recipes: one group of `group_recipes`.
        pack: the data that the recipes name.
        embeddings: of the recipes' common frozen network.
        inits: initial head of each recipe (`head_inits`).
        device: where to train; by default a GPU if there is one.

    Raises:
        ValueError: the pack is not the one that the recipes name, or the recipes do not form one group.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        pack: Pack,
        embeddings: EmbeddingSource,
        inits: Sequence[HeadInit],
        device: torch.device | None = None,
    ) -> None:
        _check(recipes, pack)
        self.recipes = tuple(recipes)
        self.epochs: list[tuple[Epoch, ...]] = [() for _ in recipes]
        self.errors: list[DivergedError | None] = [None for _ in recipes]
        self._recipe = first = recipes[0]  # stands for what all recipes have in common
        self.split = split_pack(pack, first.split_seed, first.draw, first.images_per_class)
        strategy: Strategy = first.strategy.build(STRATEGIES)
        self._fit = strategy.fit
        self._labels = torch.from_numpy(pack.labels)
        self._embeddings = embeddings
        self._inits = inits
        self._device = device or default_device()
        self._stopped: set[int] = set()
        self._completed_epochs = 0
        self._start_accuracies: list[float] = []
        self._val: list[Evaluation | None] = [None for _ in recipes]
        # Heads are sorted by stream, so that heads that see the same images are adjacent.
        streams = {data_order_key(recipe): recipe for recipe in recipes}
        self._streams = list(streams.values())
        stream_numbers = {key: number for number, key in enumerate(streams)}
        stream_of = [stream_numbers[data_order_key(recipe)] for recipe in recipes]
        self._order = sorted(range(len(recipes)), key=stream_of.__getitem__)
        self._heads = BatchedHeads(
            [inits[member].head for member in self._order],
            [recipes[member] for member in self._order],
            [stream_of[member] for member in self._order],
            self._device,
        )

    @property
    def training(self) -> list[int]:
        """Indices of the probes that have epochs left, and have neither failed nor been stopped."""
        if self._completed_epochs == self._recipe.epochs:
            return []
        return [member for member, error in enumerate(self.errors) if error is None and member not in self._stopped]

    def __iter__(self) -> Iterator[tuple[Epoch | None, ...]]:
        """Train one epoch of all probes at a time, until the last epoch or until no probe is left."""
        while training := self.training:
            if self._completed_epochs == 0:
                self._start_accuracies = [
                    evaluation.accuracy for evaluation in self._evaluate(range(len(self.recipes)))
                ]
            epochs = self._fit_epoch(training) if self._fit else self._train_epoch(training)
            for member, epoch in epochs.items():
                self.epochs[member] = (*self.epochs[member], epoch)
            self._completed_epochs += 1
            yield tuple(epochs.get(member) for member in range(len(self.recipes)))

    def stop(self, member: int) -> None:
        """Stop a probe: it has no further epochs, and its record says pruned."""
        self._stopped.add(member)

    def head(self, member: int) -> Head:
        """Return a probe's current head. Meaningless if the probe has failed or was stopped."""
        return self._heads.head(self._order.index(member))

    def record(self, member: int, trial: str = "run", phase: Phase = "search") -> Record:
        """Return a probe's result so far, as `Run.record` does. Its seconds are its share of the group's."""
        recipe, init, error = self.recipes[member], self._inits[member], self.errors[member]
        return build_record(
            recipe,
            trial,
            phase,
            self.epochs[member],
            parameters=init.parameters,
            trainable_parameters=init.head.weight.numel() + init.head.bias.numel(),
            val=self._val[member],
            error=str(error) if error else None,
            start_accuracy=self._start_accuracies[member] if self._start_accuracies else None,
            flops=init.flops,
        )

    def _fit_epoch(self, training: Sequence[int]) -> dict[int, Epoch]:
        """The only epoch of heads in closed form."""
        assert self._fit is not None
        usage, train, first = ResourceUsage(self._device), self.split.train, self._recipe
        rows, labels = self._embeddings(first, None, train).to(self._device), self._labels[train].to(self._device)
        fits = [self.recipes[member].strategy.build(STRATEGIES).fit for member in self._order]
        heads = fit_closed_form(self._fit.how, rows, labels, first.classes, [fit.penalty for fit in fits])
        self._heads.load_heads([Head(weight, bias) for weight, bias in heads])
        training_seconds = usage.seconds
        evaluations = zip(training, self._evaluate(training, "train"), strict=True)
        stats = {member: TrainStats(evaluation.loss, evaluation.accuracy) for member, evaluation in evaluations}
        return self._finish_epoch(stats, usage, training_seconds, len(train))

    def _train_epoch(self, training: Sequence[int]) -> dict[int, Epoch]:
        """Train one epoch; return those of the probes in `training` whose losses are finite."""
        usage, epoch = ResourceUsage(self._device), self._completed_epochs
        batch_size = self._recipe.batch_size
        orders = [
            shuffle_indices(self.split.train, batch_size, derive_seed(recipe.seed, "order", epoch))
            for recipe in self._streams
        ]
        images = len(orders[0])
        steps = math.ceil(images / batch_size)
        learning_rates = self._learning_rates(epoch, steps)
        labels = torch.stack([self._labels[order] for order in orders], dim=1).to(self._device)
        batches = zip(*map(self._batches, self._streams, orders), strict=True)
        step_rates = self._heads.step_rates(learning_rates[:, self._order])
        step_stats = [
            self._heads.train(features, batch_labels, rates)
            for features, batch_labels, rates in zip(batches, torch.split(labels, batch_size), step_rates, strict=True)
        ]
        # Numbers are only read here: until now nothing had to wait for a GPU.
        losses, hits, norms = (torch.stack(values, dim=1).tolist() for values in zip(*step_stats, strict=True))
        training_seconds = usage.seconds
        head_of = {member: index for index, member in enumerate(self._order)}
        stats = {}
        for member in training:
            head, learning_rate = head_of[member], float(learning_rates[-1, member])
            try:
                stats[member] = StepStats(losses[head], hits[head], norms[head], learning_rate, images).summarize(
                    epoch + 1
                )
            except DivergedError as error:
                self.errors[member] = error
        return self._finish_epoch(stats, usage, training_seconds, images)

    def _finish_epoch(
        self, stats: Mapping[int, TrainStats], usage: ResourceUsage, training_seconds: float, images: int
    ) -> dict[int, Epoch]:
        """Evaluate probes, and return the epochs of those whose validation loss is finite.

        Args:
            stats: training statistics by probe.
            usage: since the start of the epoch.
            training_seconds: of all probes together.
            images: that each probe was trained on.
        """
        number, count = self._completed_epochs + 1, len(self.recipes)
        evaluations = dict(zip(stats, self._evaluate(list(stats)), strict=True))
        system, seconds = usage.system_metrics(), usage.seconds / count
        epochs = {}
        for member, val in evaluations.items():
            try:
                check_val_loss(val.loss, number)
            except DivergedError as error:
                self.errors[member] = error
                continue
            self._val[member] = val
            epochs[member] = build_epoch(
                number,
                stats[member],
                val,
                seconds=seconds,
                images_per_second=images / (training_seconds / count),
                system=system,
            )
        return epochs

    def _learning_rates(self, epoch: int, steps: int) -> Tensor:
        """Each probe's learning rate in each step of an epoch, float64 [steps, M]."""
        progress = [(epoch * steps + step) / (self._recipe.epochs * steps) for step in range(steps)]
        schedules = {recipe.schedule: recipe.schedule.build(SCHEDULES) for recipe in self.recipes}
        factors = {choice: [schedule(point) for point in progress] for choice, schedule in schedules.items()}
        rates = [[recipe.learning_rate * factor for factor in factors[recipe.schedule]] for recipe in self.recipes]
        return torch.tensor(rates, dtype=torch.float64).T

    def _batches(self, recipe: Recipe, order: Indices) -> Iterator[Tensor]:
        """Yield the embeddings of a stream in an epoch in batches [B, D]."""
        views = None if recipe.augmentation.name == "none" else recipe.views
        view = None if views is None else self._completed_epochs % views
        chunk = recipe.batch_size * math.ceil(MAX_ROWS_PER_CHUNK / recipe.batch_size)
        for start in range(0, len(order), chunk):
            rows = self._embeddings(recipe, view, order[start : start + chunk])
            for batch in torch.split(rows.to(self._device), recipe.batch_size):
                heartbeat.beat()
                yield batch

    def _evaluate(self, members: Sequence[int], part: Part = "val") -> list[Evaluation]:
        """Evaluate probes on one part of the data, unaugmented."""
        indices, heads = self.split.of(part), self._heads
        chunk = max(1, min(MAX_ROWS_PER_CHUNK, MAX_LOGITS_PER_CHUNK // (heads.count * heads.classes)))
        predictions = []
        with torch.inference_mode():
            for start in range(0, len(indices), chunk):
                heartbeat.beat()
                rows = indices[start : start + chunk]
                logits = heads.logits(self._embeddings(self._recipe, None, rows).to(self._device))
                labels = self._labels[rows].repeat_interleave(heads.count)
                predictions.append(Predictions.from_logits(logits.flatten(0, 1), labels))
            by_head = Predictions.concatenate(predictions).split(heads.count)
        return [by_head[self._order.index(member)].to_evaluation(part, indices) for member in members]


def _check(recipes: Sequence[Recipe], pack: Pack) -> None:
    first = recipes[0]
    if pack.hash != first.data:
        raise ValueError(f"the recipes were made for data {first.data[:12]}, this pack is {pack.hash[:12]}")
    for recipe in recipes:
        if not can_batch(recipe):
            raise ValueError(
                f"recipe {recipe.id[:12]} trains more than a linear head on fixed embeddings, so it cannot be batched: "
                f"train it in a Run"
            )
        if group_key(recipe) != group_key(first):
            raise ValueError(
                f"recipes {first.id[:12]} and {recipe.id[:12]} do not form one group: use group_recipes to form groups"
            )
