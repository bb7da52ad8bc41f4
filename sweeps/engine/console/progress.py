"""Progress of a running sweep: trials by state, the best so far, and the time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.reporting.formatting import (
    escape_control_characters,
    format_duration,
    format_objective,
    format_percent,
    format_status,
    pluralize,
)
from xfer.objectives import ACCURACY, Objective
from xfer.records import Record, epoch_from_dict

MAX_SHOWN_TRIALS = 8
"""Maximum number of running trials listed."""

PLAIN_OUTPUT_SECONDS = 300.0
"""Seconds between two progress lines without a live view, as in a job's log."""


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
    cost: Callable[[], str] = lambda: ""
    """Returns the cost so far as text; "" if no price is known."""
    _last_line_at: float = field(default_factory=time.monotonic)
    _phase_began_at: float = field(default_factory=time.monotonic)
    _ended_before: int = 0
    _live: Live | None = None

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

    def begin(self, phase: str, total: int, ended: Counter[str] | None = None) -> None:
        """Start a phase and print its first line.

        Args:
            phase: as in "search".
            total: number of trials, including those of earlier starts.
            ended: number of trials that ended in earlier starts, by status.
        """
        self.phase, self.total, self.ended = phase, total, Counter(ended)
        self._ended_before, self._phase_began_at = self.ended.total(), time.monotonic()
        self.running = {}
        if phase == "search":
            self.best = self.best_accuracy = None  # heads of the screening do not compete with trials
        done = f", {self._ended_before} already done" if self._ended_before else ""
        spent = f", {cost}" if (cost := self.cost()) else ""
        self.print_line(f"{phase}: {pluralize(total, 'run')}{done}{spent}")

    def print_line(self, line: str) -> None:
        """Print a permanent line, above the live view if there is one."""
        self._last_line_at = time.monotonic()
        self.console.print(Text(escape_control_characters(line)))

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Update a running trial after an epoch."""
        self.running[record["trial"]] = record
        self._print_progress_if_due()

    def started(self, trial: str, recipe: dict[str, Any], epochs: Sequence[dict[str, Any]] = ()) -> None:
        """Add a running trial, with the epochs that an earlier start has trained, as plain data."""
        self.running[trial] = {"trial": trial, "recipe": recipe, "epochs": list(epochs)}

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
        if status is None:
            return
        self.ended[status] += 1
        if record is None or status != "finished" or value is None:
            return
        if self.best is None or self.objective.to_score(value) > self.objective.to_score(self.best[0]):
            self.best = (value, trial, record["recipe"]["strategy"]["name"])
            self.best_accuracy = record["epochs"][-1]["val_accuracy"] if record["epochs"] else None

    def seconds_left(self) -> float | None:
        """Estimate the seconds left in this phase from its own pace; None before a fifth of a trial is done."""
        partial = sum(len(record["epochs"]) / record["recipe"]["epochs"] for record in self.running.values())
        done = self.ended.total() - self._ended_before + partial
        left = self.total - self.ended.total() - partial
        return left * (time.monotonic() - self._phase_began_at) / done if done > 0.2 else None

    def _counts_and_forecast(self) -> tuple[list[str], str, str]:
        """Number of trials by state, the time left, and the cost so far."""
        counts = [f"{len(self.running)} running"]
        counts += [f"{count} {format_status(status)}" for status, count in sorted(self.ended.items())]
        left = self.seconds_left()
        return counts, f"{format_duration(left)} left" if left else "", self.cost()

    def _print_progress_if_due(self) -> None:
        if self._live is not None or time.monotonic() - self._last_line_at < PLAIN_OUTPUT_SECONDS:
            return
        counts, left, cost = self._counts_and_forecast()
        self.print_line(", ".join(filter(None, [f"{self.phase}: {' · '.join(counts)} of {self.total}", left, cost])))

    def render(self) -> RenderableType:
        """Draw the live view."""
        counts, left, cost = self._counts_and_forecast()
        line = Text.assemble((self.name, "bold"), "  ", self.phase, "  ", " · ".join(counts), "  ", left)
        if cost:
            line.append("  " if left else "").append(cost)
        best = Text("best so far: ")
        if self.best is None:
            best.append("none yet")
        else:
            value = self._format_value(self.best[0], self.best_accuracy)
            best.append(f"{value} on validation, {self.best[2]} (trial {self.best[1]})")
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
        return Group(line, Columns([bar]), best, table)

    def _format_value(self, value: float | None, accuracy: float | None) -> str:
        """The value of the objective, followed by the accuracy if that is not the objective."""
        if self.objective == ACCURACY:
            return format_objective(ACCURACY, value)
        suffix = "" if accuracy is None else f", accuracy {format_percent(accuracy)}"
        return f"{self.objective.label} {format_objective(self.objective, value)}{suffix}"
