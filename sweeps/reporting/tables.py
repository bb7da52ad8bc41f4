"""Text tables for a reader: ranking, strategies, failed runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.reporting.formatting import (
    escape_control_characters,
    format_choice,
    format_duration,
    format_interval,
    format_objective,
    format_percent,
    format_setting,
    format_status,
    rare_settings,
    truncate,
)
from sweeps.reporting.ranking import ranked_trials, tally_by_strategy
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import Estimate
from sweeps.reporting.strategy_descriptions import STRATEGY_DESCRIPTIONS
from xfer.objectives import ACCURACY, OBJECTIVES


@dataclass(frozen=True)
class Table:
    """Cells of plain text that are safe to print; escape them for HTML or Markdown."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def select_columns(self, *columns: str) -> Table:
        """Return a table with these columns, in this order."""
        indices = [self.header.index(column) for column in columns]
        return Table(columns, tuple(tuple(row[index] for index in indices) for row in self.rows))


def summary_table(results: Results, top: int = 10) -> Table:
    """Top rows of the ranking, with few enough columns for a terminal."""
    table = _ranking(results, ranked_trials(results)[:top], (), short_status=True)
    return table.select_columns(
        "rank", "trial", "strategy", "status", *_objective_columns(results), "validation", "test"
    )


def ranking_table(results: Results, top: int | None = None) -> Table:
    """Ranking with a column for each setting that varies between trials.

    Args:
        results: of the sweep.
        top: maximum number of rows; None for all.

    Returns:
        A table whose columns `validation` and `test` are accuracies, whatever the objective of the search.
    """
    shared = _shared_settings(results)
    trials = ranked_trials(results)
    varying = [setting for trial in trials[:1] for setting in _settings(trial) if setting not in {*shared, "strategy"}]
    return _ranking(results, trials[:top], varying)


def common_settings(results: Results) -> dict[str, str]:
    """Settings that are the same in all trials, without rare settings that have their default."""
    defaults = _with_spaces(rare_settings({}))
    return {setting: value for setting, value in _shared_settings(results).items() if defaults.get(setting) != value}


def _shared_settings(results: Results) -> dict[str, str]:
    settings = [_settings(trial) for trial in results.trials]
    return {
        setting: value
        for setting, value in (settings[0] if settings else {}).items()
        if all(other[setting] == value for other in settings)
    }


def strategies_table(results: Results) -> Table:
    """Count the trials of each strategy and summarise their search runs on the validation set.

    Best and median refer to the deciding objective. If that is not accuracy, a column with the best accuracy is added.
    """
    objective = results.objective
    show_accuracy = objective != ACCURACY
    return Table(
        (
            *("strategy", "trials", "finished", "best", "median", *(("best accuracy",) * show_accuracy)),
            *(format_status("pruned"), format_status("failed"), "description"),
        ),
        tuple(
            (
                escape_control_characters(tally.strategy),
                str(len(tally.trials)),
                str(tally.counts["finished"]),
                format_objective(objective, tally.best),
                format_objective(objective, tally.median_value),
                *((format_percent(max(tally.accuracies, default=None)),) * show_accuracy),
                str(tally.counts["pruned"]),
                str(tally.counts["failed"]),
                STRATEGY_DESCRIPTIONS.get(tally.strategy, ""),
            )
            for tally in tally_by_strategy(results.trials)
        ),
    )


def failures_table(results: Results) -> Table:
    """List the failed runs of all phases with their errors."""
    failed = sorted((record for record in results.records if record.status == "failed"), key=lambda r: r.trial)
    return Table(
        ("trial", "strategy", "epochs", "reason"),
        tuple(
            (
                escape_control_characters(record.trial),
                format_choice(record.recipe["strategy"]),
                str(len(record.epochs)),
                truncate(escape_control_characters(record.error or "no error was recorded"), 300),
            )
            for record in failed
        ),
    )


def _objective_columns(results: Results) -> tuple[str, ...]:
    """Columns for objectives without a column of their own and, with two objectives, for the Pareto front."""
    has_column = (ACCURACY, OBJECTIVES["seconds"])
    labels = [objective.label for objective in results.objectives if objective not in has_column]
    return (*labels, *(("front",) if results.objectives[1:] else ()))


def _ranking(
    results: Results, trials: Sequence[RankedTrial], settings: Sequence[str], short_status: bool = False
) -> Table:
    """Results come before settings, so that they are visible on a narrow screen."""
    rows = []
    for rank, trial in enumerate(trials, start=1):
        all_settings = _settings(trial)
        reached = {
            objective.label: format_objective(objective, trial.value(objective)) for objective in results.objectives
        }
        reached["front"] = "yes" if trial.name in results.pareto_front else ""
        rows.append(
            (
                str(rank),
                escape_control_characters(trial.name),
                all_settings["strategy"],
                *(reached[column] for column in _objective_columns(results)),
                format_accuracy_interval(trial.val_accuracy, trial.validation),
                format_accuracy_interval(trial.test.mean if trial.test else None, trial.test),
                str(trial.seeds),
                _short_status(trial) if short_status else format_status(trial.status, len(trial.search.epochs)),
                str(len(trial.search.epochs)),
                format_duration(trial.seconds),
                *(all_settings[setting] for setting in settings),
            )
        )
    first = ("rank", "trial", "strategy", *_objective_columns(results))
    return Table((*first, "validation", "test", "seeds", "status", "epochs", "time", *settings), tuple(rows))


def _short_status(trial: RankedTrial) -> str:
    return "stopped" if trial.status == "pruned" else trial.status


def _settings(trial: RankedTrial) -> dict[str, str]:
    recipe = trial.search.recipe
    clip_norm = recipe["clip_norm"]
    return {
        "strategy": format_choice(recipe["strategy"]),
        "clip norm": "none" if clip_norm is None else format_setting(clip_norm),
        "backbone": format_choice({"name": recipe["backbone"], **recipe["backbone_args"]}),
        **{
            choice: format_choice(recipe[choice])
            for choice in ("optimizer", "schedule", "augmentation", "mixing", "loss")
        },
        **{
            name.replace("_", " "): format_setting(recipe[name])
            for name in ("learning_rate", "weight_decay", "batch_size")
        },
        **_with_spaces(rare_settings(recipe)),
    }


def _with_spaces(settings: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", " "): value for name, value in settings.items()}


def format_accuracy_interval(accuracy: float | None, estimate: Estimate | None) -> str:
    """Format an accuracy with its 95% interval, if there is one.

    >>> format_accuracy_interval(0.915, Estimate(0.915, 0.86, 0.95, images=153, seeds=3))
    '91.5% (86.0 to 95.0)'
    """
    if estimate is None:
        return format_percent(accuracy)
    return f"{format_percent(accuracy)} ({format_interval(estimate.low, estimate.high)})"
