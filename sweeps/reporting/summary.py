"""Summarise a sweep in sentences: the result, its caveats, and how to read the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sweeps.reporting.class_accuracy import class_sentence
from sweeps.reporting.cost import COST_COVERAGE_NOTE, describe_cost
from sweeps.reporting.finals import compare_finalists
from sweeps.reporting.formatting import (
    describe_recipe,
    describe_strategy,
    escape_control_characters,
    explain_strategy,
    format_choice,
    format_estimate,
    format_objective,
    format_percent,
    format_setting,
    format_status,
    join_words,
    pluralize,
)
from sweeps.reporting.ranking import StrategyTally, ranked_finalists, ranked_trials, tally_by_strategy
from sweeps.reporting.results import RankedTrial, Results
from xfer.hyperparameters import FROZEN_HEADS
from xfer.objectives import ACCURACY
from xfer.records import Kept

MAX_LISTED_TRIALS = 10
"""Maximum number of unfinished trials listed by name."""
MAX_LISTED_STRATEGIES = 5
"""Maximum number of strategies of one kind that the comparison describes."""

KEPT_WEIGHTS: dict[Kept, str] = {
    "averaged": "the averaged weights",
    "last": "the last weights",
    "start": "the weights of the start",
}
"""What a run may keep, in words."""


def headline(results: Results) -> str:
    """State the best recipe and its accuracies in one or two sentences of plain text."""
    trials = ranked_trials(results)
    if not trials:
        return "No trial has ended yet."
    best = trials[0]
    if not (best.is_finalist or best.status == "finished"):
        counts = Counter(trial.status for trial in trials)
        parts = [
            f"{pluralize(counts[status], 'trial')} {format_status(status)}"
            for status in ("pruned", "failed")
            if counts[status]
        ]
        return f"No trial finished, so there is nothing to rank: {join_words(parts)}."

    recipe = best.search.recipe
    size = f" at {recipe['image_size']} px" if "image_size" in results.plan["space"] else ""
    winner = (
        f"{explain_strategy(recipe['strategy'])} on {escape_control_characters(recipe['backbone'])}{size} with "
        f"{format_choice(recipe['optimizer'])} at learning rate {format_setting(recipe['learning_rate'])} "
        f"(trial {escape_control_characters(best.name)})"
    )
    validation = format_estimate(best.validation) if best.validation else format_percent(best.val_accuracy)
    if results.objective != ACCURACY:
        return _headline_by_objective(results, best, winner, validation)
    mean = "mean accuracy of its final runs" if best.is_finalist else "accuracy of its single run"
    if best.test is None:
        return f"Best on validation is {winner}: {mean} {validation}."
    comparison = compare_finalists(results, ranked_finalists(results))
    is_tied = comparison is not None and len(comparison.tied) > 1
    best_is = "Tied for first place is" if is_tied else "Best is"
    return f"{best_is} {winner}: test accuracy {format_estimate(best.test)}. {_why_first(results)}: {validation}."


def _why_first(results: Results) -> str:
    """State by which number the winner is the winner."""
    finalists = pluralize(len(ranked_finalists(results)), "finalist")
    return f"It ranks first of {finalists} by mean validation {results.objective.label} over final runs"


def _headline_by_objective(results: Results, best: RankedTrial, winner: str, validation: str) -> str:
    objective = results.objective
    reached = f"{format_objective(objective, best.value(objective))} on the validation set"
    if best.test is None:
        return (
            f"Best on validation in {objective.label} is {winner}: {reached}. Its validation accuracy is {validation}."
        )
    test_value = best.test_value(objective)
    if test_value is not None:
        reached = f"{reached}, {format_objective(objective, test_value)} on the test set"
    return (
        f"Best in {objective.label} is {winner}: {reached}. Its test accuracy is {format_estimate(best.test)}, its "
        f"validation accuracy {validation}. {_why_first(results)}."
    )


def pareto_sentence(results: Results) -> str | None:
    """List the trials on the Pareto front in one sentence; None for a sweep with one objective."""
    if len(results.objectives) < 2:
        return None
    finished = [trial for trial in ranked_trials(results) if trial.status == "finished"]
    front = [trial for trial in finished if trial.name in results.pareto_front]
    first, second = results.objectives
    labels = f"{first.label} and {second.label}"
    if not front:
        return f"No trial finished, so there is no Pareto front of {labels}."
    points = [
        f"{escape_control_characters(trial.name)} ({format_objective(first, first.value(trial.search.epochs))}, "
        f"{format_objective(second, second.value(trial.search.epochs))})"
        for trial in front
    ]
    return (
        f"{len(front)} of {pluralize(len(finished), 'finished trial')} {'is' if len(front) == 1 else 'are'} on the "
        f"Pareto front of {labels} (no other search run is better in one without being worse in the other): "
        f"{join_words(points)}."
    )


def strategy_comparison(results: Results) -> str | None:
    """Compare the strategies in the order of the ranking; None if there is only one.

    Strategies with finalists are compared by final runs. The others ran once per recipe, which is stated apart: a
    single run is not comparable with a mean. The headline explains the winner's strategy, this sentence all others.
    """
    tallies, objective = tally_by_strategy(results), results.objective
    if len(tallies) < 2 or all(tally.representative is None for tally in tallies):
        return None
    winner = tallies[0].strategy

    def preview(items: list[str]) -> str:
        more = len(items) - MAX_LISTED_STRATEGIES
        return join_words(items if more <= 1 else [*items[:MAX_LISTED_STRATEGIES], f"{more} more"])

    def name(tally: StrategyTally, *reasons: str) -> str:
        details = [*reasons, *([] if tally.strategy == winner else [describe_strategy(tally.strategy)])]
        details = [detail for detail in details if detail]
        strategy = escape_control_characters(tally.strategy)
        return f"{strategy} ({'; '.join(details)})" if details else strategy

    finals = [
        f"{name(tally)} {format_objective(objective, tally.finalist.value(objective))}"
        for tally in tallies
        if tally.finalist
    ]
    single = [
        f"{name(tally)} {format_objective(objective, tally.representative.search_value)}"
        for tally in tallies
        if tally.representative and not tally.finalist
    ]
    without = [name(tally, tally.why_unfinished) for tally in tallies if tally.representative is None]
    sentences = []
    if len(finals) > 1:
        sentences.append(f"Mean validation {objective.label} of the best finalist, by strategy: {preview(finals)}.")
    if single and finals:
        luck = "the best of many single runs is partly luck"
        sentences.append(f"Run once per recipe and not ranked, because {luck}: {preview(single)}.")
    elif single:
        sentences.append(f"Best validation {objective.label} of a single run, by strategy: {preview(single)}.")
    if without:
        sentences.append(f"Without a finished run: {preview(without)}.")
    return " ".join(sentences)


def caveats(results: Results) -> list[str]:
    """List the limits of the headline, one or two sentences each."""
    finished = [trial for trial in ranked_trials(results) if trial.status == "finished"]
    trials = ranked_finalists(results) or finished
    sentences = []
    if trials:
        sentences += [] if results.objective == ACCURACY else _overlapping_seed_spreads(trials)
        sentences += [*_other_order_on_test(results), *_single_seed(trials[0]), *_incomplete_finals(results)]
        if trials[0].test is None:
            sentences.append(
                "Nothing has been evaluated on the test set yet: all results are on the validation set, which was also "
                "used for selection."
            )
    if len(results.openings) > 1:
        sentences.append(
            f"The test set was used {len(results.openings)} times, so it is no longer untouched: any change made after "
            "the first time may have been fitted to it."
        )
    if results.unfinished:
        names = ", ".join(escape_control_characters(name) for name in results.unfinished[:MAX_LISTED_TRIALS])
        more = ", ..." if len(results.unfinished) > MAX_LISTED_TRIALS else ""
        have = "has" if len(results.unfinished) == 1 else "have"
        sentences.append(f"{pluralize(len(results.unfinished), 'trial')} {have} started but not ended: {names}{more}.")
    return sentences


def winning_recipe(results: Results) -> str | None:
    """Describe the complete recipe of the best trial; None if no trial finished."""
    best = next(iter(ranked_trials(results)), None)
    if best is None or not (best.is_finalist or best.status == "finished"):
        return None
    return describe_recipe(best.search.recipe, results.steps(best.search))


def trial_length(plan: Mapping[str, Any]) -> str:
    """State how long a trial of a sweep is at most.

    >>> trial_length({"epochs": 8})
    'of up to 8 epochs'
    >>> trial_length({"lengths": {"batch size 16": "13 epochs, 312 steps", "batch size 32": "25 epochs, 300 steps"}})
    'of up to 13 epochs, 312 steps (batch size 16) or 25 epochs, 300 steps (batch size 32)'
    """
    if "lengths" not in plan:
        return f"of up to {pluralize(plan['epochs'], 'epoch')}"
    return "of up to " + " or ".join(f"{length} ({name})" for name, length in plan["lengths"].items())


def accuracy_by_class(results: Results) -> str | None:
    """State balanced accuracy and worst class of the best trial; None if there is none, or an older version ran it."""
    best = next(iter(ranked_trials(results)), None)
    if best is None or not (best.is_finalist or best.status == "finished"):
        return None
    return class_sentence(results, best)


def ranked_by(results: Results) -> str:
    """State by which number the ranking is ordered."""
    label = results.objective.label
    if ranked_finalists(results):
        return (
            f"Ranked by mean {label} on the validation set over the final runs. Test results are shown, but never "
            "change the order."
        )
    return f"Ranked by {label} on the validation set, of one search run each."


def image_counts(results: Results) -> str:
    """Count the images that were used in each set, and state limits on the number of training images."""
    data = results.plan["data"]
    limits = {trial.search.recipe.get("images_per_class") for trial in results.trials}
    numbers = [f"{limit:,}" for limit in sorted(limit for limit in limits if limit is not None)]
    limit = f" (at most {numbers[0]} per class)" if numbers else ""
    if len(limits) > 1:
        limit = f" (each trial used at most {' or '.join(numbers)} per class{', or all' * (None in limits)})"
    sizes = results.plan["space"].get("image_size", str(results.plan["image_size"])).split(", ")
    draws = ". Each seed of a finalist draws another validation set of this size" if data["redraws"] else ""
    return (
        f"{data['train']:,} training{limit}, {data['val']:,} validation and {data['test']:,} test images of "
        f"{join_words(sizes)} px{', one size in each trial' * (len(sizes) > 1)}{draws}"
    )


def cost_sentence(results: Results) -> str | None:
    """State the cost and the machines behind it in one sentence; None if no price is known."""
    cost = describe_cost(results.spending)
    return None if cost is None else f"The sweep cost {cost}."


def how_to_read(results: Results) -> list[str]:
    """Explain selection, use of the test set, intervals and ranking, one item per topic."""
    label = results.objective.label
    selection = (
        f"Trials were selected by {label} on the validation set. The best of many validation results is partly luck"
    )
    if any(trial.is_finalist for trial in results.trials):
        selection += (
            ", so the top trials were re-trained as finalists on new seeds and ranked by the mean of those runs"
        )
        if any(trial.strategy in FROZEN_HEADS for trial in ranked_finalists(results)):
            selection += ". The best head on frozen features is always a finalist: it is the cheapest baseline"
        if results.plan["data"]["redraws"]:
            selection += (
                ". Each seed also drew a new validation set, the same one for every finalist, so that the selection "
                "rests on more images than one split holds"
            )
    return [
        f"{selection}.",
        *_warm_start(results),
        _test_set_use(results),
        "A 95% interval is meant to contain, in 95 of 100 such sweeps, the accuracy that the recipe would reach with "
        "other seeds on other images from the same source. Repeated runs on the same images do not count as more "
        "images. With one seed, the interval covers only the sampling of images. It does not cover images from other "
        "sources, nor, on the validation set, the bias from selection.",
        *_shared_ranks(results),
        *_kept_weights(results),
        _ranking_order(results),
        *_two_objectives(results),
        *([COST_COVERAGE_NOTE] if cost_sentence(results) else []),
    ]


def _shared_ranks(results: Results) -> list[str]:
    if results.objective != ACCURACY or len(ranked_finalists(results)) < 2:
        return []
    return [
        "Finalists are compared by the difference of their answers on the same images and seeds, which is more certain "
        "than their separate intervals suggest. Those that are not shown to be worse than another one are tied with "
        "the best and share rank 1. In about 5 of 100 sweeps at most, a recipe that is not the best is called better "
        "than all others."
    ]


def _ranking_order(results: Results) -> str:
    label = results.objective.label
    search = (
        f"finished ones by the {label} of that run, then those that were stopped early (status pruned in ranking.csv) "
        "and failed ones by the number of epochs they completed"
    )
    if not ranked_finalists(results):
        return f"The ranking lists all trials, which ran once each: {search}."
    return (
        f"The ranking lists the finalists by the mean {label} of their final runs on the validation set. The other "
        "trials ran once, in the search, and are not ranked against them: the best of many single runs is partly luck. "
        f"They are listed by their search runs, finalists included: {search}. In ranking.csv they follow the finalists."
    )


def _warm_start(results: Results) -> list[str]:
    warm_start = results.plan.get("warm_start")
    if not warm_start:
        return []
    sources = [
        f"{escape_control_characters(source['sweep'])} (distance {source['distance']:.2f})"
        for source in warm_start.get("from", [])
    ]
    if not sources:
        return ["A warm start was requested, but no earlier sweep in the storage used similar data."]
    recipes = pluralize(len(warm_start["params"]), "recipe")
    return [
        f"The search started with {recipes} from earlier sweeps on similar data: {join_words(sources)}. "
        "Recipes were selected by validation score, so the result also draws on the data of those sweeps."
    ]


def _kept_weights(results: Results) -> list[str]:
    counts = Counter(record.kept for record in results.records if record.kept is not None)
    if not counts:
        return []
    runs = join_words([f"{words} in {counts[kept]}" for kept, words in KEPT_WEIGHTS.items() if counts[kept]])
    return [
        "A run that trains more than a head ends with the best on the validation set of its last weights, their moving "
        f"average, and its start; its validation metrics after the last epoch are theirs. Kept were {runs} of "
        f"{pluralize(counts.total(), 'run')}."
    ]


def _two_objectives(results: Results) -> list[str]:
    if len(results.objectives) < 2:
        return []
    first, second = results.objectives
    sentence = (
        f"The search looked for the Pareto front of {first.label} and {second.label}. Finalists were taken from the "
        f"front first, but early stopping and the ranking of the finalists used {first.label} alone"
    )
    cheaper = ", so a faster but slightly worse recipe may have been stopped early" if second.unit == "seconds" else ""
    return [f"{sentence}{cheaper}."]


def _test_set_use(results: Results) -> str:
    if not results.openings:
        return "The test set has not been used."
    uses = []
    for opening in results.openings:
        finalists = join_words([escape_control_characters(name) for name in opening["finalists"]])
        uses.append(f"at {escape_control_characters(opening['at'])} for {finalists}")
    times = "once" if len(uses) == 1 else f"{len(uses)} times"
    return f"The test set was used {times}, after the ranking of the finalists was fixed: {'; '.join(uses)}."


def _overlapping_seed_spreads(trials: list[RankedTrial]) -> list[str]:
    """Compare the top two by the range over seeds: intervals exist for accuracies only."""
    first, *others = trials
    objective = first.objectives[0]
    note = f"Intervals are given for accuracy only; for {objective.label}, compare the spread over seeds."
    if not others:
        return [note]
    top_two = (first, others[0])
    values = [
        [value for record in trial.finals if (value := objective.value(record.epochs)) is not None] for trial in top_two
    ]
    if not all(len(seed_values) > 1 for seed_values in values):
        return [note]
    ranges = [(min(seed_values), max(seed_values)) for seed_values in values]
    (low, high), (other_low, other_high) = ranges
    if low > other_high or other_low > high:
        return [note]
    spreads = [
        f"{escape_control_characters(trial.name)} ({format_objective(objective, lowest)} to "
        f"{format_objective(objective, highest)})"
        for trial, (lowest, highest) in zip(top_two, ranges, strict=True)
    ]
    return [f"{note} The spreads of the top two, {join_words(spreads)}, overlap: which one is better is not settled."]


def _other_order_on_test(results: Results) -> list[str]:
    """Say why the ranking is not the order by test results, if it is not."""
    objective = results.objective
    tested = [
        (trial, value) for trial in ranked_finalists(results) if (value := trial.test_value(objective)) is not None
    ]
    by_test = sorted(tested, key=lambda pair: -objective.to_score(pair[1]))
    if by_test == tested:
        return []
    order = [
        f"{escape_control_characters(trial.name)} ({format_objective(objective, value)})" for trial, value in by_test
    ]
    return [
        f"On the test set the order would be {join_words(order)}: the ranking stays as it was on the validation set, "
        "because choosing by test results would make them too optimistic."
    ]


def _incomplete_finals(results: Results) -> list[str]:
    """Name the finalists that have fewer final runs than planned: their means are not on equal terms."""
    planned = results.plan["seeds"]
    incomplete = []
    for trial in ranked_finalists(results):
        failed = sum(record.status == "failed" for record in trial.finals)
        if trial.seeds < planned:
            missing = f"{failed} failed" if failed else "the others have not ended"
            incomplete.append(f"{escape_control_characters(trial.name)} has {trial.seeds} of {planned} ({missing})")
    return [f"Not every finalist has all of its final runs: {join_words(incomplete)}."] if incomplete else []


def _single_seed(best: RankedTrial) -> list[str]:
    if best.seeds > 1:
        return []
    return ["The best recipe was run on one seed only, so its variation across seeds is unknown."]
