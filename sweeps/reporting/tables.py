"""Text tables for a reader: ranking, search runs, strategies, failed runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sweeps.reporting.class_accuracy import CLASS_COLUMNS, class_cells, search_classes, trial_classes
from sweeps.reporting.finals import compare_finalists, rank_numbers
from sweeps.reporting.formatting import (
    MISSING,
    describe_strategy,
    escape_control_characters,
    format_choice,
    format_duration,
    format_interval,
    format_objective,
    format_percent,
    format_setting,
    format_status,
    pluralize,
    rare_settings,
    truncate,
)
from sweeps.reporting.ranking import StrategyTally, ranked_finalists, tally_by_strategy, trials_by_search
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import Estimate
from xfer.objectives import ACCURACY, OBJECTIVES, Objective


@dataclass(frozen=True)
class Table:
    """Cells of plain text that are safe to print; escape them for HTML or Markdown."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """For each row, what its strategy does, to be shown next to the name; empty where a row above says it. No notes at
    all if the table has no strategies to explain."""

    def note(self, row: int, column: str) -> str:
        """Return the note for a cell: only the column `strategy` has one."""
        return self.notes[row] if self.notes and column == "strategy" else ""

    def select_columns(self, *columns: str) -> Table:
        """Return a table with these columns, in this order."""
        indices = [self.header.index(column) for column in columns]
        return Table(columns, tuple(tuple(row[index] for index in indices) for row in self.rows), self.notes)


def strategy_notes(strategies: Iterable[str]) -> tuple[str, ...]:
    """Return what the strategy of each row does; empty where a row above has the same strategy."""
    seen: set[str] = set()
    notes = []
    for strategy in strategies:
        notes.append("" if strategy in seen else describe_strategy(strategy))
        seen.add(strategy)
    return tuple(notes)


def summary_table(results: Results, top: int = 10) -> Table:
    """Top rows of the ranking, with few enough columns for a terminal."""
    table = ranking_table(results, top)
    shown = ("trial", "status") if "status" in table.header else ("trial",)
    accuracies = [column for column in ("validation", "test", "balanced") if column in table.header]
    return table.select_columns("rank", "strategy", *_objective_columns(results), *accuracies, *shown)


def ranking_table(results: Results, top: int | None = None) -> Table:
    """Ranking: of the finalists by their final runs, or of all trials by their search runs if there are no finals.

    Args:
        results: of the sweep.
        top: maximum number of rows; None for all.

    Returns:
        A table with a column for each setting that varies between trials. Its columns `validation` and `test` are
        accuracies, whatever the objective of the search. `balanced` and `worst class` are of the test set for tested
        finalists, else of the validation set.
    """
    if finalists := ranked_finalists(results):
        return _finalists(results, finalists[:top])
    return _ranked(_search_runs(results, trials_by_search(results)[:top]))


def search_table(results: Results) -> Table:
    """Every search run, best first, if there are finals; without finals the ranking has them, and there are no rows."""
    return _search_runs(results, trials_by_search(results) if ranked_finalists(results) else [])


def common_settings(results: Results) -> dict[str, str]:
    """Settings that are the same in all trials, without rare settings that have their default.

    The image size is left out too: the report gives it with the number of images.
    """
    defaults = {**_with_spaces(rare_settings({})), "image size": _shared_settings(results).get("image size")}
    return {setting: value for setting, value in _shared_settings(results).items() if defaults.get(setting) != value}


def _shared_settings(results: Results) -> dict[str, str]:
    settings = [_settings(trial) for trial in results.trials]
    return {
        setting: value
        for setting, value in (settings[0] if settings else {}).items()
        if all(other[setting] == value for other in settings)
    }


def strategies_table(results: Results) -> Table:
    """Count the trials of each strategy and summarise their values on the validation set, in the order of the ranking.

    All values are of the deciding objective: `finals` is the mean of the best finalist's final runs, best and median
    are of finished search runs. If the objective is not accuracy, a column with the best accuracy of a search run is
    added.
    """
    objective, tallies = results.objective, tally_by_strategy(results)
    show_accuracy, has_finals = objective != ACCURACY, any(tally.finalist for tally in tallies)
    return Table(
        (
            *("strategy", *(("finals",) * has_finals), "trials", "finished", "best", "median"),
            *(("best accuracy",) * show_accuracy),
            *(format_status("pruned"), format_status("failed"), "description"),
        ),
        tuple(
            (
                escape_control_characters(tally.strategy),
                *((_final_value(tally, objective),) * has_finals),
                str(len(tally.trials)),
                str(tally.counts["finished"]),
                format_objective(objective, tally.best),
                format_objective(objective, tally.median_value),
                *((format_percent(max(tally.accuracies, default=None)),) * show_accuracy),
                str(tally.counts["pruned"]),
                str(tally.counts["failed"]),
                describe_strategy(tally.strategy),
            )
            for tally in tallies
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
        strategy_notes(str(record.recipe["strategy"]["name"]) for record in failed),
    )


def _objective_columns(results: Results) -> tuple[str, ...]:
    """Columns for objectives without a column of their own and, with two objectives, for the Pareto front."""
    has_column = (ACCURACY, OBJECTIVES["seconds"])
    labels = [objective.label for objective in results.objectives if objective not in has_column]
    return (*labels, *(("front",) if results.objectives[1:] else ()))


def _objective_cells(results: Results, trial: RankedTrial, read: Callable[[Objective], float | None]) -> list[str]:
    """Cells of `_objective_columns`; `read` returns the trial's value of an objective."""
    cells = {objective.label: format_objective(objective, read(objective)) for objective in results.objectives}
    cells["front"] = "yes" if trial.name in results.pareto_front else ""
    return [cells[column] for column in _objective_columns(results)]


def _finalists(results: Results, finalists: Sequence[RankedTrial]) -> Table:
    """Results come before settings, so that they are visible on a narrow screen."""
    settings, shows_kept = _varying_settings(results), any(trial.kept for trial in finalists)
    rows = [
        (
            _settings(trial)["strategy"],
            *_objective_cells(results, trial, trial.value),
            format_accuracy_interval(trial.val_accuracy, trial.validation),
            format_accuracy_interval(trial.test.mean if trial.test else None, trial.test),
            *class_cells(trial_classes(results, trial)),
            escape_control_characters(trial.name),
            _seeds_cell(results, trial),
            str(len(trial.search.epochs)),
            f"{results.steps(trial.search):,}",
            *((trial.kept or MISSING,) * shows_kept),
            format_duration(trial.seconds),
            *(_settings(trial)[setting] for setting in settings),
        )
        for trial in finalists
    ]
    accuracies = ("validation", "test", *CLASS_COLUMNS)
    columns = (*accuracies, "trial", "seeds", "epochs", "steps", *(("weights kept",) * shows_kept), "time")
    header = ("strategy", *_objective_columns(results), *columns)
    table = Table((*header, *settings), tuple(rows), strategy_notes(trial.strategy for trial in finalists))
    ranks = rank_numbers([trial.name for trial in finalists], compare_finalists(results, ranked_finalists(results)))
    return _ranked(_without_empty_columns(table), ranks)


def _search_runs(results: Results, trials: Sequence[RankedTrial]) -> Table:
    """Search runs alone: their values are of one run each, also those of finalists."""
    settings, shows_kept = _varying_settings(results), any(trial.search.kept for trial in trials)
    ranked = {trial.name for trial in ranked_finalists(results)}
    rows = [
        (
            _settings(trial)["strategy"],
            *_objective_cells(results, trial, trial.value_in_search),
            format_accuracy_interval(trial.search_accuracy, trial.search_validation),
            *class_cells(search_classes(results, trial), trial.value_in_search(OBJECTIVES["balanced_accuracy"])),
            escape_control_characters(trial.name),
            _status_cell(results, trial, trial.name in ranked),
            str(len(trial.search.epochs)),
            f"{results.steps(trial.search):,}",
            *((trial.search.kept or MISSING,) * shows_kept),
            format_duration(trial.search.seconds),
            *(_settings(trial)[setting] for setting in settings),
        )
        for trial in trials
    ]
    accuracies = ("validation", *CLASS_COLUMNS)
    columns = (*accuracies, "trial", "status", "epochs", "steps", *(("weights kept",) * shows_kept), "time")
    header = ("strategy", *_objective_columns(results), *columns)
    table = Table((*header, *settings), tuple(rows), strategy_notes(trial.strategy for trial in trials))
    return _without_empty_columns(table)


def _without_empty_columns(table: Table) -> Table:
    """Leave out those of `CLASS_COLUMNS` that no run has: older versions did not evaluate classes."""
    indices = [
        index
        for index, name in enumerate(table.header)
        if name not in CLASS_COLUMNS or any(row[index] != MISSING for row in table.rows)
    ]
    return Table(
        tuple(table.header[index] for index in indices),
        tuple(tuple(row[index] for index in indices) for row in table.rows),
        table.notes,
    )


def _ranked(table: Table, ranks: Sequence[int] | None = None) -> Table:
    """Number the rows, by `ranks` if some of them are shared."""
    rows = tuple((str(rank), *row) for rank, row in zip(ranks or itertools.count(1), table.rows, strict=False))
    return Table(("rank", *table.header), rows, table.notes)


def _seeds_cell(results: Results, trial: RankedTrial) -> str:
    planned = results.plan["seeds"]
    return str(trial.seeds) if trial.seeds >= planned else f"{trial.seeds} of {planned}"


def _status_cell(results: Results, trial: RankedTrial, is_ranked: bool) -> str:
    status = format_status(trial.status, len(trial.search.epochs))
    if is_ranked:
        return f"{status}, finalist"
    if trial.is_finalist:
        value = format_objective(results.objective, trial.value(results.objective))
        return f"{status}, not ranked: {value} in {pluralize(trial.seeds, 'final run')}"
    return status


def _final_value(tally: StrategyTally, objective: Objective) -> str:
    return MISSING if tally.finalist is None else format_objective(objective, tally.finalist.value(objective))


def _varying_settings(results: Results) -> list[str]:
    """Settings that differ between trials, the strategy left out because it has a column in any case."""
    shared = {*_shared_settings(results), "strategy"}
    return [setting for trial in results.trials[:1] for setting in _settings(trial) if setting not in shared]


def _settings(trial: RankedTrial) -> dict[str, str]:
    recipe = trial.search.recipe
    clip_norm = recipe["clip_norm"]
    return {
        "strategy": format_choice(recipe["strategy"]),
        "clip norm": "none" if clip_norm is None else format_setting(clip_norm),
        "backbone": format_choice({"name": recipe["backbone"], **recipe["backbone_args"]}),
        "image size": f"{recipe['image_size']} px",
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
