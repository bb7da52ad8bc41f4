"""A proposer at work: trials one after another, and the study that comes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from sweeps.engine.samplers.ask_tell import AskTellSampler
from xfer.records import Record

NUM_TRIALS = {"gp": 16}
"""How often a test asks a sampler that takes its time: a few times more than until its model is asked at all."""

TrialHistory = dict[str, tuple[Mapping[str, Any], Record]]


def run_trials(
    proposer: AskTellSampler, numbers: range, outcome: Callable[[int, Mapping[str, Any]], Record]
) -> TrialHistory:
    """Trials one after another, each told before the next is asked for."""
    found = {}
    for number in numbers:
        name = f"{number:04d}"
        params, _ = proposer.ask(name, number)
        found[name] = (params, outcome(number, params))
        proposer.tell(found[name][1])
    return found


def study_of(proposer: AskTellSampler, folder: Path) -> optuna.Study:
    """What optuna-dashboard would open."""
    proposer.export_sqlite(folder / "study.sqlite3", "the sweep")
    return optuna.load_study(study_name="the sweep", storage=f"sqlite:///{folder / 'study.sqlite3'}")
