"""The input of a report: all records of a sweep, grouped into trials."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sweeps.reporting.statistics import Estimate, pooled_estimate
from xfer.hyperparameters import CLOSED_FORM_HEADS
from xfer.lengths import steps_per_epoch
from xfer.measure.benefits import majority_rate
from xfer.objectives import ACCURACY, Objective, pareto_mask, parse_objectives
from xfer.records import Evaluation, Record

if TYPE_CHECKING:  # `status` and `list` do without them
    from xfer.data.pack import Pack
    from xfer.measure.held_out import HeldOutRun


@dataclass(frozen=True)
class Importance:
    """Importance of one choice."""

    choice: str
    """Name of the sampler's parameter, such as `sgd.learning_rate`."""
    share: float
    """Part of the sum over all choices, in [0, 1]."""
    times_chance: float
    """Importance divided by its 95% quantile if results are exchanged at random between trials."""
    trials: int
    """Number of finished trials in which the choice existed."""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the importance exceeds what chance explains."""
        return self.times_chance > 1


@dataclass(frozen=True)
class Importances:
    """Importance of every choice, the most important one first."""

    choices: tuple[Importance, ...]
    finished: int
    """Number of finished trials."""
    trials: int
    """Number of them that importances are computed from."""
    top: int
    """Number of the latter that count as the best ones."""


@dataclass(frozen=True)
class Results:
    """Everything that a sweep has stored so far."""

    plan: Mapping[str, Any]
    """Content of the sweep's plan.json."""
    records: Sequence[Record]
    """All runs that have ended, of the phases screen, search and final."""
    openings: Sequence[Mapping[str, Any]] = ()
    """Each use of the test set: `at`, an ISO time, and `finalists`, trial names in the order fixed beforehand."""
    unfinished: Sequence[str] = ()
    """Names of trials that have started and have no record yet."""
    screening: Mapping[str, Any] | None = None
    """The decision about the backbones before the search; None without a screening
    (`sweeps.engine.planning.screening`)."""
    spending: Sequence[Mapping[str, Any]] = ()
    """Machine time and prices of each start of the sweep (`sweeps.engine.resources.cost`)."""
    zero_effort: Sequence[Mapping[str, Any]] = ()
    """Accuracies on frozen features without training: on the validation set, then on the test set
    (`sweeps.engine.presearch.zero_effort`)."""
    data_curve: Mapping[str, Any] | None = None
    """`backbone` and `points` of the logistic probes at growing numbers of training images; None if not measured."""

    held_out: Mapping[str, HeldOutRun] = field(default_factory=dict)
    """Predictions of the first finalist's runs by their names; empty if none are stored. Only reports load them."""
    pack: Pack | None = None
    """The prepared data, for photos; None if they are not on this machine."""
    why_no_pack: str = "the prepared data were not loaded"
    """Why there is no pack, as the end of a sentence."""

    importances: Importances | None = None
    """Importance of every choice of the search; None if the trials are too few. Only reports load it."""

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """Objectives of the search, the deciding one first. Older plans name none and mean accuracy."""
        return parse_objectives(",".join(self.plan.get("objective", [ACCURACY.name])))

    @property
    def objective(self) -> Objective:
        """The objective by which trials are ranked."""
        return self.objectives[0]

    def steps(self, record: Record) -> int:
        """Return the number of gradient steps that a run has taken; 0 for a head in closed form."""
        recipe, images = record.recipe, self.plan["data"]["train"]
        if recipe["strategy"]["name"] in CLOSED_FORM_HEADS:
            return 0
        if (limit := recipe.get("images_per_class")) is not None:
            images = min(images, limit * recipe["classes"])
        return len(record.epochs) * steps_per_epoch(images, recipe["batch_size"])

    @cached_property
    def pareto_front(self) -> frozenset[str]:
        """Names of the finished trials on the Pareto front of two objectives; empty with one objective."""
        if len(self.objectives) < 2:
            return frozenset()
        finished = [trial for trial in self.trials if trial.status == "finished"]
        scores = {
            trial.name: tuple(-math.inf if score is None else score for score in trial.search_scores)
            for trial in finished
        }
        on_front = pareto_mask(list(scores.values()))
        return frozenset(name for name, is_on_front in zip(scores, on_front, strict=True) if is_on_front)

    @cached_property
    def trials(self) -> tuple[RankedTrial, ...]:
        """One trial per search run, in the order of their names."""
        finals: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            if record.phase == "final":
                finals[record.trial.rpartition("-s")[0]].append(record)
        search = sorted((r for r in self.records if r.phase == "search"), key=lambda record: record.trial)
        return tuple(RankedTrial(record, tuple(finals[record.trial]), self.objectives) for record in search)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.plan["data"]["classes"])

    @cached_property
    def guessing_rate(self) -> float:
        """Accuracy on the validation set of always answering its most frequent class, in [0, 1].

        If an older version has stored no confusion matrix, classes are taken to be equally frequent.
        """
        shares = (majority_rate(record.val) for record in self.records if record.val)
        return next((share for share in shares if share is not None), 1 / self.classes)

    @property
    def seconds(self) -> float:
        """Total wall-clock time of all runs, as if they had run one after another."""
        return sum(record.seconds for record in self.records)


@dataclass(frozen=True)
class RankedTrial:
    """A search run with the final runs of the same recipe on other seeds."""

    search: Record
    finals: tuple[Record, ...] = ()
    objectives: tuple[Objective, ...] = (ACCURACY,)
    """Objectives of the sweep, the deciding one first."""

    @property
    def name(self) -> str:
        """Name of the search run, as in `0007`."""
        return self.search.trial

    @property
    def strategy(self) -> str:
        """The strategy's name without its parameters."""
        return str(self.search.recipe["strategy"]["name"])

    @property
    def status(self) -> str:
        """Status of the search run: finished, pruned or failed."""
        return self.search.status

    @cached_property
    def is_finalist(self) -> bool:
        """Whether at least one final run was evaluated."""
        return any(record.val for record in self.finals)

    @cached_property
    def search_accuracy(self) -> float | None:
        """Validation accuracy after the last epoch of the search run."""
        value = self.search.val_accuracy
        return value if value is not None and math.isfinite(value) else None

    @cached_property
    def validation(self) -> Estimate | None:
        """Estimate on the validation set: over a finalist's final runs, else from the search run if it finished."""
        evaluations = [record.val for record in self.finals if record.val]
        return pooled_estimate(evaluations) if evaluations else self.search_validation

    @property
    def val_evaluations(self) -> list[Evaluation]:
        """Evaluations on the validation set: of a finalist's final runs, else of the search run if it finished."""
        finals = [record.val for record in self.finals if record.val]
        return finals or ([self.search.val] if self.search.val else [])

    @property
    def test_evaluations(self) -> list[Evaluation]:
        """Evaluations of a finalist's final runs on the test set; none before the test set is used."""
        return [record.test for record in self.finals if record.test]

    @cached_property
    def search_validation(self) -> Estimate | None:
        """Estimate on the validation set from the search run alone; None if it did not finish."""
        return pooled_estimate([self.search.val]) if self.search.val else None

    @cached_property
    def test(self) -> Estimate | None:
        """Estimate on the test set over a finalist's final runs; None before the test set is used."""
        evaluations = [record.test for record in self.finals if record.test]
        return pooled_estimate(evaluations) if evaluations else None

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy: over a finalist's final runs, else of the search run."""
        return self.validation.mean if self.is_finalist and self.validation else self.search_accuracy

    @property
    def search_value(self) -> float | None:
        """The search run's value of the deciding objective, by which finalists were selected."""
        return self.value_in_search(self.objectives[0])

    def value_in_search(self, objective: Objective) -> float | None:
        """The search run's value of an objective on the validation set, also for a finalist."""
        return objective.value(self.search.epochs)

    @property
    def search_scores(self) -> tuple[float | None, ...]:
        """The search run's score in every objective; higher is better."""
        return tuple(objective.score(self.search.epochs) for objective in self.objectives)

    def value(self, objective: Objective) -> float | None:
        """Value on the validation set: a finalist's mean over its final runs, else that of the search run."""
        if objective == ACCURACY:
            return self.val_accuracy
        return self.mean(lambda record: objective.value(record.epochs))

    @property
    def score(self) -> float | None:
        """Score in the deciding objective, by which the trial is ranked; higher is better."""
        value = self.value(self.objectives[0])
        return None if value is None else self.objectives[0].to_score(value)

    def test_value(self, objective: Objective) -> float | None:
        """Mean value on the test set over the final runs; None if unknown."""
        return self.test_mean(objective.on)

    def mean(self, read: Callable[[Record], float | None]) -> float | None:
        """Average a quantity over a finalist's evaluated final runs, or read it from the search run.

        Args:
            read: returns the quantity of one run; None or NaN values are ignored.

        Returns:
            None if no run has a value.
        """
        runs = [record for record in self.finals if record.val] or [self.search]
        return _mean(read(record) for record in runs)

    def test_mean(self, read: Callable[[Evaluation], float | None]) -> float | None:
        """Average a quantity over the test evaluations of the final runs; None if no evaluation has a value."""
        return _mean(read(record.test) for record in self.finals if record.test)

    @property
    def kept(self) -> str:
        """Weights kept by the runs behind `val_accuracy`, as in `averaged 2, last 1`; empty if no run had a choice."""
        runs = [record for record in self.finals if record.val] or [self.search]
        counts = Counter(record.kept for record in runs if record.kept is not None)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{kept} {count}" for kept, count in counts.most_common())

    @property
    def seeds(self) -> int:
        """Number of runs behind `val_accuracy`."""
        return self.validation.seeds if self.validation else int(self.search_accuracy is not None)

    @property
    def seconds(self) -> float:
        """Total wall-clock time of the search run and the final runs."""
        return self.search.seconds + sum(record.seconds for record in self.finals)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
