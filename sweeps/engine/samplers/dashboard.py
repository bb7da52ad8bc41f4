"""Dashboard: a study as an SQLite file that optuna-dashboard opens. Nothing here reads it back."""

from __future__ import annotations

import json
import logging
import sqlite3
import warnings
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from xfer.storage.atomic import atomic_write

log = logging.getLogger(__name__)


def write_study(
    path: Path, name: str, directions: Sequence[StudyDirection], labels: Sequence[str], trials: Sequence[FrozenTrial]
) -> None:
    """Write a study with these ended trials to `path` in one step, unless one with as many stands there.

    Args:
        path: where to.
        name: the study's.
        directions: one for each objective.
        labels: what the objectives are called.
        trials: in their order.
    """
    if _count(path) != len(trials):
        atomic_write(path, lambda temporary: _write(temporary, name, directions, labels, trials))


def _write(
    temporary: Path,
    name: str,
    directions: Sequence[StudyDirection],
    labels: Sequence[str],
    trials: Sequence[FrozenTrial],
) -> None:
    url = f"sqlite:///{quote(str(temporary))}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(study_name=name, storage=url, directions=directions)
        study.set_metric_names([*labels])
    try:
        _add(url, study._study_id, trials)
    except Exception as error:  # a version of Optuna with other tables: its own way knows them, one by one
        log.warning("the study's copy cannot be written in one transaction (%s): trials go one by one", error)
        study.add_trials(trials)


def _add(url: str, study: int, trials: Sequence[FrozenTrial]) -> None:
    """Add all trials in one transaction: Optuna's own way writes them one by one, at 20 ms each."""
    from optuna.storages._rdb import models
    from sqlalchemy import create_engine, insert

    values, curves = (
        models.TrialValueModel.TrialValueType,
        models.TrialIntermediateValueModel.TrialIntermediateValueType,
    )
    rows: dict[Any, list[dict[str, Any]]] = {
        models.TrialModel: [
            {
                "trial_id": place,
                "number": place - 1,
                "study_id": study,
                "state": trial.state,
                "datetime_start": _utc(trial.datetime_start),
                "datetime_complete": _utc(trial.datetime_complete),
            }
            for place, trial in enumerate(trials, start=1)
        ],
        models.TrialParamModel: [
            {
                "trial_id": place,
                "param_name": param,
                "param_value": trial.distributions[param].to_internal_repr(value),
                "distribution_json": distribution_to_json(trial.distributions[param]),
            }
            for place, trial in enumerate(trials, start=1)
            for param, value in trial.params.items()
        ],
        models.TrialValueModel: [
            {"trial_id": place, "objective": number, "value": value, "value_type": values.FINITE}
            for place, trial in enumerate(trials, start=1)
            for number, value in enumerate(trial.values or ())
        ],
        models.TrialIntermediateValueModel: [
            {
                "trial_id": place,
                "step": step,
                "intermediate_value": value,
                "intermediate_value_type": curves.FINITE,
            }
            for place, trial in enumerate(trials, start=1)
            for step, value in trial.intermediate_values.items()
        ],
        models.TrialUserAttributeModel: [
            {"trial_id": place, "key": key, "value_json": json.dumps(value)}
            for place, trial in enumerate(trials, start=1)
            for key, value in trial.user_attrs.items()
        ],
    }
    engine = create_engine(url)
    with engine.begin() as connection:
        for kind, those in rows.items():
            if those:
                connection.execute(insert(kind.__table__), those)
    engine.dispose()


def _count(path: Path) -> int | None:
    """How many trials a file holds; None where there is no such file, or none that can be read."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path)) as database:
            found: int = database.execute("SELECT COUNT(*) FROM trials").fetchone()[0]
    except sqlite3.Error:
        return None
    return found


def _utc(at: datetime | None) -> datetime | None:
    return at and at.astimezone(UTC).replace(tzinfo=None)
