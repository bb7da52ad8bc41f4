"""Epochs: the only place that builds an Epoch or a Record, for single runs and batches of probes alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xfer.measure.cost import SystemMetrics
from xfer.recipe import Recipe
from xfer.records import Epoch, Evaluation, Phase, Record, Status
from xfer.training.candidates import Selection

LOGGED_GRADIENT_NORMS = 50
"""Number of initial steps whose gradient norm is logged individually. Freezing and clipping exist to tame these."""


class DivergedError(ArithmeticError):
    """The loss became NaN or infinite, so the run has failed."""


def check_train_losses(losses: Sequence[float], epoch: int) -> None:
    """Check that the loss of every step of an epoch is finite.

    Args:
        losses: one per step.
        epoch: counted from 1.

    Raises:
        DivergedError: one is not; the message names the first such step.
    """
    for step, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            raise DivergedError(f"the training loss became {loss} in epoch {epoch}, step {step} of {len(losses)}")


def check_val_loss(loss: float, epoch: int) -> None:
    """Check that the validation loss after an epoch, counted from 1, is finite.

    Raises:
        DivergedError: it is not.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"the validation loss became {loss} after epoch {epoch}")


@dataclass(frozen=True)
class TrainStats:
    """Training statistics of an epoch. The last three are zero or empty for a head fitted in closed form."""

    loss: float
    accuracy: float
    """In [0, 1]."""
    learning_rate: float = 0.0
    gradient_norm: float = 0.0
    gradient_norms: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepStats:
    """Statistics of the steps of an epoch; the lists have one value per step."""

    losses: list[float]
    hits: list[float]
    """Number of correctly classified images."""
    norms: list[float]
    """L2 norms of the gradient before clipping."""
    learning_rate: float
    """Learning rate of the last step."""
    images: int
    """Number of images in all steps."""

    def summarize(self, epoch: int) -> TrainStats:
        """Return the statistics of the epoch, counted from 1.

        Raises:
            DivergedError: a loss is not finite.
        """
        check_train_losses(self.losses, epoch)
        steps = len(self.losses)
        return TrainStats(
            loss=math.fsum(self.losses) / steps,
            accuracy=sum(self.hits) / self.images,
            learning_rate=self.learning_rate,
            gradient_norm=math.fsum(self.norms) / steps,
            gradient_norms=tuple(self.norms[:LOGGED_GRADIENT_NORMS]) if epoch == 1 else (),
        )


def build_epoch(
    epoch: int,
    train: TrainStats,
    val: Evaluation,
    *,
    seconds: float,
    images_per_second: float,
    system: SystemMetrics,
    distance: float = 0.0,
    micro_batch: int | None = None,
    val_noisy_accuracy: float | None = None,
    selection: Selection | None = None,
) -> Epoch:
    """Return the Epoch of one pass over the training part; see `Epoch` for the arguments.

    Args:
        epoch: counted from 1.
        train: training statistics.
        val: evaluation on the validation part afterwards.
        seconds: wall-clock time.
        images_per_second: training throughput.
        system: system metrics.
        distance: relative distance of the body from its start.
        micro_batch: size of a micro-batch, None for whole batches.
        val_noisy_accuracy: validation accuracy under noise, if measured.
        selection: of the weights that are kept, in the last epoch of a run that trains more than a head.
    """
    averaged = selection.averaged if selection else None
    return Epoch(
        epoch=epoch,
        train_loss=train.loss,
        train_accuracy=train.accuracy,
        val_loss=val.loss,
        val_accuracy=val.accuracy,
        val_top5_accuracy=val.top5_accuracy,
        val_balanced_accuracy=val.balanced_accuracy,
        val_calibration_error=val.calibration_error,
        val_noisy_accuracy=val_noisy_accuracy,
        learning_rate=train.learning_rate,
        gradient_norm=train.gradient_norm,
        gradient_norms=train.gradient_norms,
        distance=distance,
        micro_batch=micro_batch,
        seconds=seconds,
        images_per_second=images_per_second,
        kept=selection.kept if selection else None,
        raw_val_accuracy=selection.last.accuracy if selection else None,
        raw_val_loss=selection.last.loss if selection else None,
        averaged_val_accuracy=averaged.accuracy if averaged else None,
        averaged_val_loss=averaged.loss if averaged else None,
        **system,
    )


def build_record(
    recipe: Recipe,
    trial: str,
    phase: Phase,
    epochs: tuple[Epoch, ...] = (),
    *,
    parameters: int | None = None,
    trainable_parameters: int | None = None,
    val: Evaluation | None = None,
    error: str | None = None,
    resumed_at: tuple[int, ...] = (),
    start_accuracy: float | None = None,
    flops: int | None = None,
    arithmetic: str = "float32",
) -> Record:
    """Return the Record of a run, complete or not; see `Record` for the arguments.

    The status is "failed" with an error, "finished" after the recipe's last epoch, else "pruned".
    """
    status: Status = "failed" if error else "finished" if len(epochs) == recipe.epochs else "pruned"
    return Record(
        trial=trial,
        phase=phase,
        key=recipe.key,
        id=recipe.id,
        recipe=recipe.as_dict(),
        status=status,
        epochs=epochs,
        parameters=parameters,
        trainable_parameters=trainable_parameters,
        seconds=sum(epoch.seconds for epoch in epochs),
        val=val if status == "finished" else None,
        error=error,
        resumed_at=resumed_at,
        start_accuracy=start_accuracy,
        flops=flops,
        arithmetic=arithmetic,
    )
