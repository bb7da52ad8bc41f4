"""A copy of the study as an SQLite file that optuna-dashboard opens. The sweep itself never depends on it.

Optuna's public API takes about 10 ms per trial (5,000 trials, 2026-11-30), once, at the end of a sweep.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from xfer.storage.atomic import atomic_write


def write_study(
    path: Path, name: str, directions: Sequence[StudyDirection], labels: Sequence[str], trials: Sequence[FrozenTrial]
) -> None:
    """Write a study to `path` in one step, unless the file already holds as many trials.

    Args:
        path: the SQLite file.
        name: name of the study.
        directions: the direction of each objective.
        labels: the names of the objectives.
        trials: the finished, pruned and failed trials, in order.
    """
    if _count_trials(path, name) == len(trials):
        return
    atomic_write(path, lambda temporary: _write(temporary, name, directions, labels, trials))


def _write(
    path: Path, name: str, directions: Sequence[StudyDirection], labels: Sequence[str], trials: Sequence[FrozenTrial]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.RDBStorage("sqlite:///:memory:")  # in memory: a file would be flushed for every trial
        study = optuna.create_study(study_name=name, storage=storage, directions=directions)
        study.set_metric_names([*labels])
        study.add_trials(trials)
    with closing(sqlite3.connect(path)) as copy, closing(storage.engine.raw_connection()) as connection:
        assert connection.driver_connection is not None, "it is open"
        connection.driver_connection.backup(copy)


def _count_trials(path: Path, name: str) -> int | None:
    """Return the number of trials in a file; None if there is no readable study in it."""
    if not path.exists():
        return None
    from sqlalchemy.exc import SQLAlchemyError  # takes a tenth of a second to import, and is needed at the end

    try:
        return len(optuna.load_study(study_name=name, storage=_url(path)).trials)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, KeyError, RuntimeError):
        return None


def _url(path: Path) -> str:
    return f"sqlite:///{quote(str(path))}"
