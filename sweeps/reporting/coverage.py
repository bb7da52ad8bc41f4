"""Which parts of the search space the trials covered: best values at an edge, and combinations never tried."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeps.reporting.formatting import (
    MISSING,
    escape_control_characters,
    format_objective,
    format_setting,
    join_words,
    pluralize,
)
from sweeps.reporting.ranking import ranked_trials
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.sections import Section
from sweeps.reporting.tables import Table
from xfer.hyperparameters import CLOSED_FORM_HEADS

EDGE = 0.05
"""Part of a range, on its own scale, that counts as its edge."""
MIN_LISTED_NUMBERS = 3
"""Minimum number of listed numbers that have an edge, as in `batch_size: 16, 32, 64`."""

COVERAGE_CAPTION = (
    "Trials by strategy and optimizer: their number, and the best value of a finished search run on the validation "
    "set. Strategies whose head is fitted in closed form have no optimizer."
)
_RANGE = re.compile(r"(?P<low>[^.]\S*?)\.\.(?P<high>\S+?)(?P<log> log)?")


def coverage_sections(results: Results) -> list[Section]:
    """Say which settings of the best trial lie at an edge, and which combinations were never tried."""
    best = next(iter(ranked_trials(results)), None)
    if best is None or not (best.is_finalist or best.status == "finished"):
        return []
    sentences, table = [_edge_sentence(results, best)], _combinations(results)
    if table.rows:
        never = sum(cell == MISSING for row in table.rows for cell in row[1:])
        total = len(table.rows) * (len(table.header) - 1)
        sentences.append(
            f"Of {pluralize(total, 'combination')} of strategy and optimizer, {never or 'none'} "
            f"{'were' if never > 1 else 'was'} never tried."
        )
    caption = COVERAGE_CAPTION if table.rows else ""
    return [Section("What was searched", tuple(sentences), table=table, caption=caption)]


def settings_at_edge(results: Results, trial: RankedTrial) -> list[str]:
    """Describe every searched number of a trial that lies at an edge of its range."""
    found = []
    for name, value, text in _searched_numbers(results.plan["space"], trial.search.recipe):
        end = edge(value, text)
        if end:
            found.append(f"{name} {format_setting(value)} ({end} of {escape_control_characters(text)})")
    return found


def parse_range(text: str) -> tuple[float, float, bool] | None:
    """Return lower end, upper end and whether the scale is logarithmic of a range in plan.json; None for other axes.

    >>> parse_range("3e-05..0.01 log"), parse_range("1..3"), parse_range("16, 32, 64")
    ((3e-05, 0.01, True), (1.0, 3.0, False), None)
    """
    match = _RANGE.fullmatch(text)
    try:
        return (float(match["low"]), float(match["high"]), bool(match["log"])) if match else None
    except ValueError:  # names with two dots
        return None


def edge(value: float, text: str) -> str:
    """Return "low end" or "high end" if a value lies there in a distribution as plan.json describes it, else "".

    >>> edge(0.01, "3e-05..0.01 log"), edge(1e-3, "3e-05..0.01 log"), edge(16, "16, 32, 64"), edge(1, "1..3")
    ('high end', '', 'low end', 'low end')
    """
    if found := parse_range(text):
        low, high, log = found
        if log:
            if min(low, value) <= 0:
                return ""
            low, high, value = math.log(low), math.log(high), math.log(value)
        margin = EDGE * (high - low)
    else:
        try:
            numbers = [float(number) for number in text.split(", ")]
        except ValueError:  # names, or "none" among numbers
            return ""
        if len(numbers) < MIN_LISTED_NUMBERS:
            return ""
        low, high, margin = min(numbers), max(numbers), 0.0
    if low == high:
        return ""
    return "low end" if value <= low + margin else "high end" if value >= high - margin else ""


def _searched_numbers(space: Mapping[str, str], recipe: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Yield name, value and distribution of every axis of the space that has a number in a recipe."""
    entries = {
        value["name"]: value for value in recipe.values() if isinstance(value, Mapping) and "name" in value
    }  # by name; their parameters are axes
    closed_form = recipe["strategy"]["name"] in CLOSED_FORM_HEADS
    for axis, text in space.items():
        entry, _, parameter = axis.rpartition(".")
        if entry and entry not in entries:
            continue
        if parameter == "learning_rate" or not entry:
            value = None if closed_form else recipe.get(parameter)
        else:
            value = entries[entry].get(parameter)
        if isinstance(value, int | float) and not isinstance(value, bool):
            name = f"{entry} {parameter.replace('_', ' ')}".strip()
            yield escape_control_characters(name), value, text


def _edge_sentence(results: Results, best: RankedTrial) -> str:
    found = settings_at_edge(results, best)
    name = escape_control_characters(best.name)
    if not found:
        return f"No setting of the best trial, {name}, lies at an edge of its range."
    return (
        f"Of the best trial, {name}, {pluralize(len(found), 'setting')} {'lies' if len(found) == 1 else 'lie'} at an "
        f"edge of what was searched, so better values may lie beyond: {join_words(found)}. --vary AXIS=LOW..HIGH "
        f"searches further."
    )


def _combinations(results: Results) -> Table:
    """Tabulate the trials by strategy and optimizer; no rows if there is only one combination."""
    cells: dict[tuple[str, str], list[RankedTrial]] = defaultdict(list)
    for trial in results.trials:
        cells[trial.strategy, str(trial.search.recipe["optimizer"]["name"])].append(trial)
    space = results.plan["space"]
    tried = [strategy for strategy, _ in cells]
    strategies = [name for name in _listed(space.get("strategy", ""), tried) if name not in CLOSED_FORM_HEADS]
    optimizers = _listed(space.get("optimizer", ""), [optimizer for _, optimizer in cells])
    if len(strategies) * len(optimizers) < 2:
        return Table((), ())
    rows = [
        (
            escape_control_characters(strategy),
            *(_cell(results, cells.get((strategy, optimizer), [])) for optimizer in optimizers),
        )
        for strategy in strategies
    ]
    return Table(("strategy", *map(escape_control_characters, optimizers)), tuple(rows))


def _listed(text: str, tried: Sequence[str]) -> list[str]:
    """Return the names of an axis in plan.json, then those that were tried although it does not list them."""
    return [*dict.fromkeys([*filter(None, text.split(", ")), *tried])]


def _cell(results: Results, trials: Sequence[RankedTrial]) -> str:
    if not trials:
        return MISSING
    objective = results.objective
    values = [value for t in trials if t.status == "finished" and (value := t.search_value) is not None]
    best = max(values, key=objective.to_score, default=None)
    return f"{len(trials)}: {'none finished' if best is None else format_objective(objective, best)}"
