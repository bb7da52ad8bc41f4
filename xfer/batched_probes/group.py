"""Together: recipes of which nothing but a linear head moves, side by side on embeddings that are computed once.

Each member of a group comes to what it would come to alone in a `Run`, within rounding: the same first head, images,
rates, losses and clipping, and the same record. Heads in closed form are fitted together: a path of penalties takes
one decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from xfer.batched_probes.compatibility import HeadInit, can_batch, data_order_key, group_key
from xfer.batched_probes.heads import BatchedHeads, Head
from xfer.data.loader import shuffle_indices
from xfer.data.pack import Pack
from xfer.data.split import Indices, split_pack
from xfer.linear_heads import fit_closed_form
from xfer.measure.accuracy import Predictions
from xfer.measure.cost import ResourceUsage
from xfer.methods.schedules import SCHEDULES
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.recipe import Recipe
from xfer.records import Epoch, Evaluation, Part, Phase, Record
from xfer.run import LOGGED_GRADIENT_NORMS, DivergedError, check_train_losses, check_val_loss, default_device
from xfer.seeding import derive_seed

MAX_ROWS_PER_CHUNK = 8_192
"""So many embeddings are asked for at a time, at least a batch."""
MAX_LOGITS_PER_CHUNK = 2**22
"""So many are judged at a time: 16 MiB."""


class EmbeddingSource(Protocol):
    """What a frozen network makes of images."""

    def __call__(self, recipe: Recipe, view: int | None, places: Indices) -> Tensor:
        """The embeddings of the images at `places` of the pack, float32 [len(places), D], in that order.

        Args:
            recipe: whose network, and whose augmentation.
            view: which version of the augmented images; None for the images as they are.
            places: which images.
        """
        ...


class ProbeGroup:
    """Recipes that are trained side by side. What `Run` is to one recipe this is to many, without checkpoints.

    Iterate it and it yields, after every epoch, each member's `Epoch`; None for a member that has failed or was
    stopped. The others train on without it, bit for bit as with it.

    Args:
        recipes: what to train, one group of `groups_of`.
        pack: the data that the recipes name.
        embeddings: of the recipes' one frozen network.
        begin: where each recipe begins (`beginnings`).
        device: where to train; the best there is unless given.

    Raises:
        ValueError: the pack is not the one that the recipes name, or the recipes do not make one group.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        pack: Pack,
        embeddings: EmbeddingSource,
        begin: Sequence[HeadInit],
        device: torch.device | None = None,
    ) -> None:
        _check(recipes, pack)
        self.recipes = tuple(recipes)
        self.epochs: list[tuple[Epoch, ...]] = [() for _ in recipes]
        self.errors: list[DivergedError | None] = [None for _ in recipes]
        self._recipe = first = recipes[0]
        strategy: Strategy = first.strategy.build(STRATEGIES)
        self._fit = strategy.fit
        self._labels = torch.from_numpy(pack.labels)
        self._split = split_pack(pack, first.split_seed, first.draw, first.images_per_class)
        self._embeddings = embeddings
        self._begin = begin
        self._device = device or default_device()
        self._stopped: set[int] = set()
        self._done = 0
        self._start_accuracy: list[float] = []
        self._val: list[Evaluation | None] = [None for _ in recipes]
        # Stacked in the order of their streams: what sees the same images stands side by side.
        streams = {stream: recipe for recipe in recipes for stream in [data_order_key(recipe)]}
        self._streams = list(streams.values())
        number = {stream: place for place, stream in enumerate(streams)}
        of = [number[data_order_key(recipe)] for recipe in recipes]
        self._order = sorted(range(len(recipes)), key=of.__getitem__)
        self._heads = BatchedHeads(
            [begin[member].head for member in self._order],
            [recipes[member] for member in self._order],
            [of[member] for member in self._order],
            self._device,
        )

    @property
    def training(self) -> list[int]:
        """The members that have epochs before them: neither failed nor stopped."""
        if self._done == self._recipe.epochs:
            return []
        return [each for each, error in enumerate(self.errors) if error is None and each not in self._stopped]

    def __iter__(self) -> Iterator[tuple[Epoch | None, ...]]:
        """Train on, one epoch of all members at a time, until the last, or until there is no member left."""
        while training := self.training:
            if self._done == 0:
                self._start_accuracy = [judged.accuracy for judged in self._judged(range(len(self.recipes)))]
            found = self._fit_epoch(training) if self._fit else self._train_epoch(training)
            for member, epoch in found.items():
                self.epochs[member] = (*self.epochs[member], epoch)
            self._done += 1
            yield tuple(found.get(member) for member in range(len(self.recipes)))

    def stop(self, member: int) -> None:
        """Let a member be: it has no further epochs, and its record says pruned."""
        self._stopped.add(member)

    def head(self, member: int) -> Head:
        """A member's head as it stands now; of use where the member has not failed and was not stopped."""
        return self._heads.head(self._order.index(member))

    def record(self, member: int, trial: str = "run", phase: Phase = "search") -> Record:
        """What a member has come to, as `Run.record` says it; its seconds are its share of the group's."""
        recipe, begin = self.recipes[member], self._begin[member]
        epochs, error = self.epochs[member], self.errors[member]
        done = len(epochs) == recipe.epochs
        return Record(
            trial=trial,
            phase=phase,
            key=recipe.key,
            id=recipe.id,
            recipe=recipe.as_dict(),
            status="failed" if error else "finished" if done else "pruned",
            epochs=epochs,
            parameters=begin.parameters,
            trainable_parameters=begin.head.weight.numel() + begin.head.bias.numel(),
            seconds=sum(epoch.seconds for epoch in epochs),
            val=self._val[member] if done else None,
            error=str(error) if error else None,
            start_accuracy=self._start_accuracy[member] if self._start_accuracy else None,
            flops=begin.flops,
        )

    def _fit_epoch(self, training: Sequence[int]) -> dict[int, Epoch]:
        """The one epoch of heads in closed form."""
        assert self._fit is not None
        usage, train, first = ResourceUsage(self._device), self._split.train, self._recipe
        rows, labels = self._embeddings(first, None, train).to(self._device), self._labels[train].to(self._device)
        fits = [self.recipes[member].strategy.build(STRATEGIES).fit for member in self._order]
        heads = fit_closed_form(self._fit.how, rows, labels, first.classes, [fit.penalty for fit in fits])
        self._heads.load_heads([Head(weight, bias) for weight, bias in heads])
        training_seconds = usage.seconds
        known = {
            member: (judged.loss, judged.accuracy)
            for member, judged in zip(training, self._judged(training, "train"), strict=True)
        }
        return self._epochs_of(known, usage, training_seconds, len(train))

    def _train_epoch(self, training: Sequence[int]) -> dict[int, Epoch]:
        """One epoch of all; what came of the members that are training and still have finite losses."""
        usage, number = ResourceUsage(self._device), self._done
        batch_size = self._recipe.batch_size
        orders = [
            shuffle_indices(self._split.train, batch_size, derive_seed(recipe.seed, "order", number))
            for recipe in self._streams
        ]
        images = len(orders[0])
        steps = math.ceil(images / batch_size)
        rates = self._rates(number, steps)
        labels = torch.stack([self._labels[order] for order in orders], dim=1).to(self._device)
        batches = zip(*map(self._batches, self._streams, orders), strict=True)
        paced = self._heads.step_rates(rates[:, self._order])
        seen = [
            self._heads.train(features, some, now)
            for features, some, now in zip(batches, torch.split(labels, batch_size), paced, strict=True)
        ]
        # Only now are the numbers fetched: until here nothing made a GPU wait.
        losses, hits, norms = (torch.stack(each, dim=1).tolist() for each in zip(*seen, strict=True))
        training_seconds = usage.seconds
        place = {member: place for place, member in enumerate(self._order)}
        finite = [member for member in training if self._holds(member, check_train_losses, losses[place[member]])]
        known = {
            member: (math.fsum(losses[place[member]]) / steps, sum(hits[place[member]]) / images) for member in finite
        }
        return {
            member: replace(
                epoch,
                learning_rate=float(rates[-1, member]),
                gradient_norm=math.fsum(norms[place[member]]) / steps,
                gradient_norms=tuple(norms[place[member]][:LOGGED_GRADIENT_NORMS]) if number == 0 else (),
            )
            for member, epoch in self._epochs_of(known, usage, training_seconds, images).items()
        }

    def _epochs_of(
        self, known: Mapping[int, tuple[float, float]], usage: ResourceUsage, training_seconds: float, images: int
    ) -> dict[int, Epoch]:
        """Members as they stand, judged, as the epoch that has just been trained; without what steps say.

        Args:
            known: of each member its loss and accuracy in training.
            usage: begun with the epoch.
            training_seconds: of them all.
            images: that each has been trained on.
        """
        count, number = len(self.recipes), self._done
        judged = dict(zip(known, self._judged(list(known)), strict=True))
        finite = [member for member in known if self._holds(member, check_val_loss, judged[member].loss)]
        system, seconds = usage.system_metrics(), usage.seconds / count
        found = {}
        for member in finite:
            self._val[member] = val = judged[member]
            found[member] = Epoch(
                epoch=number + 1,
                train_loss=known[member][0],
                train_accuracy=known[member][1],
                val_loss=val.loss,
                val_accuracy=val.accuracy,
                val_top5_accuracy=val.top5_accuracy,
                val_balanced_accuracy=val.balanced_accuracy,
                val_calibration_error=val.calibration_error,
                learning_rate=0.0,
                gradient_norm=0.0,
                distance=0.0,
                seconds=seconds,
                images_per_second=images / (training_seconds / count),
                **system,
            )
        return found

    def _rates(self, number: int, steps: int) -> Tensor:
        """Each member's learning rate at each step of an epoch, float64 [steps, M]."""
        progress = [(number * steps + step) / (self._recipe.epochs * steps) for step in range(steps)]
        schedules = {recipe.schedule: recipe.schedule.build(SCHEDULES) for recipe in self.recipes}
        shares = {choice: [schedule(each) for each in progress] for choice, schedule in schedules.items()}
        rates = [[recipe.learning_rate * share for share in shares[recipe.schedule]] for recipe in self.recipes]
        return torch.tensor(rates, dtype=torch.float64).T

    def _batches(self, recipe: Recipe, order: Indices) -> Iterator[Tensor]:
        """A stream's embeddings in an epoch, a batch [B, D] at a time."""
        view = None if recipe.augmentation.name == "none" or recipe.views is None else self._done % recipe.views
        at_once = recipe.batch_size * math.ceil(MAX_ROWS_PER_CHUNK / recipe.batch_size)
        for start in range(0, len(order), at_once):
            rows = self._embeddings(recipe, view, order[start : start + at_once])
            yield from torch.split(rows.to(self._device), recipe.batch_size)

    def _judged(self, members: Sequence[int], part: Part = "val") -> list[Evaluation]:
        """How members do on one part of the data, as it is."""
        places, heads = self._split.of(part), self._heads
        at_once = max(1, min(MAX_ROWS_PER_CHUNK, MAX_LOGITS_PER_CHUNK // (heads.count * heads.classes)))
        found = []
        with torch.inference_mode():
            for start in range(0, len(places), at_once):
                some = places[start : start + at_once]
                logits = heads.logits(self._embeddings(self._recipe, None, some).to(self._device))
                labels = self._labels[some].repeat_interleave(heads.count)
                found.append(Predictions.from_logits(logits.flatten(0, 1), labels))
            answers = Predictions.concatenate(found).split(heads.count)
        return [answers[self._order.index(member)].to_evaluation(part, places) for member in members]

    def _holds(self, member: int, check: Callable[[Any, int], None], losses: Any) -> bool:
        """Whether losses are finite; where not, the member has failed."""
        try:
            check(losses, self._done + 1)
        except DivergedError as error:
            self.errors[member] = error
            return False
        return True


def _check(recipes: Sequence[Recipe], pack: Pack) -> None:
    first = recipes[0]
    if pack.hash != first.data:
        raise ValueError(f"the recipes were made for data {first.data[:12]}, this pack is {pack.hash[:12]}")
    for recipe in recipes:
        if not can_batch(recipe):
            raise ValueError(
                f"recipe {recipe.id[:12]} trains more than a linear head on fixed embeddings: it runs alone"
            )
        if group_key(recipe) != group_key(first):
            raise ValueError(
                f"recipes {first.id[:12]} and {recipe.id[:12]} do not take the same steps: groups_of says which do"
            )
