"""State in sentences which finalist is the best, how certain that is, and what would settle the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sweeps.reporting.finals import FinalsComparison, compare_finalists, control_key, margin
from sweeps.reporting.formatting import (
    escape_control_characters,
    format_duration,
    format_percent,
    format_percentage_points,
    join_words,
    pluralize,
)
from sweeps.reporting.ranking import ranked_finalists
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import Difference, Outlook, difference, outlook


def verdict(results: Results) -> str | None:
    """State which finalist is better than the others, or which ones are tied and what the cheapest of them is.

    Returns:
        None if fewer than two finalists can be compared, or if the sweep does not rank by accuracy.
    """
    comparison = compare_finalists(results, ranked_finalists(results))
    if comparison is None:
        return None
    if len(comparison.tied) == 1:
        return _single_best(results, comparison, comparison.tied[0])
    tied = comparison.tied
    cheapest = min(tied, key=lambda trial: trial.seconds)
    every = "all" if len(tied) == len(comparison.trials) else f"{len(tied)} of {len(comparison.trials)}"
    sentence = (
        f"Tied on the {comparison.split} set: {join_words([_name(trial) for trial in tied])} ({every} finalists). Any "
        f"of them may be the best; the cheapest is {_name(cheapest)} ({_strategy(cheapest)}, "
        f"{format_duration(cheapest.seconds)} for all of its runs)."
    )
    if all(comparison.by_name[trial.name].within_margin for trial in tied):
        return f"{sentence} None of them is worse than the best by more than {_points(margin(results))} points."
    return f"{sentence} {_undecided(comparison)}"


def answer(results: Results) -> str | None:
    """State in one or two short sentences which finalist is the best, or which are tied, by their strategies.

    Returns:
        None if fewer than two finalists can be compared, or if the sweep does not rank by accuracy.
    """
    comparison = compare_finalists(results, ranked_finalists(results))
    if comparison is None:
        return None
    tied, names = comparison.tied, short_names(comparison.trials)
    if len(tied) == 1:
        best, to_best = tied[0], comparison.by_name[tied[0].name]
        sentence = (
            f"{names[best.name]} is the best: {_points(to_best.mean)} points ({_points(to_best.low)} to "
            f"{_points(to_best.high)}) better than the next finalist, with a probability of "
            f"{_probability(to_best.probability)}."
        )
        first = comparison.trials[0]
        return sentence if best is first else f"{sentence} On validation, {names[first.name]} was first."
    cheapest = min(tied, key=lambda trial: trial.seconds)
    sentence = f"Tied: {join_words([names[trial.name] for trial in tied])}. The cheapest is {names[cheapest.name]}."
    if all(comparison.by_name[trial.name].within_margin for trial in tied):
        return f"{sentence} None of them is worse than the best by more than {_points(margin(results))} points."
    return sentence


def is_it_enough(results: Results) -> str | None:
    """State what would settle the order of the first two that are tied, or how small a difference was decided.

    Returns:
        None if fewer than two finalists can be compared, or if the sweep does not rank by accuracy.
    """
    comparison = compare_finalists(results, ranked_finalists(results))
    if comparison is None:
        return None
    if len(comparison.tied) > 1:
        if all(comparison.by_name[trial.name].within_margin for trial in comparison.tied):
            return f"Enough to tell that what is tied differs by at most {_points(margin(results))} points."
        found, expected = _first_two(comparison)
        names, (first, second) = short_names(comparison.trials), comparison.tied[:2]
        return (
            f"Not decided: {names[first.name]} or {names[second.name]}, {_points(abs(found.mean))} points apart; these "
            f"finals find {_points(expected.detectable)} points in 80% of cases. "
            f"{_settling(found, comparison.split, expected.images, expected.seeds)}"
        )
    best = comparison.tied[0]
    others = [trial for trial in comparison.trials if trial is not best]
    index = {trial.name: i for i, trial in enumerate(comparison.trials)}
    second = max(others, key=lambda trial: comparison.by_name[trial.name].mean)
    expected = outlook(comparison.correct[index[best.name]], comparison.correct[index[second.name]])
    return f"Enough: finals like these find a difference of {_points(expected.detectable)} points in 80% of cases."


def short_names(trials: Sequence[RankedTrial]) -> dict[str, str]:
    """Return the strategy of each trial, by the trial's name; with the name if several have that strategy."""
    counts = Counter(trial.strategy for trial in trials)
    return {
        trial.name: _strategy(trial) if counts[trial.strategy] == 1 else f"{_strategy(trial)} {_name(trial)}"
        for trial in trials
    }


def gain_over_control(results: Results) -> str | None:
    """State by how much the first finalist is better than the control, the recipe that the search started with.

    Returns:
        None if the control is the first finalist, or if the two cannot be compared.
    """
    comparison = compare_finalists(results, ranked_finalists(results))
    if comparison is None:
        return None
    first, key = comparison.trials[0], control_key(results)
    control = next((i for i, trial in enumerate(comparison.trials) if trial.search.key == key), 0)
    if control == 0:
        return None
    found = difference(comparison.correct[0], comparison.correct[control])
    direction = "better" if found.mean >= 0 else "worse"
    sign = 1 if found.mean >= 0 else -1
    low, high = sorted((sign * found.low, sign * found.high))
    return (
        f"{_name(first)} is {direction} than the control, {_name(comparison.trials[control])}, by "
        f"{_points(abs(found.mean))} points on the {comparison.split} set (95% interval {_points(low)} to "
        f"{_points(high)}; probability of being better {_probability(found.probability)})."
    )


def optimism(results: Results) -> str | None:
    """Compare the accuracies of the winner on the validation set, by which it was chosen, with that on the test set.

    Returns:
        None before the test set is used.
    """
    winner = next(iter(ranked_finalists(results)), None)
    if winner is None or winner.test is None or winner.val_accuracy is None:
        return None
    search = (
        "" if winner.search_accuracy is None else f"{format_percent(winner.search_accuracy)} in its search run, then "
    )
    return (
        f"Accuracy of {_name(winner)} when it was chosen and afterwards: {search}{format_percent(winner.val_accuracy)} "
        f"in the final runs on the validation set, and {format_percent(winner.test.mean)} on the test set. Optimism "
        f"(validation minus test): {format_percentage_points(winner.val_accuracy - winner.test.mean)} points."
    )


def _single_best(results: Results, comparison: FinalsComparison, best: RankedTrial) -> str:
    to_best = comparison.by_name[best.name]
    sentence = (
        f"{_name(best)} ({_strategy(best)}) is better than the best of the other finalists by "
        f"{_points(to_best.mean)} points on the {comparison.split} set (95% interval {_points(to_best.low)} to "
        f"{_points(to_best.high)}), with a probability of {_probability(to_best.probability)} of being the best."
    )
    first = comparison.trials[0]
    if best is not first:
        sentence += f" The ranking still begins with {_name(first)}, which was first on the validation set."
    cheaper = [
        trial
        for trial in comparison.trials
        if trial is not best and comparison.by_name[trial.name].within_margin and trial.seconds < best.seconds
    ]
    if cheaper:
        cheapest = min(cheaper, key=lambda trial: trial.seconds)
        sentence += (
            f" {_name(cheapest)} is cheaper ({format_duration(cheapest.seconds)} instead of "
            f"{format_duration(best.seconds)}) and worse by at most {_points(margin(results))} points."
        )
    return sentence


def _undecided(comparison: FinalsComparison) -> str:
    """State what the finals could find, and what would settle the first two of those that are tied."""
    found, expected = _first_two(comparison)
    names = " and ".join(_name(trial) for trial in comparison.tied[:2])
    sentence = (
        f"Finals like these find a difference of {_points(expected.detectable)} points between {names} in 80% of "
        f"cases; the measured one is {_points(abs(found.mean))}"
    )
    return f"{sentence}. {_settling(found, comparison.split, expected.images, expected.seeds)}"


def _first_two(comparison: FinalsComparison) -> tuple[Difference, Outlook]:
    """Return the difference of the first two of those that are tied, and what would settle it."""
    index = {trial.name: i for i, trial in enumerate(comparison.trials)}
    first, second = (comparison.correct[index[trial.name]] for trial in comparison.tied[:2])
    return difference(first, second), outlook(first, second)


def _settling(found: Difference, split: str, images: int | None, seeds: int | None) -> str:
    ways = []
    if images is not None and images > found.images:
        ways.append(f"about {images:,} {split} images instead of {found.images:,}")
    if seeds is not None and seeds > found.seeds:
        ways.append(f"{pluralize(seeds, 'seed')} instead of {found.seeds}")
    if not ways:
        return "Neither more images nor more seeds within reach would settle a difference of this size."
    return f"If it is real, {' or '.join(ways)} would settle it."


def _name(trial: RankedTrial) -> str:
    return escape_control_characters(trial.name)


def _strategy(trial: RankedTrial) -> str:
    return escape_control_characters(trial.strategy)


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _probability(value: float) -> str:
    return "over 99.9%" if value > 0.999 else format_percent(value)
