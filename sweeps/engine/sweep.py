"""Sweep: the stages of a sweep in their order: screening, search, finals, test part, export of the winner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from sweeps.engine import selection
from sweeps.engine.console.progress import ProgressView
from sweeps.engine.console.provenance import utc_now
from sweeps.engine.console.resumption import best_search_record, progress_line
from sweeps.engine.planning import screening
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.presearch.advice import recommended_strategies
from sweeps.engine.presearch.warm_start import warm_start_params
from sweeps.engine.resources.budget import Budget
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.samplers.ask_tell import LEARNING_SAMPLERS, AskTellSampler
from sweeps.engine.schedulers import KEEPS_KNOWN_GOOD, SCHEDULERS, LearningCurve, TrialHistory
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.ledger import TrialLedger
from sweeps.engine.trials.placement import Placement
from sweeps.engine.trials.probe_tasks import PROBE_BATCH_SIZE, PROBES_PER_SAMPLER_UPDATE, ProbeTasks
from sweeps.engine.trials.run_options import RunOptions
from sweeps.engine.trials.stage import Stage, StoppingRule, trial_history
from sweeps.engine.trials.trainable import evaluate_on_test, export_model, train_trial, trial_config
from sweeps.engine.trials.trial_queue import search_trials
from xfer.records import Record
from xfer.storage import local_cache, object_store

MAX_PROBE_TASKS = 8
"""Maximum number of concurrent probe tasks; each has to load the network."""


class Sweep:
    """The stages of a sweep, each to be called once and in this order.

    Args:
        prepared: the plan with its data and weights.
        store: where everything is written.
        run_options: what this start may use.
        view: shows the progress.
        cost_tracker: knows what the machines cost; without one they cost nothing.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        run_options: RunOptions,
        view: ProgressView,
        cost_tracker: CostTracker | None = None,
    ) -> None:
        self.prepared = prepared
        """The plan; its space is narrowed once a screening has decided."""
        self._plan = prepared.plan
        self._objectives = self._plan.objectives
        self._store = store
        self._options = run_options
        self._view = view
        self.budget = Budget(cost_tracker or CostTracker(store), run_options.seconds, run_options.cost_budget)
        """Remaining time and money."""
        self._placement = Placement(prepared, store, view, self.budget, run_options.resources, run_options.concurrent)
        self._ledger = TrialLedger(store, self._objectives, max_checkpoints=max(1, self._plan.finalists))
        self.sampler: AskTellSampler | None = None
        """Proposes the trials of the search; None until the screening has decided."""
        decisions = store.decisions("screening")
        if decisions or not screening.describe(prepared):
            self._start_sampler(decisions[-1] if decisions else None)

    def screen(self) -> None:
        """Fit linear heads on every backbone, and decide by them which backbones are searched (`screening`)."""
        if self.sampler is not None:
            return
        trials = screening.screening_trials(self.prepared)
        if self._begin("screening", len(trials), self._ledger.ended("screen")):
            # One backbone at a time, so that only one network is loaded, and the budget is checked in between.
            for _, group in groupby(trials, key=lambda trial: trial.recipe["backbone"]):
                if self.budget.exceeded():
                    break
                self._run(self._start_trials(group), self._ledger.add_record, probes=self._probe_tasks())
        records = self._ledger.ended("screen")
        if len(records) < len(trials):
            spent = "money was spent" if self.budget.cost_exceeded() else "time was up"
            self._view.print_line(f"screening: the {spent} before every head was fitted, so nothing is decided yet")
            return
        decision = screening.screening_decision(self.prepared, records.values())
        self._store.decide("screening", {"at": utc_now(), **decision})
        self._view.print_line(f"screening: {screening.summary_line(decision)}")
        for name in records:
            self._store.drop_checkpoints(name)
        self._start_sampler(decision)

    def search(self) -> None:
        """Run the trials of the search that have no record yet: warm start, then known-good recipes, then proposals.

        Known-good recipes are never stopped early, except by `one_epoch_top_k`: strategies are compared by them, and
        all other trials, those of a warm start included, are compared with them.
        """
        if self.sampler is None:
            return
        sampler, plan, ledger = self.sampler, self._plan, self._ledger
        schedule = SCHEDULERS[plan.scheduler]
        keeps_known_good = plan.scheduler in KEEPS_KNOWN_GOOD

        def out_of_budget() -> bool:
            return self.budget.is_limited and self.budget.exceeded(self._final_seconds())

        def stopping_rule(history: TrialHistory, trial: str) -> bool | None:
            return (keeps_known_good and sampler.is_known_good(int(trial))) or schedule(history, trial, plan.epochs)

        def on_record(record: Record) -> None:
            ledger.add_record(record)
            sampler.tell(record)
            ledger.drop_weak_checkpoints(record.trial)

        total = max(plan.trials, len(ledger.started("search")))
        if self._begin("search", total, ledger.ended("search"), out_of_budget):
            probes = self._probe_tasks(PROBES_PER_SAMPLER_UPDATE if plan.sampler in LEARNING_SAMPLERS else None)
            trials = search_trials(self.prepared, sampler, ledger, out_of_budget, probes_first=probes is not None)
            history = {f"{number:04d}": LearningCurve(()) for number in range(plan.trials)}
            history |= trial_history(self._store, self._objectives[0])
            self._run(trials, on_record, stopping_rule, out_of_budget, history, probes)
        if len(ledger.ended("search")) < plan.trials:
            self._print_if_spent("The search ends", self._final_seconds())

    def finals(self) -> None:
        """Run the best recipes of the search again, on new seeds and, if data are few, on new validation parts.

        A search that ended early because of a budget has its best trials so far.
        """
        finalists, trials = self._finalists(), self._final_trials()
        if not finalists:
            return
        decisions = self._store.decisions("finals")
        if not decisions or decisions[-1]["finalists"] != finalists:
            self._store.decide("finals", {"at": utc_now(), "finalists": finalists, "seeds": self._plan.seeds})
        names, ended = {trial.name for trial in trials}, self._ledger.ended("final")
        if self._begin("finals", len(trials), {name: ended[name] for name in ended if name in names}):
            self._run(self._start_trials(trials), self._ledger.add_record)
        if not self._finals_have_ended():
            self._print_if_spent("The finals end")

    def open_test(self) -> None:
        """Fix the finalists' ranking, then evaluate them on the test part; only after all of their runs have ended."""
        if not self._finals_have_ended():
            return
        runs = selection.finalist_runs(self._ledger.records.values(), self._finalists())
        ranked = selection.rank_finalists(runs, self._objectives[0])
        openings = self._store.decisions("openings")
        if ranked and (not openings or openings[-1]["finalists"] != ranked):
            self._store.decide("openings", {"at": utc_now(), "finalists": ranked})
        untested = [record for name in ranked for record in runs[name] if record.test is None]
        if untested:
            self._view.print_line("test part: opened for the finalists, now that their ranking is fixed")
            self._placement.map(evaluate_on_test, [(self._config(record),) for record in untested])
            for record in untested:
                self._ledger.records[record.trial] = replace(record, test=self._store.test(record.trial))

    def export(self) -> Record | None:
        """Write the winner's network to the sweep's folder.

        Returns:
            The winner's record; None if no trial has finished.
        """
        openings = self._store.decisions("openings")
        if openings:
            first = openings[-1]["finalists"][0]
            winner = selection.finalist_runs(self._ledger.records.values(), [first])[first][0]
        elif best := selection.select_finalists(self._ledger.records.values(), 1, self._objectives):
            winner = self._ledger.records[best[0]]
        else:
            return None
        folder = self._store.folder / "model"
        note = folder / "trial.txt"
        if not object_store.exists(note) or note.read_text(encoding="utf-8") != winner.trial:
            arguments = (self._config(winner), object_store.absolute_uri(folder))
            if self._placement.is_local and not self._placement.connected:
                export_model(*arguments)  # not worth starting Ray for a single network
            else:
                self._placement.map(export_model, [arguments])
            note.write_text(winner.trial, encoding="utf-8")
        if openings:
            for name in self._ledger.ended("final"):
                if selection.search_trial_name(name) != selection.search_trial_name(winner.trial):
                    self._store.drop_checkpoints(name)
        return winner

    def winner_metrics(self, winner: Record) -> dict[str, float]:
        """Return what the winner's recipe has reached, by metric."""
        return selection.winner_metrics(winner, self._ledger.records.values(), self._objectives)

    def progress_line(self) -> str:
        """Return a line on what earlier starts have done; "" for a new sweep."""
        return progress_line(
            {name: trial.phase for name, trial in self._ledger.trials.items()},
            self._ledger.records,
            {"search": self._plan.trials, "final": self._plan.finalists * self._plan.seeds},
            self._objectives[0],
            is_test_open=bool(self._store.decisions("openings")),
        )

    def disconnect(self) -> None:
        """Interrupt the running trials and leave Ray."""
        self._placement.disconnect()

    def export_study(self) -> None:
        """Write a copy of the study for optuna-dashboard."""
        if self.sampler is not None:
            copy = self._store.local_folder / "study.sqlite3"
            self.sampler.export_sqlite(copy, self._store.name)
            local_cache.upload_if_exists(copy, self._store.folder / copy.name)

    def _start_sampler(self, decision: Mapping[str, Any] | None) -> None:
        """Create the sampler, on the space that a screening has left, and replay the trials of earlier starts."""
        stored = self._store.plan() or {}
        params = warm_start_params(stored)
        if decision is not None:
            self.prepared = screening.narrow_space(self.prepared, decision)
            params = screening.remaining_params(self.prepared.space, params)
        plan, advised = self._plan, recommended_strategies(stored.get("advice", {}))
        self.sampler = AskTellSampler(
            self.prepared.space, plan.sampler, plan.seed, plan.arms, self._objectives, advised, params
        )
        trials, records = self._ledger.trials, self._ledger.ended("search")
        self.sampler.replay({name: (trials[name].params, record) for name, record in records.items()})
        if self._options.shares_gpus:
            self._placement.share_gpus(self.prepared)

    def _begin(
        self, phase: str, total: int, ended: Mapping[str, Record], out_of_budget: Callable[[], bool] | None = None
    ) -> bool:
        """Begin a phase in the view; return whether there is anything to run, and a budget for it."""
        out_of_budget = out_of_budget or self.budget.exceeded
        if len(ended) >= total or out_of_budget():
            return False
        if not self._placement.is_local:
            self._placement.connect()
        self._view.begin(phase, total, Counter(record.status for record in ended.values()))
        best = best_search_record(self._ledger.records.values(), self._objectives[0])
        if best is not None and self._view.best is None:
            self._view.show_stored_best(best)
        return True

    def _run(
        self,
        trials: Iterator[Trial],
        on_record: Callable[[Record], None],
        stopping_rule: StoppingRule = lambda history, trial: True,
        out_of_budget: Callable[[], bool] | None = None,
        history: TrialHistory | None = None,
        probes: ProbeTasks | None = None,
    ) -> None:
        stage = Stage(
            self._store,
            self._view,
            trials,
            self._placement.context,
            stopping_rule,
            on_record,
            out_of_budget or self.budget.exceeded,
            self._objectives[0],
            history or {},
            probes,
        )
        stage.run(self._placement, self._options.trainable)

    def _probe_tasks(self, batch_size: int | None = None) -> ProbeTasks | None:
        """Return what trains linear probes in batches; None if every trial runs another trainable."""
        if self._options.trainable is not train_trial:
            return None
        placement = self._placement
        tasks = 1 if placement.resources.gpus else min(placement.concurrent, MAX_PROBE_TASKS)
        return ProbeTasks(
            self._store,
            self._view,
            placement.context,
            placement.resources,
            batch_size or PROBE_BATCH_SIZE,
            tasks,
            placement.is_local,
        )

    def _start_trials(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Add those trials that have no record to the ledger, one by one as they are asked for."""
        for trial in trials:
            if trial.name not in self._ledger.records:
                self._ledger.start(trial)
                yield trial

    def _print_if_spent(self, stage_ends: str, reserve: float = 0.0) -> None:
        if line := self.budget.cost_message(stage_ends, reserve):
            self._view.print_line(line)

    def _finalists(self) -> list[str]:
        return selection.select_finalists(self._ledger.records.values(), self._plan.finalists, self._objectives)

    def _final_trials(self) -> list[Trial]:
        finalists = [self._ledger.records[name] for name in self._finalists()]
        return selection.finalist_trials(finalists, self._plan, self.prepared.redraws)

    def _finals_have_ended(self) -> bool:
        return all(trial.name in self._ledger.records for trial in self._final_trials())

    def _final_seconds(self) -> float:
        """Return an estimate of how long the finals will take, in seconds."""
        return selection.final_rounds(self._plan, self._placement.concurrent) * self._ledger.seconds_per_trial

    def _config(self, record: Record) -> dict[str, object]:
        trial = Trial(record.trial, record.phase, {}, record.recipe)
        return trial_config(trial, self._placement.context(trial))
