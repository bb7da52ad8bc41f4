"""Ledger: the trials and records of a sweep in memory, and which checkpoints are worth their disk space.

It also checks objects that belong together. A trial's number, recipe, epochs and record stand or fall as one: a recipe
that was lost is restored from the record, and a trial that has neither is set aside with everything it has stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sweeps.engine import selection
from sweeps.engine.storage.store import Store, Trial
from xfer.objectives import Objective
from xfer.recipe import recipe_from_dict
from xfer.records import Record


class TrialLedger:
    """All trials that were started and all records so far, those of earlier starts included.

    Args:
        store: the sweep's.
        objectives: what trials are ranked by.
        max_checkpoints: number of search trials whose checkpoints are kept: the finalists-to-be.
        control: key of the recipe that is a finalist in any case.
    """

    def __init__(
        self, store: Store, objectives: Sequence[Objective], max_checkpoints: int, control: str | None = None
    ) -> None:
        self._store = store
        self._objectives = objectives
        self._max_checkpoints = max_checkpoints
        self._control = control
        self.trials = {trial.name: trial for trial in store.trials()}
        """Every trial that was started, by name."""
        self.records: dict[str, Record] = {}
        """Every record, by trial, without the evaluation of single images."""
        self.notes: list[str] = []
        """Lines about damage that was found and repaired."""
        self._num_full, self._full_seconds = 0, 0.0  # running sums, because they are read after every epoch
        for record in self._consistent_records():
            self.add_record(record)
        self._best = self._select_best(list(self.records.values()))

    def start(self, trial: Trial) -> None:
        """Add a trial, here and in the store. Another trial that was stored under its name is set aside."""
        earlier = self.trials.get(trial.name)
        if earlier is not None and not _same_recipe(earlier, trial):
            self._set_aside(trial.name, "its recipe is not the one that this sweep gives it")
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

    def _consistent_records(self) -> list[Record]:
        """Return the records that fit what they refer to, after repairing or setting aside all other trials."""
        records = {record.trial: record for record in self._store.records()}
        for name in self._store.trial_names():
            if name not in self.trials and name not in records and not self._store.is_empty(name):
                self._set_aside(name, "its config.json is missing or damaged, and it has no record")
        for name, record in list(records.items()):
            finalist = records.get(selection.search_trial_name(name), record)
            if finalist.key != record.key:
                self._set_aside(name, f"it is a run of another recipe than {finalist.trial}")
                del records[name], self.trials[name]
            elif name not in self.trials or not _same_recipe(self.trials[name], record):
                # The sampler's parameters follow from the recipe (`presearch.warm_start.recover_params`).
                self.trials[name] = Trial(name, record.phase, {}, record.recipe)
                self._store.restore_trial(self.trials[name])
                self.notes.append(f"trial {name}: its config.json was damaged and is restored from its record")
        return list(records.values())

    def _set_aside(self, name: str, reason: str) -> None:
        folder = self._store.set_aside(name)
        self.notes.append(f"trial {name} is set aside as {folder.name} and runs again: {reason}")

    def _select_best(self, records: list[Record]) -> list[str]:
        return selection.select_finalists(records, self._max_checkpoints, self._objectives, self._control)


def _same_recipe(one: Trial | Record, other: Trial | Record) -> bool:
    if dict(one.recipe) == dict(other.recipe):
        return True
    try:  # one of them may lack settings that it has by default
        return recipe_from_dict(one.recipe).id == recipe_from_dict(other.recipe).id
    except (ValueError, LookupError, TypeError):
        return False
