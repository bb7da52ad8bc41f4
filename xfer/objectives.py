"""Objectives: what a sweep searches for, ranks by and stops by. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from xfer.choices import unknown_name_message
from xfer.records import Epoch, Evaluation

Unit = Literal["share", "nats", "seconds"]
Measure = Callable[[Sequence[Epoch]], float | None]
"""What a run has come to after these epochs, of which there is at least one; None where it was not measured."""


@dataclass(frozen=True)
class Objective:
    """One thing that a run can be good at."""

    name: str
    label: str
    """What a reader calls it, for a sentence and for the head of a column."""
    metric: str
    """The field of `Epoch` that it is read from, and the metric's name in MLflow."""
    unit: Unit
    """`share` is in [0, 1], `nats` in [0, inf), `seconds` in (0, inf)."""
    higher_is_better: bool
    measure: Measure
    from_evaluation: Callable[[Evaluation], float | None] | None = None
    """The same, of an evaluation."""

    def value(self, epochs: Sequence[Epoch]) -> float | None:
        """What a run has come to after these epochs, in the objective's own unit; None unless it is a finite number."""
        found = self.measure(epochs) if epochs else None
        return None if found is None or not math.isfinite(found) else found

    def score(self, epochs: Sequence[Epoch]) -> float | None:
        """The same, so that higher is always better."""
        found = self.value(epochs)
        return None if found is None else self.to_score(found)

    def to_score(self, value: float) -> float:
        """A value as a score, and a score as a value: what is better low is negated."""
        return value if self.higher_is_better else -value

    def on(self, evaluation: Evaluation) -> float | None:
        """What one part of the data says, in the objective's own unit; None where it was not measured there.

        Of an objective that is no quality of a network, such as seconds, no part says anything.
        """
        return None if self.from_evaluation is None else self.from_evaluation(evaluation)

    def scores(self, epochs: Sequence[Epoch]) -> list[float | None]:
        """The score after each epoch, the first after epoch 1."""
        return [self.score(epochs[:number]) for number in range(1, len(epochs) + 1)]


def accuracy(epochs: Sequence[Epoch]) -> float | None:
    """The share of validation images put into the right class.

    The right question where every image counts the same. Where some classes are rare it can be high for a network
    that has never named one of them.
    """
    return epochs[-1].val_accuracy


def balanced_accuracy(epochs: Sequence[Epoch]) -> float | None:
    """The mean over classes of the share of a class's validation images that are recognised (Brodersen et al. 2010).

    Helps where classes differ in size and a rare one matters as much as a common one. A class with few validation
    images counts fully and is known poorly, so the value jumps more from seed to seed than plain accuracy does.
    """
    return epochs[-1].val_balanced_accuracy


def noisy_accuracy(epochs: Sequence[Epoch]) -> float | None:
    """The accuracy on validation images that were corrupted (after Hendrycks & Dietterich 2019).

    Helps where photos will come from worse cameras, weather or transmission than those at hand. It says nothing of
    corruptions of another kind, and costs a further pass over the validation part after every epoch.
    """
    return epochs[-1].val_noisy_accuracy


def loss(epochs: Sequence[Epoch]) -> float | None:
    """The mean cross-entropy on the validation part, in nats; lower is better.

    Helps where probabilities are used and not only the first class, and where so few images are validated on that
    accuracies tie. One image that is wrong with great confidence can outweigh many that are right.
    """
    return epochs[-1].val_loss


def seconds(epochs: Sequence[Epoch]) -> float | None:
    """The wall clock of all epochs, validation included; lower is better. Only beside another objective.

    Helps where many networks will be trained in the same way. It holds for the machine and for what else ran there.
    """
    return math.fsum(epoch.seconds for epoch in epochs)


OBJECTIVES: dict[str, Objective] = {
    each.measure.__name__: each
    for each in (
        Objective("accuracy", "accuracy", "val_accuracy", "share", True, accuracy, lambda on: on.accuracy),
        Objective(
            *("balanced_accuracy", "balanced accuracy", "val_balanced_accuracy", "share", True, balanced_accuracy),
            lambda on: on.balanced_accuracy,
        ),
        Objective(
            *("noisy_accuracy", "accuracy under noise", "val_noisy_accuracy", "share", True, noisy_accuracy),
            lambda on: on.noisy_accuracy,
        ),
        Objective("loss", "cross-entropy", "val_loss", "nats", False, loss, lambda on: on.loss),
        Objective("seconds", "seconds", "seconds", "seconds", False, seconds),
    )
}

ACCURACY = OBJECTIVES["accuracy"]


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """The objectives that a person names, the one that decides first.

    >>> [each.label for each in parse_objectives("balanced_accuracy, seconds")]
    ['balanced accuracy', 'seconds']

    Raises:
        ValueError: an unknown name, with the nearest known ones, or names that together make no sense.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise ValueError(f"an objective is wanted: {', '.join(OBJECTIVES)}, or two as in accuracy,seconds")
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(unknown_name_message("objective", name, OBJECTIVES))
        if names.count(name) > 1:
            raise ValueError(f"objective {text}: {name} is named twice")
    if len(names) > 2:
        raise ValueError(
            f"objective {text}: {len(names)} at once leave hardly a trial that is not best in something, so there "
            f"would be nothing to choose by; name the two that matter most"
        )
    if names[0] == "seconds":
        better = f"{names[1]},seconds" if names[1:] else "accuracy,seconds"
        raise ValueError(
            f"objective {text}: the fastest network is one that learns nothing, so seconds cannot decide; name first "
            f"what the network should be good at, as in {better}"
        )
    return tuple(OBJECTIVES[name] for name in names)


def pareto_mask(scores: Sequence[Sequence[float]]) -> list[bool]:
    """For each point of scores, is it on the Pareto front: is none as good in everything and better in something?

    Equal points beat each other in nothing: they are on the front together or not at all.

    >>> pareto_mask([(0.9, -10.0), (0.8, -5.0), (0.7, -8.0)])
    [True, True, False]
    """

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        return tuple(one) != tuple(other) and all(a >= b for a, b in zip(one, other, strict=True))

    return [not any(beats(other, each) for other in scores) for each in scores]
