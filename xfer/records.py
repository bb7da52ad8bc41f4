"""Epoch, Evaluation, Noisy, Record: what came of a run, as plain data.

Everything here is a frozen dataclass of numbers, strings and tuples, so that it goes to JSON and back without loss
and a report can be rendered where there is no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

Part = Literal["train", "val", "test"]
Phase = Literal["screen", "search", "final"]
Status = Literal["finished", "pruned", "failed"]

LIST_FIELDS = ("gradient_norms", "confusion", "noisy")
"""Fields that most epochs or evaluations do without: they take no space in JSON where they are empty."""


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
    peak_memory_mb: float | None = None
    """The most resident memory that the process ever held, in 2**20 bytes: of the whole process, not of this run."""
    val_top5_accuracy: float | None = None
    """`Evaluation.top5_accuracy` of the validation part, and so on for the next two."""
    val_balanced_accuracy: float | None = None
    val_calibration_error: float | None = None
    val_noisy_accuracy: float | None = None
    """Accuracy on one noisy copy of the validation part (`xfer.measure.robustness.noisy_batches`); None unless asked for,
    as by the objective noisy_accuracy."""
    distance: float | None = None
    """How far everything below the head has moved from the weights that the run started from: the L2 norm of the
    difference over the L2 norm of those weights. 0 where all of it was frozen."""
    micro_batch: int | None = None
    """How many images went through the network at a time by the end of the epoch, where the memory did not hold a whole
    batch; None where it did. The step is that of the whole batch in any case (`Learner.step`)."""
    gradient_norms: tuple[float, ...] = ()
    """The global L2 norm at each of the first steps of the first epoch, before clipping; empty in later epochs."""

    @property
    def gap(self) -> float:
        """Training minus validation accuracy, in [-1, 1]: above 0 the network knows its training images better.

        Training accuracy is counted while training, on images as they were augmented and mixed, so the gap understates
        how much better; with strong augmentation it is below 0.
        """
        return self.train_accuracy - self.val_accuracy


@dataclass(frozen=True)
class CorruptionScore:
    """How a network did on images under one kind of noise at one severity."""

    kind: str
    """A name in `xfer.measure.robustness.NOISES`."""
    severity: int
    """1 (mild) to 5 (severe)."""
    images: int
    """How many images met it: at least 1."""
    correct: int
    """How many of them were put into the right class."""

    @property
    def accuracy(self) -> float:
        """The share of images put into the right class, in [0, 1]."""
        return self.correct / self.images


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
    top5_accuracy: float | None = None
    """The share of images whose class is among the five most likely; None with 5 classes or fewer, where it is 1."""
    balanced_accuracy: float | None = None
    """The mean over the classes that occur of the share of their images put into them."""
    calibration_error: float | None = None
    """Expected calibration error in [0, 1]: how far the probability of the most likely class is from how often it is
    the right one, the mean over images of the difference in each of 15 bins of equal width (Guo et al. 2017)."""
    confusion: tuple[tuple[int, int, int], ...] = ()
    """(true class, predicted class, how many images) for each pair that occurs, in ascending order."""
    noisy: tuple[CorruptionScore, ...] = ()
    """The same images under noise, each kind and severity; empty unless asked for."""

    @property
    def accuracy(self) -> float:
        """The share of images put into the right class, in [0, 1]."""
        return sum(self.correct) / len(self.correct)

    @property
    def noisy_accuracy(self) -> float | None:
        """The mean over kinds of noise of the mean over their severities, in [0, 1]; None where none was tried."""
        kinds: dict[str, list[float]] = {}
        for noisy in self.noisy:
            kinds.setdefault(noisy.kind, []).append(noisy.accuracy)
        return fmean(map(fmean, kinds.values())) if kinds else None


@dataclass(frozen=True)
class Record:
    """What one run came to: the unit of evidence behind every ranking and report."""

    trial: str
    """`0007` for the seventh trial after `0000`; `0007-s2` where trial `0007` was run again as a finalist on seed 2;
    `screen-07` for a head that was fitted before the search."""
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
    start_accuracy: float | None = None
    """Validation accuracy before the first step: the transferred network with its untrained head."""
    flops: int | None = None
    """Floating point operations of one image's way through the network, without the way back. A multiply-add counts as
    two, and only convolutions and matrix products count (attention too); many papers count a multiply-add as one."""
    arithmetic: str = "float32"
    """In which numbers the network computed while it was trained, float32 or bfloat16, whether it was compiled, and on
    how many devices together, if on more than one ("bfloat16, compiled, 2 devices"): as its last epoch was trained."""

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy after the last epoch, the value that trials are selected by; None without an epoch."""
        return self.epochs[-1].val_accuracy if self.epochs else None


def as_dict(value: Epoch | Evaluation | Record) -> dict[str, Any]:
    """Plain data for JSON, the inverse of `record_from_dict`, `epoch_from_dict` and `evaluation_from_dict`.

    Per-image correctness becomes a string of 0 and 1: a tenth of the space of a JSON list. What is in `LIST_FIELDS` becomes
    lists, and is left out where it is empty.
    """
    plain = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    plain = {name: given for name, given in plain.items() if given or name not in LIST_FIELDS}
    if isinstance(value, Epoch) and value.gradient_norms:
        plain["gradient_norms"] = list(value.gradient_norms)
    if isinstance(value, Evaluation):
        plain["correct"] = "".join("01"[hit] for hit in value.correct)
        if value.confusion:
            plain["confusion"] = [list(cell) for cell in value.confusion]
        if value.noisy:
            plain["noisy"] = [dataclasses.asdict(noisy) for noisy in value.noisy]
    if isinstance(value, Record):
        plain["recipe"] = dict(value.recipe)
        plain["epochs"] = [as_dict(epoch) for epoch in value.epochs]
        plain["val"] = value.val and as_dict(value.val)
        plain["test"] = value.test and as_dict(value.test)
    return plain


def epoch_from_dict(plain: Mapping[str, Any]) -> Epoch:
    """An Epoch from what `as_dict` made of it."""
    return Epoch(**{**plain, "gradient_norms": tuple(plain.get("gradient_norms", ()))})


def evaluation_from_dict(plain: Mapping[str, Any]) -> Evaluation:
    """An Evaluation from what `as_dict` made of it."""
    read = {
        "images": tuple(plain["images"]),
        "correct": tuple(mark == "1" for mark in plain["correct"]),
        "confusion": tuple((true, predicted, images) for true, predicted, images in plain.get("confusion", ())),
        "noisy": tuple(CorruptionScore(**noisy) for noisy in plain.get("noisy", ())),
    }
    return Evaluation(**{**plain, **read})


def record_from_dict(plain: Mapping[str, Any]) -> Record:
    """A Record from what `as_dict` made of it."""
    parts = {part: evaluation_from_dict(plain[part]) if plain[part] else None for part in ("val", "test")}
    epochs = tuple(epoch_from_dict(epoch) for epoch in plain["epochs"])
    return Record(**{**plain, **parts, "epochs": epochs, "resumed_at": tuple(plain["resumed_at"])})
