"""Stage: trials that run side by side, and what the driver makes of what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from sweeps.engine.progress import Watch
from sweeps.engine.schedulers import History, Progress
from sweeps.engine.store import Store, Trial
from sweeps.engine.trainable import Site, config_for, failed
from xfer.objectives import ACCURACY, Objective
from xfer.recipe import recipe_from
from xfer.records import Record, epoch_from, record_from

Judge = Callable[[History, str], bool]
"""Does this trial go on after its newest epoch?"""


class Stage:
    """A `tuning.Driver`: hands out trials, stops those that the judge stops, and ends each with a record.

    Args:
        store: the sweep's.
        watch: told what happens.
        trials: what to run, asked for one at a time when there is room.
        site: where a trial finds what it needs.
        judge: who goes on.
        learn: told of each record.
        over: whether the time for this stage is up; what is running then is left for the next start.
        objective: whose scores trials are judged by.
    """

    def __init__(
        self,
        store: Store,
        watch: Watch,
        trials: Iterator[Trial],
        site: Callable[[Trial], Site],
        judge: Judge,
        learn: Callable[[Record], None],
        over: Callable[[], bool] = lambda: False,
        objective: Objective = ACCURACY,
    ) -> None:
        self._store = store
        self._watch = watch
        self._trials = trials
        self._site = site
        self._judge = judge
        self._learn = learn
        self._over = over
        self._objective = objective
        self._history = history_of(store, objective)
        self._configs: dict[str, dict[str, Any]] = {}
        self._newest: dict[str, dict[str, Any]] = {}
        self._stopped: set[str] = set()

    def next_trial(self) -> dict[str, Any] | None:
        """See `tuning.Driver`."""
        trial = None if self._over() else next(self._trials, None)
        if trial is None:
            return None
        config = config_for(trial, self._site(trial))
        self._configs[trial.name] = config
        self._watch.started(trial.name, dict(trial.recipe))
        return config

    def goes_on(self, trial: str, record: dict[str, Any]) -> bool:
        """See `tuning.Driver`."""
        self._newest[trial] = record
        self._watch.saw(record)
        scores = self._objective.scores([epoch_from(epoch) for epoch in record["epochs"]])
        self._history[trial] = Progress(scores, settled_after(record["recipe"]))
        if record["status"] == "finished":
            return True
        if self._over():
            return False
        if not self._judge(self._history, trial):
            self._stopped.add(trial)
            return False
        return True

    def ended(self, trial: str, error: str | None) -> None:
        """See `tuning.Driver`."""
        config, newest = self._configs.pop(trial), self._newest.pop(trial, None)
        record = self._store.record(trial)
        if record is None and error is not None:
            lost = failed(config, error)
            record = lost if newest is None else replace(record_from(newest), status="failed", error=error, val=None)
            self._store.add_record(record)
        elif record is None and newest is not None and trial in self._stopped:
            record = record_from(newest)
            self._store.add_record(record)
        if record is None:  # it was interrupted, and goes on at the next start
            self._watch.saw_end(trial, None, None)
            return
        self._learn(record)
        self._watch.saw_end(trial, record.status, self._objective.value(record.epochs))


def history_of(store: Store, objective: Objective = ACCURACY) -> dict[str, Progress]:
    """How far every search trial of a sweep has come."""
    ended = {record.trial: record.epochs for record in store.records()}
    history = {}
    for trial in store.trials():
        if trial.phase == "search":
            epochs = ended.get(trial.name) or store.epochs(trial.name)
            # After a damaged one the others would count for the wrong epoch.
            whole = [each for place, each in enumerate(epochs, start=1) if each.epoch == place]
            history[trial.name] = Progress(objective.scores(whole), settled_after(trial.recipe))
    return history


def settled_after(recipe: Any) -> int:
    """After how many epochs all that will ever move in a recipe does."""
    return recipe_from(recipe).settled_after


def clock(seconds: float | None) -> Callable[[float], bool]:
    """A stopwatch that starts now: is less than `reserve` left of so many seconds? Never, without a limit."""
    began = time.monotonic()
    return lambda reserve: seconds is not None and time.monotonic() - began + reserve > seconds
