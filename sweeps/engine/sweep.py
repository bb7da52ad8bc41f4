"""Sweep: the stages of a sweep in their order: screening, search, finals, test part, export of the winner, noise."""

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
from sweeps.engine.console.time_left import RunPace, StageTime, run_pace, time_left
from sweeps.engine.planning import screening
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.presearch.advice import apply_advice, recommended_strategies
from sweeps.engine.presearch.warm_start import recover_params, warm_start_params
from sweeps.engine.resources.budget import Budget
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.samplers.ask_tell import LEARNING_SAMPLERS, AskTellSampler
from sweeps.engine.schedulers import KEEPS_KNOWN_GOOD, SCHEDULERS, LearningCurve, TrialHistory
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.evaluation import divide_runs, evaluate_on_test, evaluate_under_noise
from sweeps.engine.trials.ledger import TrialLedger
from sweeps.engine.trials.placement import Placement
from sweeps.engine.trials.probe_tasks import PROBE_BATCH_SIZE, PROBES_PER_SAMPLER_UPDATE, ProbeTasks
from sweeps.engine.trials.run_options import RunOptions
from sweeps.engine.trials.stage import Stage, StoppingRule, trial_history
from sweeps.engine.trials.trainable import export_model, is_exported, train_trial, trial_config
from sweeps.engine.trials.trial_queue import search_trials
from sweeps.reporting.formatting import pluralize
from xfer.records import MAX_NOISE_IMAGES, NOISE_KINDS, Epoch, Record, epoch_from_dict
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
        self._stored_plan = store.plan() or {}
        prepared = apply_advice(prepared, self._stored_plan.get("advice", {}))
        self.prepared = prepared
        """The plan with the strategies that the advice has added; its space is narrowed by the screening."""
        self._plan = prepared.plan
        self._objectives = self._plan.objectives
        self._store = store
        self._options = run_options
        self._view = view
        self.budget = Budget(cost_tracker or CostTracker(store), run_options.seconds, run_options.cost_budget)
        """Remaining time and money."""
        self._placement = Placement(prepared, store, view, self.budget, run_options.resources, run_options.concurrent)
        self._control: str | None = self._stored_plan.get("control", {}).get("key")  # None: of an earlier version
        self._ledger = TrialLedger(store, self._objectives, max(1, self._plan.finalists), self._control)
        for note in self._ledger.notes:
            view.print_line(note)
        self.sampler: AskTellSampler | None = None
        """Proposes the trials of the search; None until the screening has decided."""
        self._paces: dict[str, RunPace] = {}
        self._finalists_of: tuple[int, list[str]] = (-1, [])  # by the number of records
        # Earlier versions decided on finalists without the control, or without a head too. They stay as long as they
        # are the best, so that repeating the command of a finished sweep does not open the test part again.
        finals = store.decisions("finals")
        self._earlier_finalists = finals[-1]["finalists"] if finals and "control" not in finals[-1] else None
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
            return (keeps_known_good and sampler.is_known_good(int(trial))) or schedule(history, trial)

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
            records = [self._ledger.records[name] for name in finalists]
            head = next((record.trial for record in records if selection.is_frozen_head(record)), None)
            control = next((record.trial for record in records if record.key == self._control), None)
            roles = {"frozen_head": head, "control": control}
            decision = {"at": utc_now(), "finalists": finalists, "seeds": self._plan.seeds, **roles}
            self._store.decide("finals", decision)
            if control is None and self._control is not None:
                self._view.print_line(
                    "finals: the control, the recipe to take without a search, is missing, because it has not finished "
                    "the search"
                )
            if head is None:
                self._view.print_line(
                    "finals: the cheapest baseline is missing, because no head on frozen features (linear_probe, ...) "
                    "has finished the search"
                )
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
        tested = self._tested_runs()
        untested = [record for name in ranked for record in runs[name] if record.test is None]
        if not untested:
            return
        self._view.begin_evaluation(
            "test",
            "test set: opened for the finalists, now that their ranking is fixed",
            len(tested) + len(untested),
            len(tested),
        )

        def on_wait() -> None:
            stored = sum(self._store.has_test(record.trial) for record in untested)
            self._view.evaluated(len(tested) + stored)

        self._placement.map(evaluate_on_test, [(self._config(record),) for record in untested], on_wait)
        for record in untested:
            self._ledger.records[record.trial] = replace(record, test=self._store.test(record.trial))

    def is_noise_due(self) -> bool:
        """Return whether final runs are to be evaluated under noise now; say so if only the budget prevents it."""
        if not self._plan.noise or not self._noise_pending():
            return False
        if self.budget.exceeded():
            self._view.print_line("noise: not measured, because the budget is spent; the same command measures it")
            return False
        return True

    def measure_noise(self) -> None:
        """Evaluate the finalists on noisy copies of a sample of the test part; the ranking does not change."""
        pending = self._noise_pending()
        images = min(len(self.prepared.split.test), MAX_NOISE_IMAGES)
        runs = len(self._tested_runs())
        before = self._noise_scores()
        self._view.begin_evaluation(
            "noise",
            f"noise: {pluralize(runs, 'run')} under {len(NOISE_KINDS)} kinds of noise on {images} of "
            f"{len(self.prepared.split.test):,} test images",
            runs * len(NOISE_KINDS),
            before,
        )
        groups = divide_runs(pending, self._placement.concurrent)
        calls = [([self._config(record) for record in group],) for group in groups]
        self._placement.map(evaluate_under_noise, calls, lambda: self._view.evaluated(self._noise_scores()))
        for record in pending:
            self._ledger.records[record.trial] = replace(record, test=self._store.test(record.trial))

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of all final runs but the winner's, once they have been evaluated completely."""
        openings = self._store.decisions("openings")
        if not openings or not self._plan.noise or self._noise_pending():
            return
        winner = openings[-1]["finalists"][0]
        for name in self._ledger.ended("final"):
            if selection.search_trial_name(name) != winner:
                self._store.drop_checkpoints(name)

    def export(self) -> Record | None:
        """Write the winner's network to the sweep's folder.

        Returns:
            The winner's record; None if no trial has finished.
        """
        openings = self._store.decisions("openings")
        if openings:
            first = openings[-1]["finalists"][0]
            winner = selection.finalist_runs(self._ledger.records.values(), [first])[first][0]
        elif best := selection.select_best(self._ledger.records.values(), 1, self._objectives):
            winner = self._ledger.records[best[0]]
        else:
            return None
        folder = self._store.folder / "model"
        if not is_exported(folder, winner.trial):
            arguments = (self._config(winner), object_store.absolute_uri(folder))
            if self._placement.is_local and not self._placement.connected:
                export_model(*arguments)  # not worth starting Ray for a single network
            else:
                self._placement.map(export_model, [arguments])
        return winner

    def winner_metrics(self, winner: Record) -> dict[str, float]:
        """Return what the winner's recipe has reached, by metric."""
        return selection.winner_metrics(winner, self._ledger.records.values(), self._objectives)

    def progress_line(self) -> str:
        """Return a line on what earlier starts have done; "" for a new sweep."""
        return progress_line(
            {name: trial.phase for name, trial in self._ledger.trials.items()},
            self._ledger.records,
            {"search": self._plan.trials, "final": len(self._final_trials())},
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
        stored = self._stored_plan
        params = warm_start_params(stored)
        if decision is not None:
            self.prepared = screening.narrow_space(self.prepared, decision)
            params = screening.remaining_params(self.prepared.space, params)
        plan, advised = self._plan, recommended_strategies(stored.get("advice", {}))
        self.sampler = AskTellSampler(
            self.prepared.space, plan.sampler, plan.seed, plan.arms, self._objectives, advised, params
        )
        trials, records = self._ledger.trials, self._ledger.ended("search")
        replayed = {}
        for name, record in records.items():
            known = trials[name].params or recover_params(record.recipe, self.prepared)
            if known is not None:
                replayed[name] = (known, record)
        self.sampler.replay(replayed)
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
        accuracies = {name: record.val_accuracy for name, record in ended.items() if record.status == "finished"}
        self._view.begin(phase, total, Counter(record.status for record in ended.values()), accuracies)
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

    def time_left(self) -> tuple[StageTime, ...]:
        """Return the stages that are not over, with the seconds that each will take."""
        running = {name: record for name, record in self._view.running.items() if name not in self._ledger.records}
        plan = {**self._stored_plan, "trials": max(self._plan.trials, len(self._ledger.started("search")))}
        pace = self._view.seconds_left()
        return time_left(
            plan,
            [*self._ended_paces(), *(self._running_pace(record) for record in running.values())],
            self._finalists(),
            concurrent=self._placement.concurrent,
            stretch=self._view.stretch(self._placement.concurrent),
            limit=self.budget.seconds_left(),
            tested=len(self._tested_runs()),
            noise_scores=self._view.ended.total() if self._view.phase == "noise" else 0,
            measured={self._view.phase: pace} if self._view.phase in ("screening", "test", "noise") else {},
        )

    def _ended_paces(self) -> list[RunPace]:
        data = self._stored_plan["data"]
        for name, record in self._ledger.records.items():
            if name not in self._paces:
                self._paces[name] = run_pace(name, record.phase, record.recipe, record.epochs, data, ended=True)
        return list(self._paces.values())

    def _running_pace(self, record: Mapping[str, Any]) -> RunPace:
        epochs: list[Epoch] = [epoch_from_dict(epoch) for epoch in record["epochs"]]
        name = record["trial"]
        phase = self._ledger.trials[name].phase
        return run_pace(name, phase, record["recipe"], epochs, self._stored_plan["data"], ended=False)

    def _tested_runs(self) -> list[Record]:
        """Return the final runs of the finalists that have been evaluated on the test part."""
        runs = selection.finalist_runs(self._ledger.records.values(), self._finalists())
        return [record for of_finalist in runs.values() for record in of_finalist if record.test is not None]

    def _noise_pending(self) -> list[Record]:
        """Return the final runs that have been evaluated on the test part, but not under all kinds of noise.

        Runs of earlier versions whose checkpoints are gone are left out.
        """
        pending = []
        for record in self._tested_runs():
            assert record.test is not None, "only tested runs are listed"
            if not record.test.noisy and object_store.list_names(self._store.checkpoints(record.trial)):
                pending.append(record)
        return pending

    def _noise_scores(self) -> int:
        """Return the number of kinds of noise that have been measured, summed over the finalists' runs."""
        return sum(
            len(NOISE_KINDS) if record.test and record.test.noisy else len(self._store.noise_kinds(record.trial))
            for record in self._tested_runs()
        )

    def _finalists(self) -> list[str]:
        ended = len(self._ledger.records)  # asked for twice a second by the view
        if self._finalists_of[0] != ended:
            records = self._ledger.records.values()
            count, objectives = self._plan.finalists, self._objectives
            best = selection.select_finalists(records, count, objectives, self._control)
            if self._earlier_finalists in (
                selection.select_best(records, count, objectives),
                selection.select_finalists(records, count, objectives),
            ):
                best = self._earlier_finalists
            self._finalists_of = (ended, best)
        return self._finalists_of[1]

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
