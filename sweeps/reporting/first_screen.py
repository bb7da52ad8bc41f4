"""First screen of a report: the answer, what the search gained and cost, whether it is enough, and how to use it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import pairwise

from sweeps.reporting.cost import total_usd
from sweeps.reporting.data_curve import twice_the_photos
from sweeps.reporting.finals import FinalsComparison, compare_finalists, control_key
from sweeps.reporting.formatting import (
    describe_strategy,
    escape_control_characters,
    format_duration,
    format_interval,
    format_percent,
    format_percentage_points,
    pluralize,
)
from sweeps.reporting.ranking import ranked_finalists, ranked_trials
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import Estimate, difference
from sweeps.reporting.verdict import answer, is_it_enough, short_names
from sweeps.reporting.zero_effort import best_rows

NO_TRAINING = "no training"
"""Role of a classifier on frozen features; those on another set than the first recipe say which."""
FROM_SCRATCH = ("scratch", "small_cnn")
"""Strategies that begin with random weights."""


@dataclass(frozen=True)
class Bar:
    """One row of the first screen: an accuracy with its interval, and what the winner gains over it."""

    name: str
    role: str
    """What it is in the comparison, and the set if it is another one than that of the winner; may be empty."""
    estimate: Estimate
    gain: str
    """Accuracy of the winner minus this one, with a 95% interval where both are paired; empty for the winner."""
    explanation: str = ""
    """What the strategy does."""
    is_tied: bool = False
    """Whether the recipe may be the best of the finalists."""


@dataclass(frozen=True)
class FirstScreen:
    """The first screen of a report. Every text is plain and safe to print; escape it for HTML or Markdown."""

    answer: str
    """Which finalist is the best, or which are tied; empty if no finalists can be compared."""
    split: str
    """Set behind the winner's accuracy: test or validation."""
    bars: tuple[Bar, ...]
    """The finalists in the order of the ranking, then what they are compared with; empty before the first result."""
    cost: str
    snapshot: str
    """How far a sweep is that has not ended; empty for one that has."""
    enough: str
    """What the finals could find, what would settle the rest, and what twice the photos would add; may be empty."""
    commands: tuple[tuple[str, str], ...]
    """Purpose and command line, for the network that the sweep has exported."""

    def position(self, value: float) -> float:
        """Return where an accuracy lies on the common axis of the bars, in percent of its length."""
        low, high = min(bar.estimate.low for bar in self.bars), max(bar.estimate.high for bar in self.bars)
        return round(100 * (value - low) / max(high - low, 1e-9), 1)


def first_screen(results: Results) -> FirstScreen:
    """Collect what a reader needs first, from results of any stage of a sweep."""
    ranked = ranked_finalists(results) or [trial for trial in ranked_trials(results) if trial.status == "finished"][:1]
    if not ranked:
        return FirstScreen("", "validation", (), _cost(results), snapshot_note(results), "", ())
    split = "validation" if ranked[0].test is None else "test"
    bars = (*_finalists(results, ranked, split), *_without_training(results, ranked[0], split))
    scratch = _from_scratch(results, ranked[0])
    return FirstScreen(
        " ".join(filter(None, [answer(results), _no_training_is_as_good(bars)])),
        split,
        (*bars, scratch) if scratch else bars,
        _cost(results),
        snapshot_note(results),
        " ".join(filter(None, [is_it_enough(results), twice_the_photos(results)])),
        _commands(results) if split == "test" else (),
    )


def snapshot_note(results: Results) -> str:
    """Return how far a sweep is that runs or was interrupted, so that a snapshot is not taken for the answer.

    A sweep has ended if its test set was opened; without finals, if the search has ended.
    """
    search = [record.status for record in results.records if record.phase == "search"]
    finals = sum(record.phase == "final" for record in results.records)
    searched, planned = len(search), results.plan["trials"]
    has_finals = results.plan["finalists"] > 0 and "finished" in search
    if not results.unfinished and (results.openings if has_finals else searched >= planned):
        return ""
    parts = [f"{searched} of {planned} search runs"]
    if finals or searched >= planned:
        parts.append(pluralize(finals, "final run"))
    opened = "the test set was opened" if results.openings else "the test set has not been opened"
    return f"A snapshot of a sweep that has not ended: {' and '.join(parts)} have ended, {opened}."


def _finalists(results: Results, ranked: list[RankedTrial], split: str) -> list[Bar]:
    comparison = compare_finalists(results, ranked)
    index = {} if comparison is None else {trial.name: i for i, trial in enumerate(comparison.trials)}
    tied = set() if comparison is None else {trial.name for trial in comparison.tied}
    names, first = short_names(ranked), ranked[0]
    bars = []
    for trial in ranked:
        estimate = trial.validation if split == "validation" else trial.test
        if estimate is None:
            continue
        gain = ""
        if trial is not first:
            gain = format_percentage_points(_mean(first, split) - estimate.mean)
            if comparison is not None and {first.name, trial.name} <= index.keys() and comparison.split == split:
                gain = _paired_gain(comparison, index[first.name], index[trial.name])
        role = "the control" if trial.search.key == control_key(results) else ""
        explanation = describe_strategy(trial.strategy)
        bars.append(Bar(names[trial.name], role, estimate, gain, explanation, trial.name in tied))
    return bars


def _mean(trial: RankedTrial, split: str) -> float:
    estimate = trial.validation if split == "validation" else trial.test
    assert estimate is not None, "the winner has an estimate on the set of the comparison"
    return estimate.mean


def _paired_gain(comparison: FinalsComparison, first: int, other: int) -> str:
    found = difference(comparison.correct[first], comparison.correct[other])
    low, high = format_percentage_points(found.low), format_percentage_points(found.high)
    return f"{format_percentage_points(found.mean)} ({low} to {high})"


def _without_training(results: Results, winner: RankedTrial, split: str) -> list[Bar]:
    """Return the best nearest-neighbour and logistic rows on frozen features."""
    bars = []
    for label, part, estimate in best_rows(results, split):
        of_winner = winner.test if part == "test" else winner.validation
        gain = "" if of_winner is None else format_percentage_points(of_winner.mean - estimate.mean)
        role = NO_TRAINING if part == split else f"{NO_TRAINING}, {part} set"
        bars.append(Bar(label, role, estimate, gain))
    return bars


def _no_training_is_as_good(bars: tuple[Bar, ...]) -> str:
    """Say so if a classifier on frozen features, without any training, does at least as well as the first recipe."""
    untrained = [bar for bar in bars if bar.role == NO_TRAINING]
    best = max(untrained, key=lambda bar: bar.estimate.mean, default=None)
    if best is None or best.estimate.mean < bars[0].estimate.mean:
        return ""
    accuracy = f"{format_percent(best.estimate.mean)} ({format_interval(best.estimate.low, best.estimate.high)})"
    return f"{best.name}, without any training, is at least as good here: {accuracy}."


def _from_scratch(results: Results, winner: RankedTrial) -> Bar | None:
    """Return the best single run from random weights, unless it is a finalist, which is listed already."""
    ranked = ranked_trials(results)
    finalists = {trial.name for trial in ranked if trial.is_finalist}
    runs = [
        trial
        for trial in ranked
        if trial.strategy in FROM_SCRATCH and trial.status == "finished" and trial.search_validation is not None
    ]
    if not runs or winner in runs or any(trial.name in finalists for trial in runs):
        return None
    best = max(runs, key=lambda trial: trial.search_accuracy or 0.0)
    assert best.search_validation is not None, "filtered above"
    gain = ""
    if winner.search_accuracy is not None and best.search_accuracy is not None:
        gain = format_percentage_points(winner.search_accuracy - best.search_accuracy)
    name = escape_control_characters(best.strategy)
    return Bar(name, "one run, validation set", best.search_validation, gain)


def _cost(results: Results) -> str:
    runs = [record for record in results.records if record.phase != "screen"]
    steps = sum(results.steps(record) or 0 for record in runs)
    parts = [pluralize(len(runs), "run"), f"{steps:,} training steps", f"{format_duration(results.seconds)} of runs"]
    dollars = total_usd(results.spending)
    return ", ".join([*parts, *([] if dollars is None else [f"${dollars:,.2f}"])])


def _commands(results: Results) -> tuple[tuple[str, str], ...]:
    plan = results.plan
    try:
        words = shlex.split(plan["provenance"]["command"])
    except ValueError:  # not a command line
        words = []
    storage = next((word for flag, word in pairwise(words) if flag == "--storage"), None)
    flag = "" if storage is None else f" --storage {shlex.quote(storage)}"
    name = shlex.quote(plan["name"])
    model = shlex.quote(f"{(storage or 'runs').rstrip('/')}/{plan['name']}/model")
    return (
        ("classify photos", f"python -m xfer predict --model {model} PHOTO ..."),
        ("train it again, and compare", f"python -m sweeps reproduce {name}{flag}"),
        ("browse all runs", f"python -m sweeps ui {name}{flag}"),
    )
