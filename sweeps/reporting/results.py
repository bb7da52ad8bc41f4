"""Results: what a report is made of; Trial: a search run together with its final runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from sweeps.reporting.statistics import Estimate, pooled_estimate
from xfer.objectives import ACCURACY, Objective, pareto_mask, parse_objectives
from xfer.records import Evaluation, Record


@dataclass(frozen=True)
class Results:
    """Everything a sweep has left behind so far."""

    plan: Mapping[str, Any]
    """The sweep's plan.json."""
    records: Sequence[Record]
    """Every run that has ended: heads of the screening, search and finals."""
    openings: Sequence[Mapping[str, Any]] = ()
    """Each time the test part was opened: `at`, an ISO time, and `finalists`, trials in the order fixed before."""
    unfinished: Sequence[str] = ()
    """Trials that were begun and have no record yet."""
    screening: Mapping[str, Any] | None = None
    """What was decided about the backbones before the search, where anything was
    (`sweeps.engine.planning.screening`)."""
    spending: Sequence[Mapping[str, Any]] = ()
    """What the machines of each start came to, where prices are known (`sweeps.engine.resources.cost`)."""

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """What was searched for, the one that decides first; a plan from before there was a choice means accuracy."""
        return parse_objectives(",".join(self.plan.get("objective", [ACCURACY.name])))

    @property
    def objective(self) -> Objective:
        """What trials are ranked by."""
        return self.objectives[0]

    @cached_property
    def pareto_front(self) -> frozenset[str]:
        """Of two objectives: the finished trials whose search run no other one beats in both. Else nobody."""
        if len(self.objectives) < 2:
            return frozenset()
        finished = [trial for trial in self.trials if trial.status == "finished"]
        scores = {
            trial.name: tuple(-math.inf if score is None else score for score in trial.search_scores)
            for trial in finished
        }
        return frozenset(name for name, best in zip(scores, pareto_mask(list(scores.values())), strict=True) if best)

    @cached_property
    def trials(self) -> tuple[RankedTrial, ...]:
        """One for each search run, in the order of their names."""
        finals: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            if record.phase == "final":
                finals[record.trial.rpartition("-s")[0]].append(record)
        searched = sorted((r for r in self.records if r.phase == "search"), key=lambda record: record.trial)
        return tuple(RankedTrial(record, tuple(finals[record.trial]), self.objectives) for record in searched)

    @property
    def seconds(self) -> float:
        """Wall clock of all runs added up, as if they had run one after another."""
        return sum(record.seconds for record in self.records)


@dataclass(frozen=True)
class RankedTrial:
    """A search run together with the final runs of the same recipe on other seeds."""

    search: Record
    finals: tuple[Record, ...] = ()
    objectives: tuple[Objective, ...] = (ACCURACY,)
    """What its sweep searched for, the one that decides first."""

    @property
    def name(self) -> str:
        """`0007` for the seventh trial after `0000`."""
        return self.search.trial

    @property
    def strategy(self) -> str:
        """The strategy's name without its parameters."""
        return str(self.search.recipe["strategy"]["name"])

    @property
    def status(self) -> str:
        """How the search run ended: finished, pruned or failed."""
        return self.search.status

    @cached_property
    def is_finalist(self) -> bool:
        """Whether at least one final run got as far as being measured."""
        return any(record.val for record in self.finals)

    @cached_property
    def search_accuracy(self) -> float | None:
        """Validation accuracy after the search run's last epoch."""
        value = self.search.val_accuracy
        return value if value is not None and math.isfinite(value) else None

    @cached_property
    def validation(self) -> Estimate | None:
        """On the validation part: a finalist's final runs together, else the search run if it finished."""
        evaluations = [record.val for record in self.finals if record.val]
        if not evaluations and self.search.val:
            evaluations = [self.search.val]
        return pooled_estimate(evaluations) if evaluations else None

    @cached_property
    def test(self) -> Estimate | None:
        """On the test part: a finalist's final runs together, once the test part has been opened."""
        evaluations = [record.test for record in self.finals if record.test]
        return pooled_estimate(evaluations) if evaluations else None

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy: a finalist's over its final runs, any other trial's of its search run."""
        return self.validation.mean if self.is_finalist and self.validation else self.search_accuracy

    @property
    def search_value(self) -> float | None:
        """What the search run came to in the objective that decides: what finalists were chosen by."""
        return self.objectives[0].value(self.search.epochs)

    @property
    def search_scores(self) -> tuple[float | None, ...]:
        """What the search run came to in every objective, higher is better."""
        return tuple(each.score(self.search.epochs) for each in self.objectives)

    def value(self, objective: Objective) -> float | None:
        """What the trial came to on the validation part: a finalist's mean over its final runs, else the search's."""
        if objective == ACCURACY:
            return self.val_accuracy
        return self.mean(lambda record: objective.value(record.epochs))

    @property
    def score(self) -> float | None:
        """What the trial is ranked by, higher is better."""
        value = self.value(self.objectives[0])
        return None if value is None else self.objectives[0].to_score(value)

    def test_value(self, objective: Objective) -> float | None:
        """What the trial came to on the test part, as the mean over its final runs."""
        return self.test_mean(objective.on)

    def mean(self, read: Callable[[Record], float | None]) -> float | None:
        """The mean of something over a finalist's measured runs, else the search run's; None where it is not known."""
        runs = [record for record in self.finals if record.val] or [self.search]
        return _mean(read(record) for record in runs)

    def test_mean(self, read: Callable[[Evaluation], float | None]) -> float | None:
        """The mean over the final runs of something that the test part said; None where it is not known."""
        return _mean(read(record.test) for record in self.finals if record.test)

    @property
    def seeds(self) -> int:
        """How many runs stand behind `val_accuracy`."""
        return self.validation.seeds if self.validation else int(self.search_accuracy is not None)

    @property
    def seconds(self) -> float:
        """Wall clock of the search run and the final runs together."""
        return self.search.seconds + sum(record.seconds for record in self.finals)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
