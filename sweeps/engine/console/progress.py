"""What a person watches meanwhile: how far it is, what is best so far, how long it will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
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
    pluralize,
)
from xfer.objectives import ACCURACY, Objective
from xfer.records import epoch_from_dict

MAX_SHOWN_TRIALS = 8
"""How many running trials are listed."""

PLAIN_OUTPUT_SECONDS = 300.0
"""Seconds between two lines about how far it is where there is no live view, as in a job's log."""


@dataclass
class ProgressView:
    """A live view of a sweep on a terminal; a few plain lines elsewhere.

    Use as `with Watch(console, name):` around the sweep, and tell it what happens.
    """

    console: Console
    name: str
    objective: Objective = ACCURACY
    """What the best is the best in."""
    phase: str = ""
    total: int = 0
    """Trials in this phase, those of earlier starts included."""
    ended: Counter[str] = field(default_factory=Counter)
    """Trials of this phase by status."""
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The newest record of each running trial as plain data, by name."""
    best: tuple[float, str, str] | None = None
    """The objective's value, trial and strategy of the best finished one."""
    best_accuracy: float | None = None
    """Its validation accuracy."""
    cost: Callable[[], str] = lambda: ""
    """Says what has been spent so far; nothing where no price is known."""
    _said: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.monotonic)
    _inherited: int = 0
    _live: Live | None = None

    def __enter__(self) -> ProgressView:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._drawn,
                console=self.console,
                refresh_per_second=2,
                transient=True,
                redirect_stdout=False,  # what others print goes to the log, not here
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, phase: str, total: int, ended: Counter[str] | None = None) -> None:
        """A phase begins, some of whose trials may have ended in an earlier start."""
        self.phase, self.total, self.ended = phase, total, Counter(ended)
        self._inherited, self._began = self.ended.total(), time.monotonic()
        self.running = {}
        if phase == "search":
            self.best = self.best_accuracy = None  # a head of the screening is no candidate
        done = f", {self._inherited} of them done before" if self._inherited else ""
        spent = f", {cost}" if (cost := self.cost()) else ""
        self.print_line(f"{phase}: {pluralize(total, 'run')}{done}{spent}")

    def print_line(self, line: str) -> None:
        """One line that stays."""
        self._said = time.monotonic()
        self.console.print(Text(escape_control_characters(line)))

    def on_epoch(self, record: dict[str, Any]) -> None:
        """A running trial finished an epoch."""
        self.running[record["trial"]] = record
        self._say_now_and_then()

    def started(self, trial: str, recipe: dict[str, Any]) -> None:
        """A trial was handed out."""
        self.running[trial] = {"trial": trial, "recipe": recipe, "epochs": []}

    def on_trial_end(self, trial: str, status: str | None, value: float | None) -> None:
        """A trial ended, with this value of the objective; without a status it was only interrupted."""
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
        """An estimate for this phase from its own pace; None while there is nothing to go by."""
        epochs_each = [record["recipe"]["epochs"] for record in self.running.values()]
        halves = sum(
            len(record["epochs"]) / epochs for record, epochs in zip(self.running.values(), epochs_each, strict=True)
        )
        done = self.ended.total() - self._inherited + halves
        left = self.total - self.ended.total() - halves
        return left * (time.monotonic() - self._began) / done if done > 0.2 else None

    def _states(self) -> tuple[list[str], str, str]:
        """How many trials are in which state, how long it will take, and what has been spent."""
        states = [f"{len(self.running)} running"] + [f"{n} {status}" for status, n in sorted(self.ended.items())]
        left = self.seconds_left()
        return states, f"{format_duration(left)} left" if left else "", self.cost()

    def _say_now_and_then(self) -> None:
        if self._live is not None or time.monotonic() - self._said < PLAIN_OUTPUT_SECONDS:
            return
        states, left, cost = self._states()
        self.print_line(", ".join(filter(None, [f"{self.phase}: {' · '.join(states)} of {self.total}", left, cost])))

    def _drawn(self) -> RenderableType:
        states, left, cost = self._states()
        line = Text.assemble((self.name, "bold"), "  ", self.phase, "  ", " · ".join(states), "  ", left)
        if cost:
            line.append("  " if left else "").append(cost)
        best = Text("best so far: ")
        if self.best is None:
            best.append("none yet")
        else:
            reached = self._in_words(self.best[0], self.best_accuracy)
            best.append(f"{reached} on validation, {self.best[2]} (trial {self.best[1]})")
        table = Table.grid(padding=(0, 2))
        for record in list(self.running.values())[:MAX_SHOWN_TRIALS]:
            recipe, epochs = record["recipe"], record["epochs"]
            value = self.objective.value([epoch_from_dict(epoch) for epoch in epochs])
            table.add_row(
                record["trial"],
                recipe["strategy"]["name"],
                recipe["optimizer"]["name"],
                f"lr {recipe['learning_rate']:.1e}",
                f"epoch {len(epochs)}/{recipe['epochs']}",
                self._in_words(value, epochs[-1]["val_accuracy"]) if epochs else "…",
            )
        bar = ProgressBar(total=max(1, self.total), completed=self.ended.total(), width=60)
        return Group(line, Columns([bar]), best, table)

    def _in_words(self, value: float | None, accuracy: float | None) -> str:
        """The objective's value, and beside it the accuracy where that is something else."""
        if self.objective == ACCURACY:
            return format_objective(ACCURACY, value)
        beside = "" if accuracy is None else f", accuracy {format_percent(accuracy)}"
        return f"{self.objective.label} {format_objective(self.objective, value)}{beside}"
