"""Tables of text for a person: the ranking, the strategies, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.reporting.formatting import (
    escape_control_characters,
    format_choice,
    format_duration,
    format_objective,
    format_percent,
    format_setting,
    rare_settings,
    truncate,
)
from sweeps.reporting.ranking import ranked_trials, tally_by_strategy
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import Estimate
from xfer.objectives import ACCURACY, OBJECTIVES


@dataclass(frozen=True)
class Table:
    """Cells of plain text, harmless to print; escape them for HTML or Markdown."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def select_columns(self, *columns: str) -> Table:
        """The same table with some of its columns, in the order given."""
        places = [self.header.index(column) for column in columns]
        return Table(columns, tuple(tuple(row[place] for place in places) for row in self.rows))


def summary_table(results: Results, top: int = 10) -> Table:
    """The first rows of the ranking, narrow enough for a terminal."""
    table = _ranking(results, ranked_trials(results)[:top], ())
    return table.select_columns(
        "rank", "trial", "strategy", "status", *_objective_columns(results), "validation", "test"
    )


def ranking_table(results: Results, top: int | None = None) -> Table:
    """The ranking with a column for each setting that is not the same in all trials.

    `validation` and `test` are accuracies, whatever was searched for.
    """
    same = _shared_settings(results)
    trials = ranked_trials(results)
    differing = [setting for trial in trials[:1] for setting in _settings(trial) if setting not in {*same, "strategy"}]
    return _ranking(results, trials[:top], differing)


def common_settings(results: Results) -> dict[str, str]:
    """The settings that all trials share, and their values: what a table need not repeat in every row.

    Rare settings are left out where they are as usual.
    """
    usual = _with_spaces(rare_settings({}))
    return {setting: value for setting, value in _shared_settings(results).items() if usual.get(setting) != value}


def _shared_settings(results: Results) -> dict[str, str]:
    columns = [_settings(trial) for trial in results.trials]
    return {
        setting: value
        for setting, value in (columns[0] if columns else {}).items()
        if all(column[setting] == value for column in columns)
    }


def strategies_table(results: Results) -> Table:
    """How many trials each strategy had and what they came to, in the search and on its validation part.

    Best and median are of the objective that decides; where that is not accuracy, the best accuracy stands beside it.
    """
    objective = results.objective
    beside = objective != ACCURACY
    return Table(
        ("strategy", "trials", "finished", "best", "median", *(("best accuracy",) * beside), "pruned", "failed"),
        tuple(
            (
                escape_control_characters(tally.strategy),
                str(len(tally.trials)),
                str(tally.counts["finished"]),
                format_objective(objective, tally.best),
                format_objective(objective, tally.median_value),
                *((format_percent(max(tally.accuracies, default=None)),) * beside),
                str(tally.counts["pruned"]),
                str(tally.counts["failed"]),
            )
            for tally in tally_by_strategy(results.trials)
        ),
    )


def failures_table(results: Results) -> Table:
    """Every run that failed, whatever it was for, with its reason."""
    failed = sorted((record for record in results.records if record.status == "failed"), key=lambda r: r.trial)
    return Table(
        ("trial", "strategy", "epochs", "reason"),
        tuple(
            (
                escape_control_characters(record.trial),
                format_choice(record.recipe["strategy"]),
                str(len(record.epochs)),
                truncate(escape_control_characters(record.error or "no reason was recorded"), 300),
            )
            for record in failed
        ),
    )


def _objective_columns(results: Results) -> tuple[str, ...]:
    """A column for each objective that has none yet, and for two of them whether a trial is on the front."""
    labels = [each.label for each in results.objectives if each not in (ACCURACY, OBJECTIVES["seconds"])]
    return (*labels, *(("front",) if results.objectives[1:] else ()))


def _ranking(results: Results, trials: Sequence[RankedTrial], settings: Sequence[str]) -> Table:
    """What was reached stands before the settings, so that no screen is too narrow to show it."""
    rows = []
    for rank, trial in enumerate(trials, start=1):
        chosen = _settings(trial)
        reached = {each.label: format_objective(each, trial.value(each)) for each in results.objectives}
        reached["front"] = "yes" if trial.name in results.pareto_front else ""
        rows.append(
            (
                str(rank),
                escape_control_characters(trial.name),
                chosen["strategy"],
                *(reached[column] for column in _objective_columns(results)),
                format_accuracy_interval(trial.val_accuracy, trial.validation),
                format_accuracy_interval(trial.test.mean if trial.test else None, trial.test),
                str(trial.seeds),
                trial.status,
                str(len(trial.search.epochs)),
                format_duration(trial.seconds),
                *(chosen[setting] for setting in settings),
            )
        )
    first = ("rank", "trial", "strategy", *_objective_columns(results))
    return Table((*first, "validation", "test", "seeds", "status", "epochs", "time", *settings), tuple(rows))


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
    """An accuracy as a percentage, and behind it its 95% interval where there is one."""
    if estimate is None:
        return format_percent(accuracy)
    return f"{format_percent(accuracy)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
