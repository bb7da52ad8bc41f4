"""Progress of a running sweep: trials by state, the best so far, and the time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.engine.console.best_so_far import best_so_far
from sweeps.reporting.formatting import (
    escape_control_characters,
    format_objective,
    format_percent,
    format_status,
    pluralize,
)
from xfer.methods.descriptions import explain_strategy
from xfer.objectives import ACCURACY, Objective
from xfer.records import Record, epoch_from_dict

MAX_SHOWN_TRIALS = 8
"""Maximum number of running trials listed."""

PLAIN_OUTPUT_SECONDS = 300.0
"""Seconds between two progress lines without a live view, as in a job's log."""
PLAIN_EVALUATION_SECONDS = 30.0
"""The same while runs are evaluated: that takes minutes, and nothing else is printed."""

MIN_PACE_SECONDS, MAX_STRETCH = 10.0, 2.0
"""Seconds of training from which the overhead between epochs is extrapolated, and the most that it can be."""


@dataclass
class ProgressView:
    """Live view of a sweep on a terminal; a few plain lines elsewhere.

    Use as a context manager around the sweep, and report events through its methods.
    """

    console: Console
    name: str
    objective: Objective = ACCURACY
    """Objective by which the best trial is selected."""
    phase: str = ""
    total: int = 0
    """Number of trials in this phase, including those of earlier starts."""
    ended: Counter[str] = field(default_factory=Counter)
    """Number of ended trials of this phase by status."""
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Latest record of each running trial as plain data, by trial name."""
    best: tuple[float, str, str] | None = None
    """Objective value, trial name and strategy of the best finished trial."""
    best_accuracy: float | None = None
    """Validation accuracy of the best finished trial."""
    images: int = 0
    """Number of validation images of each run; 0 if unknown, so that accuracies are shown without intervals."""
    cost: Callable[[], str] = lambda: ""
    """Returns the cost so far as text; "" if no price is known."""
    time_left: Callable[[], str] = lambda: ""
    """Returns the time left of all stages as text; "" if there is nothing to say."""
    on_change: Callable[[str, dict[str, Any] | None], None] = lambda trial, record: None
    """Called with the name of a trial that has started or ended, or with its latest record, after an epoch."""
    _last_line_at: float = field(default_factory=time.monotonic)
    _phase_began_at: float = field(default_factory=time.monotonic)
    _ended_before: int = 0
    _evaluates: bool = False
    _trained_since: float | None = None
    _trained_seconds: float = 0.0
    _live: Live | None = None
    _printed: set[str] = field(default_factory=set)
    _accuracies: dict[str, float] = field(default_factory=dict)  # of the finished trials of this phase
    _strategies: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> ProgressView:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self.render,
                console=self.console,
                refresh_per_second=2,
                transient=True,
                redirect_stdout=False,  # the output of libraries goes to the log
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(
        self,
        phase: str,
        total: int,
        ended: Counter[str] | None = None,
        accuracies: Mapping[str, float | None] | None = None,
    ) -> None:
        """Start a phase and print its first line.

        Args:
            phase: as in "search".
            total: number of trials, including those of earlier starts.
            ended: number of trials that ended in earlier starts, by status.
            accuracies: validation accuracies of those that finished, by trial.
        """
        self.phase, self.total, self.ended = phase, total, Counter(ended)
        self._ended_before, self._phase_began_at = self.ended.total(), time.monotonic()
        self.running, self._evaluates = {}, False
        self._trained_since, self._trained_seconds = None, 0.0
        if phase == "search":
            self.best = self.best_accuracy = None  # heads of the screening do not compete with trials
        self._accuracies = {name: value for name, value in (accuracies or {}).items() if value is not None}
        done = f", {self._ended_before} already done" if self._ended_before else ""
        spent = f", {cost}" if (cost := self.cost()) else ""
        self.print_line(f"{phase}: {pluralize(total, 'run')}{done}{spent}")

    def begin_evaluation(self, phase: str, line: str, total: int, done: int) -> None:
        """Start a phase that evaluates finished runs, and print its first line.

        Args:
            phase: "test" or "noise".
            line: describes it.
            total: number of evaluations, including those of earlier starts.
            done: number of evaluations of earlier starts.
        """
        self.phase, self.total, self.ended, self.running = phase, total, Counter(evaluated=done), {}
        self._ended_before, self._phase_began_at, self._evaluates = done, time.monotonic(), True
        self.print_line(
            ", ".join(filter(None, [line, f"{done} of {total} are done" if done else "", self.time_left()]))
        )

    def evaluated(self, done: int) -> None:
        """Update the number of evaluations, including those of earlier starts."""
        self.ended = Counter(evaluated=done)
        self._print_progress_if_due()

    def print_line(self, line: str) -> None:
        """Print a permanent line, above the live view if there is one."""
        self._last_line_at = time.monotonic()
        self.console.print(Text(escape_control_characters(line)))

    def print_once(self, line: str) -> None:
        """Print a permanent line unless it has been printed before."""
        if line not in self._printed:
            self._printed.add(line)
            self.print_line(line)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Update a running trial after an epoch."""
        self.running[record["trial"]] = record
        if self._trained_since is None:
            self._trained_since = time.monotonic()  # what came before is the start of Ray
        else:
            self._trained_seconds += record["epochs"][-1]["seconds"]
        self.on_change(record["trial"], record)
        self._print_progress_if_due()

    def started(self, trial: str, recipe: dict[str, Any], epochs: Sequence[dict[str, Any]] = ()) -> None:
        """Add a running trial, with the epochs that an earlier start has trained, as plain data."""
        self.running[trial] = {"trial": trial, "recipe": recipe, "epochs": list(epochs)}
        self.on_change(trial, None)

    def show_stored_best(self, record: Record) -> None:
        """Show the best trial of earlier starts until a better one ends."""
        value = self.objective.value(record.epochs)
        if value is not None:
            self.best = (value, record.trial, record.recipe["strategy"]["name"])
            self.best_accuracy = record.val_accuracy

    def on_trial_end(self, trial: str, status: str | None, value: float | None) -> None:
        """Remove a running trial.

        Args:
            trial: its name.
            status: how it ended; None if it was interrupted and will be resumed.
            value: its final value of the objective, if known.
        """
        record = self.running.pop(trial, None)
        self.on_change(trial, None)
        if status is None:
            return
        self.ended[status] += 1
        if record is None or status != "finished" or value is None:
            return
        if record["epochs"] and record["epochs"][-1]["val_accuracy"] is not None:
            self._accuracies[trial] = record["epochs"][-1]["val_accuracy"]
            self._strategies[trial.partition("-s")[0]] = record["recipe"]["strategy"]["name"]
        if self.best is None or self.objective.to_score(value) > self.objective.to_score(self.best[0]):
            self.best = (value, trial, record["recipe"]["strategy"]["name"])
            self.best_accuracy = record["epochs"][-1]["val_accuracy"] if record["epochs"] else None

    def seconds_left(self) -> float | None:
        """Extrapolate the seconds left in this phase from the runs that have ended in it; None before the first."""
        done = self.ended.total() - self._ended_before
        left = self.total - self.ended.total()
        return left * (time.monotonic() - self._phase_began_at) / done if done > 0 else None

    def stretch(self, concurrent: int) -> float:
        """Return the ratio of elapsed to training time in this phase for a number of concurrent trials.

        Args:
            concurrent: number of concurrent trials.

        Returns:
            A number in [1, MAX_STRETCH]; 1 before there is anything to measure.
        """
        if self._trained_since is None or self._trained_seconds < MIN_PACE_SECONDS:
            return 1.0
        elapsed = time.monotonic() - self._trained_since
        return min(MAX_STRETCH, max(1.0, elapsed * concurrent / self._trained_seconds))

    def _counts(self) -> list[str]:
        """Number of trials by state."""
        counts = [] if self._evaluates else [f"{len(self.running)} running"]
        return counts + [f"{count} {format_status(status)}" for status, count in sorted(self.ended.items())]

    def _print_progress_if_due(self) -> None:
        silence = PLAIN_EVALUATION_SECONDS if self._evaluates else PLAIN_OUTPUT_SECONDS
        if self._live is not None or time.monotonic() - self._last_line_at < silence:
            return
        counts = " · ".join(self._counts())
        self.print_line(
            ", ".join(filter(None, [f"{self.phase}: {counts} of {self.total}", self.time_left(), self.cost()]))
        )
        if self.best is not None and not self._evaluates:
            self.print_line(f"best so far: {self._describe_best()}")

    def render(self) -> RenderableType:
        """Draw the live view."""
        counts, cost = " · ".join(self._counts()), self.cost()
        line = Text.assemble((self.name, "bold"), "  ", self.phase, "  ", counts, "  ", cost)
        best = Text("best so far: ")
        best.append("none yet" if self.best is None else self._describe_best())
        table = Table.grid(padding=(0, 2))
        for record in list(self.running.values())[:MAX_SHOWN_TRIALS]:
            recipe, epochs = record["recipe"], record["epochs"]
            current = self.objective.value([epoch_from_dict(epoch) for epoch in epochs])
            table.add_row(
                record["trial"],
                recipe["strategy"]["name"],
                recipe["optimizer"]["name"],
                f"lr {recipe['learning_rate']:.1e}",
                f"epoch {len(epochs)}/{recipe['epochs']}",
                self._format_value(current, epochs[-1]["val_accuracy"]) if epochs else "…",
            )
        bar = ProgressBar(total=max(1, self.total), completed=self.ended.total(), width=60)
        return Group(line, Columns([bar]), Text(self.time_left()), best, table)

    def _describe_best(self) -> str:
        """The best trial, the interval of its accuracy, and how many others are not shown to be worse."""
        assert self.best is not None
        value, trial, strategy = self.best
        leader = best_so_far(self._accuracies, self.images) if self.objective == ACCURACY else None
        if leader is None or leader.name not in self._strategies:  # after a restart, until another trial has ended
            value_text = self._format_value(value, self.best_accuracy)
            return f"{value_text} on validation, {explain_strategy(strategy)} in trial {trial}"
        text = f"{format_percent(leader.mean)} on validation {leader.describe(self.images)}"
        return f"{text}: {explain_strategy(self._strategies[leader.name])} in trial {leader.name}"

    def _format_value(self, value: float | None, accuracy: float | None) -> str:
        """The value of the objective, followed by the accuracy if that is not the objective."""
        if self.objective == ACCURACY:
            return format_objective(ACCURACY, value)
        suffix = "" if accuracy is None else f", accuracy {format_percent(accuracy)}"
        return f"{self.objective.label} {format_objective(self.objective, value)}{suffix}"
