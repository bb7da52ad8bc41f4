"""Sweep: the stages of a sweep, one after the other: screening, search, finals, the test part, the winner's model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

from sweeps.engine import selection
from sweeps.engine.console.progress import ProgressView
from sweeps.engine.console.provenance import utc_now
from sweeps.engine.planning import screening
from sweeps.engine.planning.prepare import Prepared
from sweeps.engine.presearch.advice import recommended_strategies
from sweeps.engine.presearch.warm_start import warm_start_params
from sweeps.engine.resources import cluster, gpu_sharing, memory_probe
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.resources.prices import UNKNOWN_PRICES, Prices, missing_prices_message
from sweeps.engine.samplers.ask_tell import LEARNING_SAMPLERS, AskTellSampler
from sweeps.engine.schedulers import KEEPS_KNOWN_GOOD, SCHEDULERS, TrialHistory
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.probe_tasks import PROBE_BATCH_SIZE, PROBES_PER_SAMPLER_UPDATE, ProbeTasks
from sweeps.engine.trials.stage import Stage, StoppingRule, time_limit
from sweeps.engine.trials.trainable import (
    Resources,
    Trainable,
    TrialContext,
    evaluate_on_test,
    export_model,
    train_trial,
    trial_config,
)
from sweeps.reporting.formatting import format_cost_so_far
from xfer.batched_probes.compatibility import can_batch
from xfer.records import Record
from xfer.storage import local_cache, object_store

MAX_PROBE_TASKS = 8
"""Heads are divided between so many processes at most: each has to load the network."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a sweep may use here and now: nothing of it changes what any trial is."""

    share: Resources = field(default_factory=Resources)
    packs: bool = False
    """Whether trials share GPUs as far as probes say that they fit (see packing.py), rather than by `share`."""
    concurrent: int | None = None
    """Trials at a time; as many as fit unless given."""
    seconds: float | None = None
    """The time budget; None for as long as it takes."""
    prices: Prices = UNKNOWN_PRICES
    """What a person says that machines cost."""
    cost_budget: float | None = None
    """In US dollars, for all starts of the sweep together; None for whatever it takes."""
    tracking_uri: str
    """Where MLflow is: a database (`tracking.default_uri`) or a server."""
    trainable: Trainable = train_trial
    """What happens in a trial's process; another one only to find out what everything else costs."""


class Sweep:
    """The stages of a sweep, each to be called once and in this order.

    Args:
        prepared: the plan with its data and weights.
        store: where everything is written.
        run_options: what may be used.
        watch: told what happens.
        cost_tracker: knows what the machines cost; without one they cost nothing.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        run_options: RunOptions,
        watch: ProgressView,
        cost_tracker: CostTracker | None = None,
    ) -> None:
        self._prepared = prepared
        self._plan = prepared.plan
        self._store = store
        self._means = run_options
        self._watch = watch
        self._objectives = self._plan.objectives
        self._meter = cost_tracker or CostTracker(store)
        self._short_of_time = time_limit(run_options.seconds)
        self._short_of_money = self._meter.budget_check(run_options.cost_budget)
        self._concurrent = 1
        self._connected = False
        self._heads: ProbeTasks | None = None
        self._shares: gpu_sharing.GpuAllocation | None = None
        self._trials = {trial.name: trial for trial in store.trials()}
        self._records: dict[str, Record] = {}
        self._full, self._full_seconds = 0, 0.0  # of the search, asked for after every epoch of every trial
        for record in store.records():
            if record.trial in self._trials:
                self._note(record)
        self._kept = selection.select_finalists(self._records.values(), self._kept_most, self._objectives)
        self._proposer: AskTellSampler | None = None
        decisions = store.decisions("screening")
        if decisions or not screening.describe(prepared):
            self._settle(decisions[-1] if decisions else None)

    def screen(self) -> None:
        """Fit heads on every backbone, and decide by them which of them the search is about (`screening`)."""
        if self._proposer is not None:
            return
        heads = screening.screening_trials(self._prepared)
        left = self._screening_trials(heads)
        self._run("screening", len(heads), self._ended("screen"), left, lambda history, trial: True, self._note)
        records = self._ended("screen")
        if len(records) < len(heads):
            up = "money was spent" if self._short_of_money(0.0) else "time was up"
            self._watch.print_line(f"screening: the {up} before every head was fitted, so nothing is decided yet")
            return
        decision = screening.screening_decision(self._prepared, records.values())
        self._store.decide("screening", {"at": utc_now(), **decision})
        self._watch.print_line(f"screening: {screening.summary_line(decision)}")
        for name in records:
            self._store.drop_checkpoints(name)
        self._settle(decision)

    def search(self) -> None:
        """Run the trials of the search that have not ended yet: of a warm start, then known-good ones, then others.

        Known-good ones are never stopped early, except by `one_epoch_top_k`: they are what strategies are compared by,
        and what all others are held against, those of a warm start too.
        """
        if self._proposer is None:
            return
        proposer = self._proposer
        begun = [trial for trial in self._trials.values() if trial.phase == "search"]
        ended = self._ended("search")
        judge = SCHEDULERS[self._plan.scheduler]
        spares = self._plan.scheduler in KEEPS_KNOWN_GOOD
        limited = self._means.seconds is not None or self._means.cost_budget is not None

        def over() -> bool:
            return limited and self._short_of(self._expected_finals())

        def goes_on(history: TrialHistory, trial: str) -> bool | None:
            return (spares and proposer.is_known_good(int(trial))) or judge(history, trial, self._plan.epochs)

        self._run(
            "search",
            max(self._plan.trials, len(begun)),
            ended,
            self._search_trials(proposer, [trial for trial in begun if trial.name not in ended], over),
            goes_on,
            partial(self._learn, proposer),
            over,
            [f"{number:04d}" for number in range(self._plan.trials)],
        )
        if len(self._ended("search")) < self._plan.trials:
            self._say_if_spent("The search ends", self._expected_finals())

    def finals(self) -> None:
        """Run the best recipes of the search again, on new seeds, and where data are few on new validation parts.

        A search that its time budget cut short has its best so far.
        """
        chosen, trials = self._finalists(), self._final_trials()
        if not chosen:
            return
        decisions = self._store.decisions("finals")
        if not decisions or decisions[-1]["finalists"] != chosen:
            self._store.decide("finals", {"at": utc_now(), "finalists": chosen, "seeds": self._plan.seeds})
        ended = self._ended("final")
        self._run(
            "finals",
            len(trials),
            {name: ended[name] for name in (trial.name for trial in trials) if name in ended},
            self._begin(trial for trial in trials if trial.name not in ended),
            lambda history, trial: True,
            self._note,
        )
        if any(trial.name not in self._records for trial in trials):
            self._say_if_spent("The finals end")

    def open_test(self) -> None:
        """Fix the finalists' ranking, then open the test part for them; not before all of their runs have ended."""
        if any(trial.name not in self._records for trial in self._final_trials()):
            return
        runs = selection.finalist_runs(self._records.values(), self._finalists())
        ranked = selection.rank_finalists(runs, self._objectives[0])
        openings = self._store.decisions("openings")
        if ranked and (not openings or openings[-1]["finalists"] != ranked):
            self._store.decide("openings", {"at": utc_now(), "finalists": ranked})
        closed = [record for name in ranked for record in runs[name] if record.test is None]
        if closed:
            self._watch.print_line("test part: opened for the finalists, now that their ranking is fixed")
            self._on_cluster(evaluate_on_test, [(self._config(record),) for record in closed])
            for record in closed:
                self._records[record.trial] = replace(record, test=self._store.test(record.trial))

    def export(self) -> Record | None:
        """Write the winner's network to the sweep's folder; says whose it is, None where nothing finished."""
        openings = self._store.decisions("openings")
        if openings:
            first = openings[-1]["finalists"][0]
            winner = selection.finalist_runs(self._records.values(), [first])[first][0]
        elif best := selection.select_finalists(self._records.values(), 1, self._objectives):
            winner = self._records[best[0]]
        else:
            return None
        folder, note = self._store.folder / "model", self._store.folder / "model" / "trial.txt"
        if not object_store.exists(note) or note.read_text() != winner.trial:
            if self._trains_here and not self._connected:
                export_model(
                    self._config(winner), object_store.absolute_uri(folder)
                )  # for one network no processes are started
            else:
                self._on_cluster(export_model, [(self._config(winner), object_store.absolute_uri(folder))])
            note.write_text(winner.trial)
        if openings:
            for name in self._ended("final"):
                if selection.search_trial_name(name) != selection.search_trial_name(winner.trial):
                    self._store.drop_checkpoints(name)
        return winner

    def winner_metrics(self, winner: Record) -> dict[str, float]:
        """What the winner's recipe came to, by metric."""
        return selection.winner_metrics(winner, self._records.values(), self._objectives)

    def export_study(self) -> None:
        """Write the study where optuna-dashboard finds it."""
        if self._proposer is not None:
            copy = self._store.near / "study.sqlite3"
            self._proposer.export_sqlite(copy, self._store.name)
            local_cache.upload_if_exists(copy, self._store.folder / copy.name)

    def _run(
        self,
        phase: str,
        total: int,
        ended: dict[str, Record],
        trials: Iterator[Trial],
        judge: StoppingRule,
        learn: Callable[[Record], None],
        over: Callable[[], bool] | None = None,
        to_come: Sequence[str] = (),
    ) -> None:
        over = over or (lambda: self._short_of(0.0))
        left = total - len(ended)
        if left <= 0 or over():
            return
        if not self._trains_here:
            self._connect()
        self._watch.begin(phase, total, Counter(record.status for record in ended.values()))
        stage = Stage(self._store, self._watch, trials, self._site, judge, learn, over, self._objectives[0], to_come)
        learns = phase == "search" and self._plan.sampler in LEARNING_SAMPLERS
        at_once = PROBES_PER_SAMPLER_UPDATE if learns else PROBE_BATCH_SIZE
        tasks = 1 if self._means.share.gpus else min(self._concurrent, MAX_PROBE_TASKS)
        if self._means.trainable is train_trial:
            beside = (stage.on_probe_start, stage.on_probe_end)
            self._heads = ProbeTasks(
                self._store, self._site, self._means.share, *beside, at_once, tasks, self._trains_here
            )
        if stage.has_next():
            tuning = self._connect()
            if self._heads is not None:
                self._heads.tune_running = True
                self._heads.start()
            tuning.run_trials(stage, self._concurrent, self._means.trainable)
        if self._heads is not None:
            self._heads.tune_running = False
            self._heads.settle()

    def _short_of(self, reserve: float) -> bool:
        """Whether less than so many seconds are left, or less than what the machines that are there cost in them."""
        return self._short_of_time(reserve) or self._short_of_money(reserve)

    def _say_if_spent(self, what: str, reserve: float = 0.0) -> None:
        """Say why a stage has ended before its end, where that is the money."""
        if not self._short_of_money(reserve):
            return
        kept = self._meter.usd_per_hour * reserve / 3600
        finals = f", and the finals will cost about ${kept:,.2f}" if kept else ""
        spent = format_cost_so_far(self._meter.spent(), self._means.cost_budget)
        self._watch.print_line(
            f"cost budget: {spent} spent{finals}. {what} here; a larger --cost-budget goes on from here"
        )

    def _settle(self, decision: Mapping[str, Any] | None) -> None:
        """Begin the search that a screening leaves, or without one that of the plan, with all that it has learned."""
        params = warm_start_params(self._store.plan() or {})
        if decision is not None:
            self._prepared = screening.narrow_space(self._prepared, decision)
            params = screening.remaining_params(self._prepared.space, params)
        plan, advised = self._plan, recommended_strategies((self._store.plan() or {}).get("advice", {}))
        self._proposer = AskTellSampler(
            self._prepared.space, plan.sampler, plan.seed, plan.arms, self._objectives, advised, params
        )
        searched = self._ended("search")
        self._proposer.replay({name: (self._trials[name].params, record) for name, record in searched.items()})

    def _screening_trials(self, heads: Sequence[Trial]) -> Iterator[Trial]:
        """One backbone after the other: another one's network is not needed meanwhile, and time may be up."""
        for _, some in groupby(heads, key=lambda trial: trial.recipe["backbone"]):
            if self._short_of(0.0):
                return
            for trial in self._begin(trial for trial in some if trial.name not in self._records):
                yield from self._alone(trial)
            if self._heads is not None:
                self._heads.settle()

    def _search_trials(
        self, proposer: AskTellSampler, unfinished: list[Trial], over: Callable[[], bool]
    ) -> Iterator[Trial]:
        for trial in unfinished:
            proposer.enqueue(trial.name, trial.params)
            yield from self._alone(trial)
        for number in self._heads_first(proposer):
            name = f"{number:04d}"
            if name in self._trials:
                continue
            if over():  # heads are begun without anybody asking for the next trial
                break
            params, config = proposer.ask(name, number)
            proposed = Trial(name, "search", params, self._prepared.recipe(config).as_dict())
            for trial in self._begin(iter([proposed])):
                yield from self._alone(trial)
        if self._heads is not None:
            self._heads.settle()  # a judge who waits for all must know all

    def _heads_first(self, proposer: AskTellSampler) -> list[int]:
        """The numbers of the search's trials, known-good heads before all others.

        Beside what is fine-tuned they cost next to nothing, and there is something to hold it against from the first
        minute.
        """
        numbers = range(self._plan.trials)
        if self._heads is None:
            return list(numbers)
        heads = [
            number
            for number in numbers[: proposer.known_good]
            if (params := proposer.listed(number)) is not None
            and can_batch(self._prepared.recipe(self._prepared.space.configured(params)))
        ]
        return [*heads, *(number for number in numbers if number not in heads)]

    def _alone(self, trial: Trial) -> Iterator[Trial]:
        """A trial that the Tuner has to run; heads are trained side by side, and the sampler learns from them."""
        if self._heads is None:
            yield trial
        elif self._heads.add(trial):
            self._heads.collect()
        else:
            self._heads.start()  # beside it
            self._heads.collect()
            yield trial

    def _begin(self, trials: Iterator[Trial]) -> Iterator[Trial]:
        for trial in trials:
            self._trials[trial.name] = trial
            self._store.add_trial(trial)
            yield trial

    def _note(self, record: Record) -> None:
        # Thousands are held in memory: what is said of single images stays in the store, and a recipe is there once.
        self._records[record.trial] = replace(record, val=None, recipe=self._trials[record.trial].recipe)
        if record.phase == "search" and record.status == "finished":
            self._full, self._full_seconds = self._full + 1, self._full_seconds + record.seconds

    def _learn(self, proposer: AskTellSampler, record: Record) -> None:
        self._note(record)
        proposer.tell(record)
        # Weights are kept of the best few only: the finalists-to-be, or the winner where there are no finals. With one
        # objective they are among those that were the best before and the newest.
        among = [self._records[name] for name in {*self._kept, record.trial}]
        best = selection.select_finalists(
            self._records.values() if self._objectives[1:] else among, self._kept_most, self._objectives
        )
        for name in {record.trial, *self._kept} - set(best):
            self._store.drop_checkpoints(name)
        self._kept = best

    @property
    def _kept_most(self) -> int:
        return max(1, self._plan.finalists)

    def _ended(self, phase: str) -> dict[str, Record]:
        return {name: record for name, record in self._records.items() if record.phase == phase}

    def _finalists(self) -> list[str]:
        return selection.select_finalists(self._records.values(), self._plan.finalists, self._objectives)

    def _final_trials(self) -> list[Trial]:
        chosen = [self._records[name] for name in self._finalists()]
        return selection.finalist_trials(chosen, self._plan, self._prepared.redraws)

    def _expected_finals(self) -> float:
        """How many seconds the finals will take, from what full trials took so far."""
        rounds = ceil(self._plan.finalists * self._plan.seeds / self._concurrent)
        return rounds * self._full_seconds / self._full if self._full else 0.0

    @property
    def _trains_here(self) -> bool:
        """Whether this process may do what needs no Tuner: it has no GPU to share out and no cluster to leave it to."""
        return not self._means.share.gpus and not cluster.has_cluster_address()

    def _connect(self) -> ModuleType:
        from sweeps.engine.trials import ray_tune

        ray_tune.connect_ray()
        if cluster.has_cluster_address() and not self._connected:
            self._watch.print_line(ray_tune.summary_line())
        self._connected = True
        if cluster.has_cluster_address():  # else it is this machine, which is counted already
            self._meter.set_machine_source(ray_tune.alive_machines)
            if self._means.cost_budget is not None and (node_types := self._meter.unpriced):
                raise ValueError(missing_prices_message(self._means.cost_budget, node_types))
        share = self._means.share
        if self._means.packs and self._proposer is not None:  # before, nobody knows which networks are trained
            self._shares = self._shares or self._probed()
            share = replace(share, gpus=self._shares.smallest_fraction())
        fitting = ray_tune.max_concurrent_trials(share)
        self._concurrent = min(fitting, self._means.concurrent or fitting)
        return ray_tune

    def _on_cluster(self, function: Callable[..., None], calls: list[tuple[Any, ...]]) -> None:
        self._connect().map_on_cluster(function, calls, self._means.share)

    def _probed(self) -> gpu_sharing.GpuAllocation:
        self._watch.print_line("GPU: seeing how many trials fit side by side, once for each kind of trial")
        from sweeps.engine.trials import ray_tune

        probe = partial(ray_tune.map_on_cluster, share=self._means.share)
        folder = self._store.folder.parent / "probes"
        kind = (
            ray_tune.call_remote(memory_probe.local_gpu_kind, self._means.share)
            if cluster.has_cluster_address()
            else memory_probe.local_gpu_kind()
        )
        return memory_probe.load_or_run_probes(memory_probe.candidate_recipes(self._prepared), folder, kind, probe)

    def _gpus_of(self, trial: Trial) -> float:
        return self._means.share.gpus if self._shares is None else self._shares.of(trial.recipe)

    def _site(self, trial: Trial) -> TrialContext:
        weights = self._prepared.backbone(str(trial.recipe["backbone"])).file if trial.recipe["weights"] else None
        storage, pack = self._store.folder.parent, self._prepared.pack.folder
        return TrialContext(
            sweep=object_store.absolute_uri(self._store.folder),
            pack=object_store.absolute_uri(storage / "packs" / pack.name if object_store.is_remote(storage) else pack),
            weights=None if weights is None else self._weights(weights, str(trial.recipe["weights"])),
            threads=self._means.share.cpus,
            gpus=self._gpus_of(trial),
            compiled=self._shares is not None and self._shares.compiled(trial.recipe, len(self._prepared.split.train)),
            noisy="noisy_accuracy" in self._plan.objective and trial.phase != "screen",
            features=object_store.absolute_uri(storage / "features"),
        )

    def _weights(self, file: Path, sha256: str) -> str:
        """Where every machine that trains finds a file of weights: of a cluster's, only this one has seen it."""
        storage = self._store.folder.parent
        if not cluster.has_cluster_address() and not object_store.is_remote(storage):
            return str(file)
        return object_store.absolute_uri(
            local_cache.publish_file(file, storage / "weights", f"{sha256[:16]}{file.suffix}")
        )

    def _config(self, record: Record) -> dict[str, object]:
        trial = Trial(record.trial, record.phase, {}, record.recipe)
        return trial_config(trial, self._site(trial))
