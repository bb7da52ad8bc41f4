"""Epoch, Evaluation, Record: what came of a run, as plain data.

Everything here is a frozen dataclass of numbers, strings and tuples, so that it goes to JSON and back without loss
and a report can be rendered where there is no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["train", "val", "test"]
Phase = Literal["search", "final"]
Status = Literal["finished", "pruned", "failed"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training part, and how the network stood on the validation part afterwards.

    Accuracies are in [0, 1]. `train_accuracy` is counted while training, on images as they were augmented and mixed,
    so it usually lies below what the same network reaches on untouched images.
    """

    epoch: int
    """How many epochs have been trained by now: the first is 1."""
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    """The base rate times the schedule at the last step, before the strategy slows single parameters."""
    gradient_norm: float
    """The mean over the epoch's steps of the global L2 norm, before clipping."""
    seconds: float
    """Wall clock of training and validation together."""
    images_per_second: float
    """Training images over the training share of the wall clock."""
    cpu_percent: float | None = None
    """CPU time of the process over wall clock: 100 is one core kept busy."""
    memory_mb: float | None = None
    """Resident memory of the process at the end of the epoch, in 2**20 bytes."""
    gpu_memory_mb: float | None = None
    """Peak memory allocated on the GPU so far, in 2**20 bytes; None without a GPU."""
    gpu_percent: float | None = None
    """GPU utilisation at the end of the epoch; None where no GPU can be asked."""


@dataclass(frozen=True)
class Evaluation:
    """How a network did on one part of the data, image by image."""

    part: Part
    loss: float
    """Mean cross-entropy, whatever loss the network was trained with."""
    images: tuple[int, ...]
    """Which images: their places in the pack."""
    correct: tuple[bool, ...]
    """For each of them, whether the most likely class was the right one."""

    @property
    def accuracy(self) -> float:
        """The share of images put into the right class, in [0, 1]."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True)
class Record:
    """What one run came to: the unit of evidence behind every ranking and report."""

    trial: str
    """`0007` for the seventh trial after `0000`; `0007-s2` where trial `0007` was run again as a finalist on seed 2."""
    phase: Phase
    key: str
    """The recipe's content hash without its seed: equal for a finalist's runs on different seeds."""
    id: str
    """The recipe's content hash with its seed."""
    recipe: Mapping[str, Any]
    """The recipe as plain data (`Recipe.as_dict`)."""
    status: Status
    epochs: tuple[Epoch, ...]
    parameters: int | None
    """How many numbers the network holds; None where it was never built."""
    trainable_parameters: int | None
    """How many of them moved at any time during the run."""
    seconds: float
    """Wall clock of all epochs, whichever process trained them."""
    val: Evaluation | None = None
    """The validation part under the final weights; None unless the run finished."""
    test: Evaluation | None = None
    """The test part; None unless the run belongs to a finalist and the test part has been opened."""
    error: str | None = None
    """Why a failed run failed, in one line."""
    resumed_at: tuple[int, ...] = ()
    """After how many epochs the run was taken up again, once for each time it was interrupted."""

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy after the last epoch, the value that trials are selected by; None without an epoch."""
        return self.epochs[-1].val_accuracy if self.epochs else None


def as_dict(value: Epoch | Evaluation | Record) -> dict[str, Any]:
    """Plain data for JSON, the inverse of `record_from`, `epoch_from` and `evaluation_from`.

    Per-image correctness becomes a string of 0 and 1: a tenth of the space of a JSON list.
    """
    plain = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Evaluation):
        plain["correct"] = "".join("01"[hit] for hit in value.correct)
    if isinstance(value, Record):
        plain["recipe"] = dict(value.recipe)
        plain["epochs"] = [as_dict(epoch) for epoch in value.epochs]
        plain["val"] = value.val and as_dict(value.val)
        plain["test"] = value.test and as_dict(value.test)
    return plain


def epoch_from(plain: Mapping[str, Any]) -> Epoch:
    """An Epoch from what `as_dict` made of it."""
    return Epoch(**plain)


def evaluation_from(plain: Mapping[str, Any]) -> Evaluation:
    """An Evaluation from what `as_dict` made of it."""
    correct = tuple(mark == "1" for mark in plain["correct"])
    return Evaluation(**{**plain, "images": tuple(plain["images"]), "correct": correct})


def record_from(plain: Mapping[str, Any]) -> Record:
    """A Record from what `as_dict` made of it."""
    parts = {part: evaluation_from(plain[part]) if plain[part] else None for part in ("val", "test")}
    epochs = tuple(epoch_from(epoch) for epoch in plain["epochs"])
    return Record(**{**plain, **parts, "epochs": epochs, "resumed_at": tuple(plain["resumed_at"])})
