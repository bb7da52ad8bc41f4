"""Objectives: what a sweep optimises, ranks and stops by. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from xfer.choices import unknown_name_message
from xfer.records import Epoch, Evaluation

Unit = Literal["share", "nats", "seconds"]
Measure = Callable[[Sequence[Epoch]], float | None]
"""Value of a run after these epochs (at least one); None if it was not measured."""


@dataclass(frozen=True)
class Objective:
    """One quantity that a sweep can optimise."""

    name: str
    label: str
    """Name for readers, used in sentences and column headings."""
    metric: str
    """Field of `Epoch` that holds the value; also the metric's name in MLflow."""
    unit: Unit
    """`share` is in [0, 1], `nats` in [0, inf), `seconds` in (0, inf)."""
    higher_is_better: bool
    measure: Measure
    from_evaluation: Callable[[Evaluation], float | None] | None = None
    """Reads the objective from an `Evaluation`; None if an evaluation does not contain it."""

    def value(self, epochs: Sequence[Epoch]) -> float | None:
        """Returns a run's value after these epochs, in the objective's own unit; None unless it is a finite number."""
        value = self.measure(epochs) if epochs else None
        return None if value is None or not math.isfinite(value) else value

    def score(self, epochs: Sequence[Epoch]) -> float | None:
        """Returns the value after these epochs as a score, where higher is always better."""
        value = self.value(epochs)
        return None if value is None else self.to_score(value)

    def to_score(self, value: float) -> float:
        """Converts a value to a score or back: negated if lower is better."""
        return value if self.higher_is_better else -value

    def on(self, evaluation: Evaluation) -> float | None:
        """Returns the value on one part of the data, in the objective's own unit; None if it was not measured there.

        Always None for objectives that are not properties of a network, such as seconds.
        """
        return None if self.from_evaluation is None else self.from_evaluation(evaluation)

    def scores(self, epochs: Sequence[Epoch]) -> list[float | None]:
        """Returns the score after each epoch, the first after epoch 1."""
        return [self.score(epochs[:number]) for number in range(1, len(epochs) + 1)]


def accuracy(epochs: Sequence[Epoch]) -> float | None:
    """Fraction of validation images that are classified correctly.

    The right objective where every image counts the same. Where some classes are rare it can be high for a network that
    never predicts one of them.
    """
    return epochs[-1].val_accuracy


def balanced_accuracy(epochs: Sequence[Epoch]) -> float | None:
    """Mean over classes of the fraction of a class's validation images that are recognised.

    Helps where classes differ in size and a rare one matters as much as a common one. A class with few validation
    images has full weight but a noisy estimate, so the value varies more between seeds than plain accuracy. Brodersen
    et al. 2010, ICPR.
    """
    return epochs[-1].val_balanced_accuracy


def noisy_accuracy(epochs: Sequence[Epoch]) -> float | None:
    """Accuracy on corrupted validation images (after Hendrycks & Dietterich 2019, arXiv:1903.12261).

    Helps where photos will come from worse cameras, weather or transmission than the training images. It says nothing
    about other kinds of corruption, and costs another pass over the validation set after every epoch.
    """
    return epochs[-1].val_noisy_accuracy


def loss(epochs: Sequence[Epoch]) -> float | None:
    """Mean cross-entropy on the validation set, in nats; lower is better.

    Helps where probabilities are used and not only the predicted class, and where so few images are validated on that
    accuracies tie. One confidently wrong image can outweigh many correct ones.
    """
    return epochs[-1].val_loss


def seconds(epochs: Sequence[Epoch]) -> float | None:
    """Wall-clock time of all epochs, validation included; lower is better. Only as a second objective.

    Helps where many networks will be trained in the same way. It is specific to the machine and to its other load.
    """
    return math.fsum(epoch.seconds for epoch in epochs)


OBJECTIVES: dict[str, Objective] = {
    objective.measure.__name__: objective
    for objective in (
        Objective(
            "accuracy", "accuracy", "val_accuracy", "share", True, accuracy, lambda evaluation: evaluation.accuracy
        ),
        Objective(
            *("balanced_accuracy", "balanced accuracy", "val_balanced_accuracy", "share", True, balanced_accuracy),
            lambda evaluation: evaluation.balanced_accuracy,
        ),
        Objective(
            *("noisy_accuracy", "accuracy under noise", "val_noisy_accuracy", "share", True, noisy_accuracy),
            lambda evaluation: evaluation.noisy_accuracy,
        ),
        Objective("loss", "cross-entropy", "val_loss", "nats", False, loss, lambda evaluation: evaluation.loss),
        Objective("seconds", "seconds", "seconds", "seconds", False, seconds),
    )
}

ACCURACY = OBJECTIVES["accuracy"]


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Parses a comma-separated list of one or two objectives; the first one decides.

    >>> [objective.label for objective in parse_objectives("balanced_accuracy, seconds")]
    ['balanced accuracy', 'seconds']

    Raises:
        ValueError: If a name is unknown (the nearest known ones are suggested), or the combination makes no sense.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise ValueError(f"no objective given: use one of {', '.join(OBJECTIVES)}, or two as in accuracy,seconds")
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(unknown_name_message("objective", name, OBJECTIVES))
        if names.count(name) > 1:
            raise ValueError(f"objective {text}: {name} is given twice")
    if len(names) > 2:
        raise ValueError(
            f"objective {text}: at most 2 objectives, got {len(names)}; with more, almost every trial would be on the "
            f"Pareto front. Give the two that matter most"
        )
    if names[0] == "seconds":
        corrected = f"{names[1]},seconds" if names[1:] else "accuracy,seconds"
        raise ValueError(
            f"objective {text}: seconds cannot be the first objective, because the fastest network learns nothing; put "
            f"the network's quality first, as in {corrected}"
        )
    return tuple(OBJECTIVES[name] for name in names)


def pareto_mask(scores: Sequence[Sequence[float]]) -> list[bool]:
    """Returns for each point of scores whether it is on the Pareto front: no other point dominates it.

    Equal points do not dominate each other: they are on the front together or not at all.

    >>> pareto_mask([(0.9, -10.0), (0.8, -5.0), (0.7, -8.0)])
    [True, True, False]
    """

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        return tuple(one) != tuple(other) and all(a >= b for a, b in zip(one, other, strict=True))

    return [not any(dominates(other, point) for other in scores) for point in scores]
