"""Epoch, Evaluation and Record: results of a run as plain data.

All are frozen dataclasses of numbers, strings and tuples, so they survive a round trip through JSON, and reports do
not need torch.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

Part = Literal["train", "val", "test"]
Phase = Literal["screen", "search", "final"]
Status = Literal["finished", "pruned", "failed"]
Kept = Literal["last", "averaged", "start"]
"""Weights that a run ends with: those after the last step, their moving average, or those before the first step."""

NOISE_KINDS = ("gaussian", "salt_and_pepper", "speckle", "occlusion", "blur", "jpeg", "grey")
"""Kinds of noise that networks are evaluated under (`xfer.measure.robustness`)."""
MAX_NOISE_IMAGES = 500
"""Maximum number of images that are evaluated under noise. Each is evaluated once per kind, so a whole test part could
take longer than training; the accuracy on 500 images has a standard error of at most 2.2 points."""
NOT_COMPILED = "not compiled: "
"""What precedes the reason in `Record.arithmetic` if torch.compile has failed."""

LIST_FIELDS = ("gradient_norms", "confusion", "noisy", "flip_correct")
"""Fields that are left out of JSON when they are empty, as in most epochs and evaluations."""
SELECTION_FIELDS = ("kept", "raw_val_accuracy", "raw_val_loss", "averaged_val_accuracy", "averaged_val_loss")
"""Fields that only the last epoch of a run has, and that are left out of JSON elsewhere."""


@dataclass(frozen=True)
class Epoch:
    """Metrics of one pass over the training part, and of the validation part afterwards.

    Validation metrics and `distance` of the last epoch are those of the weights that the run keeps (`kept`).

    Accuracies are in [0, 1]. `train_accuracy` is counted during training, on augmented and mixed images, so it is
    usually lower than the accuracy of the same network on the original images.
    """

    epoch: int
    """Number of the epoch, counted from 1."""
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    """Base learning rate times the schedule in the last step, without the strategy's multiplier."""
    gradient_norm: float
    """Mean global L2 norm over the epoch's steps, before clipping."""
    seconds: float
    """Wall-clock time of training and validation."""
    images_per_second: float
    """Training throughput: images per second of wall-clock time, without validation."""
    cpu_percent: float | None = None
    """CPU time of the process over wall-clock time: 100 is one busy core."""
    memory_mb: float | None = None
    """Resident memory of the process at the end of the epoch, in 2**20 bytes."""
    gpu_memory_mb: float | None = None
    """Peak memory allocated on the GPU so far, in 2**20 bytes; None without a GPU."""
    gpu_percent: float | None = None
    """GPU utilization at the end of the epoch; None if it cannot be measured."""
    peak_memory_mb: float | None = None
    """Peak resident memory of the process since its start, in 2**20 bytes, other runs included."""
    val_top5_accuracy: float | None = None
    """Validation metrics, see `Evaluation`; so are the next two."""
    val_balanced_accuracy: float | None = None
    val_calibration_error: float | None = None
    val_noisy_accuracy: float | None = None
    """Accuracy on a noisy copy of the validation part (`xfer.measure.robustness.noisy_batches`). Measured only on
    request, for example for the objective noisy_accuracy."""
    distance: float | None = None
    """Relative distance of everything below the head from its initial weights: L2 norm of the difference over the
    L2 norm of the initial weights. 0 if all of it was frozen."""
    micro_batch: int | None = None
    """Micro-batch size at the end of the epoch; None if whole batches fit in memory. The step is that of the whole
    batch in either case (`Learner.step`)."""
    gradient_norms: tuple[float, ...] = ()
    """Global L2 norms in the first steps of the first epoch, before clipping; empty in later epochs."""
    kept: Kept | None = None
    """Weights that the run keeps, in its last epoch; None in earlier ones, and in runs that only train a head."""
    raw_val_accuracy: float | None = None
    """Validation accuracy of the weights after the last step, in the last epoch; and their loss."""
    raw_val_loss: float | None = None
    averaged_val_accuracy: float | None = None
    """Validation accuracy of the averaged weights, in the last epoch; and their loss."""
    averaged_val_loss: float | None = None

    @property
    def gap(self) -> float:
        """Generalization gap: training minus validation accuracy, in [-1, 1].

        Training accuracy is counted on augmented and mixed images, so this understates the gap, and with strong
        augmentation it is negative.
        """
        return self.train_accuracy - self.val_accuracy


@dataclass(frozen=True)
class CorruptionScore:
    """Accuracy under one kind of noise at one severity."""

    kind: str
    """One of NOISE_KINDS."""
    severity: int
    """1 (mild) to 5 (severe)."""
    images: int
    """Number of images evaluated, at least 1."""
    correct: int
    """Number of correctly classified images."""

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified images, in [0, 1]."""
        return self.correct / self.images


@dataclass(frozen=True)
class Evaluation:
    """Result of a network on one part of the data, image by image."""

    part: Part
    loss: float
    """Mean cross-entropy, also for networks trained with another loss."""
    images: tuple[int, ...]
    """Indices of the images in the pack."""
    correct: tuple[bool, ...]
    """For each image, whether the predicted class was correct."""
    top5_accuracy: float | None = None
    """Fraction of images whose class is among the five most likely; None with 5 classes or fewer."""
    balanced_accuracy: float | None = None
    """Mean over classes, those without images excepted, of the fraction of correctly classified images."""
    calibration_error: float | None = None
    """Expected calibration error in [0, 1]: the difference between predicted probability and accuracy in each of 15
    bins of equal width, averaged over images (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    confusion: tuple[tuple[int, int, int], ...] = ()
    """Confusion matrix as (true class, predicted class, number of images) for each pair that occurs, in ascending
    order."""
    noisy: tuple[CorruptionScore, ...] = ()
    """Accuracy under noise on the same images, or on a sample of them, by kind and severity; empty if not measured."""
    flip_correct: tuple[bool, ...] = ()
    """For each image, whether the prediction was correct that follows from the mean of the probabilities for the image
    and for its mirror image; empty if not measured."""

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified images, in [0, 1]."""
        return sum(self.correct) / len(self.correct)

    @property
    def flip_accuracy(self) -> float | None:
        """Accuracy with flips: fraction of `flip_correct`, in [0, 1]; None if not measured."""
        return sum(self.flip_correct) / len(self.flip_correct) if self.flip_correct else None

    @property
    def noisy_accuracy(self) -> float | None:
        """Mean accuracy over kinds of noise, each the mean over its severities, in [0, 1]; None if not measured."""
        kinds: dict[str, list[float]] = {}
        for noisy in self.noisy:
            kinds.setdefault(noisy.kind, []).append(noisy.accuracy)
        return fmean(map(fmean, kinds.values())) if kinds else None

    @property
    def noisy_images(self) -> int:
        """Number of images behind `noisy_accuracy`: every kind of noise is applied once to each; 0 if not measured."""
        images: Counter[str] = Counter()
        for noisy in self.noisy:
            images[noisy.kind] += noisy.images
        return min(images.values(), default=0)


@dataclass(frozen=True)
class Record:
    """Result of one run: the unit of evidence behind every ranking and report."""

    trial: str
    """Name of the trial: `0007`; `0007-s2` for trial `0007` as a finalist on seed 2; `screen-07` for a head that was
    fitted before the search."""
    phase: Phase
    key: str
    """Content hash of the recipe without its seed: equal for a finalist's runs on different seeds."""
    id: str
    """Content hash of the recipe with its seed."""
    recipe: Mapping[str, Any]
    """The recipe as plain data (`Recipe.as_dict`)."""
    status: Status
    epochs: tuple[Epoch, ...]
    parameters: int | None
    """Number of the network's parameters; None if it was never built."""
    trainable_parameters: int | None
    """Number of parameters that were trained at any time during the run."""
    seconds: float
    """Wall-clock time of all epochs, over all processes that trained them."""
    val: Evaluation | None = None
    """Evaluation of the final weights on the validation part; None if the run did not finish."""
    test: Evaluation | None = None
    """Evaluation on the test part; only for finalists, and once the test part has been opened."""
    error: str | None = None
    """Reason for a failure, in one line."""
    resumed_at: tuple[int, ...] = ()
    """Number of completed epochs at each resumption."""
    start_accuracy: float | None = None
    """Validation accuracy before the first step: of the pretrained network with its untrained or fitted head."""
    flops: int | None = None
    """Floating point operations of the forward pass of one image, in the size of evaluation. A multiply-add counts as
    two (as one in many papers), and only convolutions and matrix products count, attention included."""
    arithmetic: str = "float32"
    """Number format of training, whether it was compiled, and the number of devices if more than one, as in the last
    epoch: "float32", or "bfloat16, compiled, 2 devices", or "bfloat16, not compiled: " and why torch.compile failed."""

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy after the last epoch, by which trials are selected; None without an epoch."""
        return self.epochs[-1].val_accuracy if self.epochs else None

    @property
    def kept(self) -> Kept | None:
        """Weights that the run ended with (`Epoch.kept`); None for a run that only trains a head or has not ended."""
        return self.epochs[-1].kept if self.epochs else None


def as_dict(value: Epoch | Evaluation | Record) -> dict[str, Any]:
    """Return plain data for JSON; `record_from_dict`, `epoch_from_dict` and `evaluation_from_dict` are the inverse.

    `correct` and `flip_correct` become strings of 0 and 1, which take a tenth of the space of a JSON list.
    `LIST_FIELDS` become lists, and are left out when they are empty; so are `SELECTION_FIELDS`.
    """
    plain = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    omitted = (*LIST_FIELDS, *SELECTION_FIELDS)
    plain = {name: content for name, content in plain.items() if content not in (None, ()) or name not in omitted}
    if isinstance(value, Epoch) and value.gradient_norms:
        plain["gradient_norms"] = list(value.gradient_norms)
    if isinstance(value, Evaluation):
        plain["correct"] = "".join("01"[hit] for hit in value.correct)
        if value.flip_correct:
            plain["flip_correct"] = "".join("01"[hit] for hit in value.flip_correct)
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
    """Return the Epoch that `as_dict` was given."""
    return Epoch(**{**plain, "gradient_norms": tuple(plain.get("gradient_norms", ()))})


def evaluation_from_dict(plain: Mapping[str, Any]) -> Evaluation:
    """Return the Evaluation that `as_dict` was given."""
    fields = {
        "images": tuple(plain["images"]),
        "correct": tuple(digit == "1" for digit in plain["correct"]),
        "flip_correct": tuple(digit == "1" for digit in plain.get("flip_correct", "")),
        "confusion": tuple((true, predicted, images) for true, predicted, images in plain.get("confusion", ())),
        "noisy": tuple(CorruptionScore(**noisy) for noisy in plain.get("noisy", ())),
    }
    return Evaluation(**{**plain, **fields})


def record_from_dict(plain: Mapping[str, Any]) -> Record:
    """Return the Record that `as_dict` was given."""
    parts = {part: evaluation_from_dict(plain[part]) if plain[part] else None for part in ("val", "test")}
    epochs = tuple(epoch_from_dict(epoch) for epoch in plain["epochs"])
    return Record(**{**plain, **parts, "epochs": epochs, "resumed_at": tuple(plain["resumed_at"])})
