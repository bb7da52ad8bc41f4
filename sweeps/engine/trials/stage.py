"""Stage: runs the trials of one phase, as batched probes or in Ray Tune, and ends each with a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.resources.torch_compile import failure_line
from sweeps.engine.schedulers import LearningCurve, TrialHistory
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import machine_faults
from sweeps.engine.trials.placement import Placement
from sweeps.engine.trials.probe_tasks import ProbeTasks
from sweeps.engine.trials.trainable import Trainable, TrialContext, failed_record, train_trial, trial_config
from xfer.objectives import ACCURACY, Objective
from xfer.recipe import recipe_from_dict
from xfer.records import Record, as_dict, epoch_from_dict, record_from_dict

StoppingRule = Callable[[TrialHistory, str], bool | None]
"""Returns whether a trial continues after its newest epoch; None if it waits until others have come as far."""


class Stage:
    """Runs trials; the `ray_tune.TrialSource` that Ray Tune's loop asks for trials and for decisions.

    A waiting trial looks to the store like an interrupted one: its checkpoint stays and it has no record yet. It is
    started again once the stopping rule has decided, in this start of the sweep or in a later one.

    Args:
        store: the sweep's.
        view: shows the progress.
        trials: the trials to run, taken one at a time when there is room.
        context: returns what a trial's process needs to know.
        stopping_rule: decides which trials continue.
        on_record: called with each record.
        out_of_budget: returns whether the budget of the stage is spent; running trials are then interrupted, and
            resumed by the next start of the sweep.
        objective: whose scores the stopping rule compares.
        history: learning curves of the sweep's trials so far, and empty ones of trials that are still to come.
        probes: trains linear probes in batches; None if all trials run in Ray Tune.
    """

    def __init__(
        self,
        store: Store,
        view: ProgressView,
        trials: Iterator[Trial],
        context: Callable[[Trial], TrialContext],
        stopping_rule: StoppingRule,
        on_record: Callable[[Record], None],
        out_of_budget: Callable[[], bool] = lambda: False,
        objective: Objective = ACCURACY,
        history: TrialHistory | None = None,
        probes: ProbeTasks | None = None,
    ) -> None:
        self._store = store
        self._view = view
        self._trials = trials
        self._exhausted = False
        self._context = context
        self._stopping_rule = stopping_rule
        self._on_record = on_record
        self._out_of_budget = out_of_budget
        self._objective = objective
        self._history = dict(history or {})
        self._probes = probes
        self._next: Trial | None = None
        self._waiting: dict[str, Trial] = {}
        self._running: dict[str, Trial] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self._newest: dict[str, dict[str, Any]] = {}  # the last report of each trial in Ray Tune
        self._stopped: set[str] = set()
        self._faults_in_a_row = 0  # trials interrupted by the machine since the last one with a record

    def run(self, placement: Placement, trainable: Trainable = train_trial) -> None:
        """Run all trials. Ray Tune is started only if there is a trial that cannot be batched.

        Args:
            placement: connects to Ray and says how many trials run at a time.
            trainable: what runs in a trial's process.

        Raises:
            MachineFaultError: several trials in a row were interrupted by faults of the machine.
        """
        if self.has_next():
            from sweeps.engine.trials import ray_tune  # Ray takes a second to import

            if self._probes is not None:
                self._end_probes(self._probes.start_few())
            placement.connect()
            if self._probes is not None:
                self._probes.tune_is_running = True
                self._end_probes(self._probes.start())
            ray_tune.run_trials(self, placement.concurrent, trainable)
        if self._probes is not None:
            self._probes.tune_is_running = False
            self._end_probes(self._probes.settle())
        machine_faults.check_faults_in_a_row(self._store, self._faults_in_a_row)

    def has_next(self) -> bool:
        """Return whether there is a trial for Ray Tune to run. Probes that come before it are trained meanwhile."""
        stopped = self._faults_in_a_row >= machine_faults.MAX_FAULTS_IN_A_ROW
        if self._next is None and not stopped and not self._out_of_budget():
            self._next = self._next_new() or self._next_waiting()
        return self._next is not None

    # --- TrialSource ------------------------------------------------------------------------------------------------

    def next_trial(self) -> dict[str, Any] | None:
        """See `ray_tune.TrialSource`."""
        trial = self._next if self.has_next() and not self._out_of_budget() else None
        self._next = None
        if trial is None:
            return None
        config = trial_config(trial, self._context(trial))
        self._configs[trial.name] = config
        self._running[trial.name] = trial
        epochs = [as_dict(epoch) for epoch in self._store.epochs(trial.name)]  # of an earlier start
        self._view.started(trial.name, dict(trial.recipe), epochs)
        return config

    def may_have_more(self) -> bool:
        """See `ray_tune.TrialSource`."""
        stopped = self._faults_in_a_row >= machine_faults.MAX_FAULTS_IN_A_ROW
        return bool(self._waiting and self._running) and not stopped and not self._out_of_budget()

    def should_continue(self, trial: str, record: dict[str, Any]) -> bool:
        """See `ray_tune.TrialSource`."""
        self._newest[trial] = record
        self._view.on_epoch(record)
        if line := failure_line(record["arithmetic"]):
            self._view.print_once(line)
        scores = self._objective.scores([epoch_from_dict(epoch) for epoch in record["epochs"]])
        self._history[trial] = replace(self._history[trial], values=scores)
        if record["status"] == "finished":
            return True
        if self._out_of_budget():
            return False
        continues = self._stopping_rule(self._history, trial)
        if continues is None:
            self._waiting[trial] = self._running[trial]
        elif not continues:
            self._stopped.add(trial)
        return bool(continues)

    def ended(self, trial: str, error: str | None) -> None:
        """See `ray_tune.TrialSource`."""
        # What can fail comes first, because Ray Tune may then report the end of the trial again.
        newest, record = self._newest.get(trial), self._store.record(trial)
        config = self._configs.pop(trial)
        self._running.pop(trial, None)
        if record is None and error is None and trial in self._waiting:
            self._view.on_trial_end(trial, None, None)
            return
        self._waiting.pop(trial, None)
        self._newest.pop(trial, None)
        if record is None and error is not None and not machine_faults.try_again(self._store, trial, error):
            error = machine_faults.final_reason(error)
            record = (
                failed_record(config, error)
                if newest is None
                else replace(record_from_dict(newest), status="failed", error=error, val=None)
            )
            self._store.add_record(record)
        elif record is None and newest is not None and trial in self._stopped:
            record = record_from_dict(newest)
            self._store.add_record(record)
        self._stopped.discard(trial)
        if record is None:  # interrupted: the next start of the sweep resumes it
            if self._out_of_budget():
                self._view.on_trial_end(trial, None, None)
            else:
                self._interrupted(trial)
            return
        self._end(record)

    def _interrupted(self, trial: str) -> None:
        """Report a trial that a fault of the machine has interrupted. No other trial waits for it in this start."""
        self._faults_in_a_row += 1
        self._history[trial] = replace(self._history.get(trial, LearningCurve(())), ended=True)
        self._view.on_trial_end(trial, None, None)
        if self._faults_in_a_row > machine_faults.MAX_FAULTS_IN_A_ROW:
            return
        if line := machine_faults.interruption_line(self._store, trial):
            self._view.print_line(line)

    # --- which trial is next ----------------------------------------------------------------------------------------

    def _next_new(self) -> Trial | None:
        for trial in self._trials:
            if self._batch(trial):
                continue
            comparable = comparable_after(trial.recipe)
            curve = self._history.get(trial.name, LearningCurve(()))
            curve = replace(curve, epochs=trial.recipe["epochs"], last_unfreeze_epoch=comparable)
            self._history[trial.name] = curve
            if not curve.values or self._stopping_rule(self._history, trial.name) is not None:
                return trial
            self._waiting[trial.name] = trial  # since an earlier start
        if self._probes is not None and not self._exhausted:
            self._end_probes(self._probes.settle())  # a stopping rule that waits for all trials needs their results
        self._exhausted = True
        # There are fewer trials than expected: none has to wait for the missing ones.
        started = self._running.keys() | self._waiting.keys()
        self._history = {name: curve for name, curve in self._history.items() if curve.ended or name in started}
        return None

    def _next_waiting(self) -> Trial | None:
        """Return the next trial that has waited long enough; end those on the way that are stopped."""
        for name, trial in list(self._waiting.items()):
            continues = None if name in self._running else self._stopping_rule(self._history, name)
            if continues is None:
                continue
            del self._waiting[name]
            if continues or name not in self._newest:  # without a report only its own process knows its record
                return trial
            record = record_from_dict(self._newest.pop(name))
            self._store.add_record(record)
            self._end(record)
        return None

    # --- probes -----------------------------------------------------------------------------------------------------

    def _batch(self, trial: Trial) -> bool:
        """Add a trial to the next batch of probes, if it can be batched, and collect finished probes."""
        if self._probes is None:
            return False
        batched = self._probes.add(trial)
        if not batched:
            self._end_probes(self._probes.start())  # they run at the same time as the trial
        self._end_probes(self._probes.collect())
        return batched

    def _end_probes(self, records: Iterable[Record]) -> None:
        for record in records:
            scores = self._objective.scores(record.epochs)
            comparable = comparable_after(record.recipe)
            self._history[record.trial] = LearningCurve(scores, comparable, epochs=record.recipe["epochs"])
            self._view.on_epoch(as_dict(record))
            self._end(record)
        while self._probes is not None and self._probes.interrupted:
            self._interrupted(self._probes.interrupted.pop(0))

    def _end(self, record: Record) -> None:
        curve = self._history.get(record.trial, LearningCurve(()))
        self._history[record.trial] = replace(curve, ended=True)
        self._faults_in_a_row = 0
        self._on_record(record)
        self._view.on_trial_end(record.trial, record.status, self._objective.value(record.epochs))


def trial_history(store: Store, objective: Objective = ACCURACY) -> dict[str, LearningCurve]:
    """Return the learning curve of every search trial in a store."""
    records = {record.trial: record.epochs for record in store.records()}
    history = {}
    for trial in store.trials():
        if trial.phase == "search":
            epochs = records.get(trial.name) or store.epochs(trial.name)
            # Scores after a damaged epoch would be attributed to the wrong one.
            intact = [epoch for number, epoch in enumerate(epochs, start=1) if epoch.epoch == number]
            scores = objective.scores(intact)
            ended = trial.name in records
            comparable = comparable_after(trial.recipe)
            history[trial.name] = LearningCurve(scores, comparable, ended, trial.recipe["epochs"])
    return history


def comparable_after(recipe: Any) -> int:
    """Return the number of epochs before a trial's scores are comparable with those of others.

    Closed-form heads finish in one epoch and are never compared mid-run.

    Args:
        recipe: the recipe as plain data.
    """
    built = recipe_from_dict(recipe)
    return built.last_unfreeze_epoch if built.uses_gradient_steps else built.epochs
