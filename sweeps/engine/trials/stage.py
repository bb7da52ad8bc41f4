"""Stage: trials that run side by side, and what the driver makes of what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.schedulers import LearningCurve, TrialHistory
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.trainable import TrialContext, failed_record, trial_config
from xfer.objectives import ACCURACY, Objective
from xfer.recipe import recipe_from_dict
from xfer.records import Record, as_dict, epoch_from_dict, record_from_dict

StoppingRule = Callable[[TrialHistory, str], bool | None]
"""Does this trial go on after its newest epoch? None: it waits until others have come as far."""


class Stage:
    """A `tuning.Driver`: hands out trials, stops those that the judge stops, and ends each with a record.

    Args:
        store: the sweep's.
        watch: told what happens.
        trials: what to run, asked for one at a time when there is room.
        site: where a trial finds what it needs.
        stopping_rule: who goes on.
        on_record: told of each record.
        out_of_budget: whether the time for this stage is up; what is running then is left for the next start.
        objective: whose scores trials are judged by.
        expected_trials: the names of trials that the judge should expect.

    A trial that waits is to the store as one that was interrupted: its checkpoint stays and there is no record yet. It
    is handed out again once the judge knows what becomes of it, in this start or in another.
    """

    def __init__(
        self,
        store: Store,
        watch: ProgressView,
        trials: Iterator[Trial],
        site: Callable[[Trial], TrialContext],
        stopping_rule: StoppingRule,
        on_record: Callable[[Record], None],
        out_of_budget: Callable[[], bool] = lambda: False,
        objective: Objective = ACCURACY,
        expected_trials: Iterable[str] = (),
    ) -> None:
        self._store = store
        self._watch = watch
        self._trials = trials
        self._site = site
        self._judge = stopping_rule
        self._learn = on_record
        self._over = out_of_budget
        self._objective = objective
        self._history = {**{name: LearningCurve(()) for name in expected_trials}, **trial_history(store, objective)}
        self._first: Trial | None = None
        self._waiting: dict[str, Trial] = {}
        self._running: dict[str, Trial] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self._newest: dict[str, dict[str, Any]] = {}
        self._stopped: set[str] = set()

    def has_next(self) -> bool:
        """Whether there is anything to hand out; where there is not, no Tuner need be started."""
        if self._first is None and not self._over():
            self._first = self._next_new() or self._next_waiting()
        return self._first is not None

    def on_probe_start(self, trial: Trial) -> None:
        """Take note of a trial that another than the Tuner begins to train."""
        self._watch.started(trial.name, dict(trial.recipe))

    def on_probe_end(self, record: Record) -> None:
        """Take note of what came of it."""
        scores = self._objective.scores(record.epochs)
        self._history[record.trial] = LearningCurve(scores, comparable_after(record.recipe))
        self._watch.on_epoch(as_dict(record))
        self._note_end(record)

    def next_trial(self) -> dict[str, Any] | None:
        """See `tuning.Driver`."""
        trial = self._first if self.has_next() and not self._over() else None
        self._first = None
        if trial is None:
            return None
        config = trial_config(trial, self._site(trial))
        self._configs[trial.name] = config
        self._running[trial.name] = trial
        self._watch.started(trial.name, dict(trial.recipe))
        return config

    def may_have_more(self) -> bool:
        """See `tuning.Driver`."""
        return bool(self._waiting and self._running) and not self._over()

    def _next_new(self) -> Trial | None:
        for trial in self._trials:
            settled = comparable_after(trial.recipe)
            progress = replace(self._history.get(trial.name, LearningCurve(())), last_unfreeze_epoch=settled)
            self._history[trial.name] = progress
            if not progress.values or self._judge(self._history, trial.name) is not None:
                return trial
            self._waiting[trial.name] = trial  # since an earlier start
        # There are fewer than were expected: nobody need wait for the others.
        for name in [name for name, seen in self._history.items() if not seen.ended and not self._begun(name)]:
            del self._history[name]
        return None

    def _begun(self, trial: str) -> bool:
        return trial in self._running or trial in self._waiting

    def _next_waiting(self) -> Trial | None:
        """The next trial that has waited long enough; one that goes no further is ended on the way."""
        for name, trial in list(self._waiting.items()):
            goes_on = None if name in self._running else self._judge(self._history, name)
            if goes_on is None:
                continue
            del self._waiting[name]
            if goes_on or name not in self._newest:  # what it came to is known to its process alone
                return trial
            self._end(record_from_dict(self._newest.pop(name)))
        return None

    def should_continue(self, trial: str, record: dict[str, Any]) -> bool:
        """See `tuning.Driver`."""
        self._newest[trial] = record
        self._watch.on_epoch(record)
        scores = self._objective.scores([epoch_from_dict(epoch) for epoch in record["epochs"]])
        self._history[trial] = replace(self._history[trial], values=scores)
        if record["status"] == "finished":
            return True
        if self._over():
            return False
        goes_on = self._judge(self._history, trial)
        if goes_on is None:
            self._waiting[trial] = self._running[trial]
        elif not goes_on:
            self._stopped.add(trial)
        return bool(goes_on)

    def ended(self, trial: str, error: str | None) -> None:
        """See `tuning.Driver`."""
        # First what can fail: this may be told again.
        newest, record = self._newest.get(trial), self._store.record(trial)
        config = self._configs.pop(trial)
        self._running.pop(trial, None)
        if record is None and error is None and trial in self._waiting:
            self._watch.on_trial_end(trial, None, None)
            return
        self._waiting.pop(trial, None)
        self._newest.pop(trial, None)
        if record is None and error is not None:
            lost = failed_record(config, error)
            record = (
                lost if newest is None else replace(record_from_dict(newest), status="failed", error=error, val=None)
            )
            self._store.add_record(record)
        elif record is None and newest is not None and trial in self._stopped:
            record = record_from_dict(newest)
            self._store.add_record(record)
        self._stopped.discard(trial)
        if record is None:  # it was interrupted, and goes on at the next start
            self._watch.on_trial_end(trial, None, None)
            return
        self._note_end(record)

    def _end(self, record: Record) -> None:
        self._store.add_record(record)
        self._note_end(record)

    def _note_end(self, record: Record) -> None:
        seen = self._history.get(record.trial, LearningCurve(()))
        self._history[record.trial] = replace(seen, ended=True)
        self._learn(record)
        self._watch.on_trial_end(record.trial, record.status, self._objective.value(record.epochs))


def trial_history(store: Store, objective: Objective = ACCURACY) -> dict[str, LearningCurve]:
    """How far every search trial of a sweep has come."""
    ended = {record.trial: record.epochs for record in store.records()}
    history = {}
    for trial in store.trials():
        if trial.phase == "search":
            epochs = ended.get(trial.name) or store.epochs(trial.name)
            # After a damaged one the others would count for the wrong epoch.
            whole = [each for place, each in enumerate(epochs, start=1) if each.epoch == place]
            scores = objective.scores(whole)
            history[trial.name] = LearningCurve(scores, comparable_after(trial.recipe), trial.name in ended)
    return history


def comparable_after(recipe: Any) -> int:
    """After how many epochs a recipe's values say what it will come to, as others' do.

    Never, for a head in closed form: what it comes to in its only epoch is not to be held against others' first.
    """
    built = recipe_from_dict(recipe)
    return built.last_unfreeze_epoch if built.uses_gradient_steps else built.epochs


def time_limit(seconds: float | None) -> Callable[[float], bool]:
    """A stopwatch that starts now: is less than `reserve` left of so many seconds? Never, without a limit."""
    began = time.monotonic()
    return lambda reserve: seconds is not None and time.monotonic() - began + reserve > seconds
