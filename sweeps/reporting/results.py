"""Results: what a report is made of; Trial: a search run together with its final runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sweeps.reporting.statistics import Estimate, pooled
from xfer.records import Record


@dataclass(frozen=True)
class Results:
    """Everything a sweep has left behind so far."""

    plan: Mapping[str, Any]
    """The sweep's plan.json."""
    records: Sequence[Record]
    """Every run that has ended, of the search and of the finals."""
    openings: Sequence[Mapping[str, Any]] = ()
    """Each time the test part was opened: `at`, an ISO time, and `finalists`, trials in the order fixed before."""
    unfinished: Sequence[str] = ()
    """Trials that were begun and have no record yet."""

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """One for each search run, in the order of their names."""
        finals: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            if record.phase == "final":
                finals[record.trial.rpartition("-s")[0]].append(record)
        searched = sorted((r for r in self.records if r.phase == "search"), key=lambda record: record.trial)
        return tuple(Trial(record, tuple(finals[record.trial])) for record in searched)

    @property
    def seconds(self) -> float:
        """Wall clock of all runs added up, as if they had run one after another."""
        return sum(record.seconds for record in self.records)


@dataclass(frozen=True)
class Trial:
    """A search run together with the final runs of the same recipe on other seeds."""

    search: Record
    finals: tuple[Record, ...] = ()

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
        """Validation accuracy after the search run's last epoch: what finalists were chosen by."""
        value = self.search.val_accuracy
        return value if value is not None and math.isfinite(value) else None

    @cached_property
    def validation(self) -> Estimate | None:
        """On the validation part: a finalist's final runs together, else the search run if it finished."""
        evaluations = [record.val for record in self.finals if record.val]
        if not evaluations and self.search.val:
            evaluations = [self.search.val]
        return pooled(evaluations) if evaluations else None

    @cached_property
    def test(self) -> Estimate | None:
        """On the test part: a finalist's final runs together, once the test part has been opened."""
        evaluations = [record.test for record in self.finals if record.test]
        return pooled(evaluations) if evaluations else None

    @property
    def val_accuracy(self) -> float | None:
        """The validation accuracy that the trial is ranked by."""
        return self.validation.mean if self.is_finalist and self.validation else self.search_accuracy

    @property
    def seeds(self) -> int:
        """How many runs stand behind `val_accuracy`."""
        return self.validation.seeds if self.validation else int(self.search_accuracy is not None)

    @property
    def seconds(self) -> float:
        """Wall clock of the search run and the final runs together."""
        return self.search.seconds + sum(record.seconds for record in self.finals)
