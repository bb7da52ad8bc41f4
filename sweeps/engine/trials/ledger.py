"""Ledger: the trials and records of a sweep in memory, and which checkpoints are worth their disk space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sweeps.engine import selection
from sweeps.engine.storage.store import Store, Trial
from xfer.objectives import Objective
from xfer.records import Record


class TrialLedger:
    """All trials that were started and all records so far, those of earlier starts included.

    Args:
        store: the sweep's.
        objectives: what trials are ranked by.
        max_checkpoints: number of search trials whose checkpoints are kept: the finalists-to-be.
    """

    def __init__(self, store: Store, objectives: Sequence[Objective], max_checkpoints: int) -> None:
        self._store = store
        self._objectives = objectives
        self._max_checkpoints = max_checkpoints
        self.trials = {trial.name: trial for trial in store.trials()}
        """Every trial that was started, by name."""
        self.records: dict[str, Record] = {}
        """Every record, by trial, without the evaluation of single images."""
        self._num_full, self._full_seconds = 0, 0.0  # running sums, because they are read after every epoch
        for record in store.records():
            if record.trial in self.trials:
                self.add_record(record)
        self._best = self._select_best(list(self.records.values()))

    def start(self, trial: Trial) -> None:
        """Add a trial, here and in the store."""
        self.trials[trial.name] = trial
        self._store.add_trial(trial)

    def add_record(self, record: Record) -> None:
        """Add the record of a trial that has ended."""
        # Thousands are held in memory, so evaluations of single images stay in the store and recipes are shared.
        self.records[record.trial] = replace(record, val=None, recipe=self.trials[record.trial].recipe)
        if record.phase == "search" and record.status == "finished":
            self._num_full, self._full_seconds = self._num_full + 1, self._full_seconds + record.seconds

    def drop_weak_checkpoints(self, newest: str) -> None:
        """Delete the checkpoints of search trials that are no longer among the best.

        Args:
            newest: the trial whose record was added last.
        """
        # With one objective the best are among the previous best and the newest trial.
        candidates = [self.records[name] for name in {*self._best, newest}]
        best = self._select_best(list(self.records.values()) if self._objectives[1:] else candidates)
        for name in {newest, *self._best} - set(best):
            self._store.drop_checkpoints(name)
        self._best = best

    def ended(self, phase: str) -> dict[str, Record]:
        """Return the records of a phase, by trial."""
        return {name: record for name, record in self.records.items() if record.phase == phase}

    def started(self, phase: str) -> list[Trial]:
        """Return the trials of a phase that were started."""
        return [trial for trial in self.trials.values() if trial.phase == phase]

    def unfinished(self, phase: str) -> list[Trial]:
        """Return the trials of a phase that were started and have no record yet."""
        return [trial for trial in self.started(phase) if trial.name not in self.records]

    @property
    def seconds_per_trial(self) -> float:
        """Mean duration of the finished search trials; 0 if there is none."""
        return self._full_seconds / self._num_full if self._num_full else 0.0

    def _select_best(self, records: list[Record]) -> list[str]:
        return selection.select_finalists(records, self._max_checkpoints, self._objectives)
