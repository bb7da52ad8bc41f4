"""Runs of a sampler: trials one after another, and the exported study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from sweeps.engine.samplers.ask_tell import AskTellSampler
from xfer.records import Record

NUM_TRIALS = {"gp": 16}
"""Number of trials in tests of slow samplers: a few more than the random start before the first use of the model."""

TrialHistory = dict[str, tuple[Mapping[str, Any], Record]]


def run_trials(
    ask_tell: AskTellSampler, numbers: range, outcome: Callable[[int, Mapping[str, Any]], Record]
) -> TrialHistory:
    """Ask for and tell one trial after another, and return their parameters and records."""
    history = {}
    for number in numbers:
        name = f"{number:04d}"
        params, _ = ask_tell.ask(name, number)
        history[name] = (params, outcome(number, params))
        ask_tell.tell(history[name][1])
    return history


def study_of(ask_tell: AskTellSampler, folder: Path) -> optuna.Study:
    """Export the study and load it as optuna-dashboard does."""
    ask_tell.export_sqlite(folder / "study.sqlite3", "the sweep")
    return optuna.load_study(study_name="the sweep", storage=f"sqlite:///{folder / 'study.sqlite3'}")
