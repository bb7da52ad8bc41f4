"""What the sweep found, in sentences, with everything that speaks against it."""

from __future__ import annotations

from collections import Counter

from sweeps.reporting.cost import COST_COVERAGE_NOTE, describe_cost
from sweeps.reporting.formatting import (
    describe_recipe,
    escape_control_characters,
    format_choice,
    format_estimate,
    format_objective,
    format_percent,
    format_setting,
    join_words,
    pluralize,
)
from sweeps.reporting.ranking import ranked_trials, tally_by_strategy
from sweeps.reporting.results import RankedTrial, Results
from xfer.objectives import ACCURACY


def headline(results: Results) -> str:
    """The answer in one sentence of plain text."""
    trials = ranked_trials(results)
    if not trials:
        return "No trial has ended yet."
    best = trials[0]
    if not (best.is_finalist or best.status == "finished"):
        ends = Counter(trial.status for trial in trials)
        counts = [f"{pluralize(ends[end], 'trial')} {end}" for end in ("pruned", "failed") if ends[end]]
        return f"No trial finished, so there is nothing to rank: {join_words(counts)}."

    recipe = best.search.recipe
    winner = (
        f"{format_choice(recipe['strategy'])} on {escape_control_characters(recipe['backbone'])} with {format_choice(recipe['optimizer'])}"
        f" at learning rate {format_setting(recipe['learning_rate'])} (trial {escape_control_characters(best.name)})"
    )
    if results.objective != ACCURACY:
        return _by_another_objective(results, best, winner)
    if best.validation is None:
        return f"Ahead is {winner}, with {format_percent(best.val_accuracy)} on the validation part."
    if best.test is None:
        return f"Ahead is {winner}, with {format_estimate(best.validation)} on the validation part."
    return (
        f"Best is {winner}: {format_estimate(best.test)} on the test part, after {format_estimate(best.validation)}"
        " on the validation part, which it was chosen on."
    )


def _by_another_objective(results: Results, best: RankedTrial, winner: str) -> str:
    objective = results.objective
    reached = format_objective(objective, best.value(objective))
    ahead = "Ahead" if best.test is None else "Best"
    said = f"{ahead} in {objective.label}, with {reached} on the validation part, is {winner}"
    if best.validation is None:
        return f"{said}; its accuracy there is {format_percent(best.val_accuracy)}."
    if best.test is None:
        return f"{said}; its accuracy there is {format_estimate(best.validation)}."
    on_test = best.test_value(objective)
    also = "" if on_test is None else f"On the test part that is {format_objective(objective, on_test)}, and "
    return (
        f"{said}. {also or 'On the test part '}its accuracy {format_estimate(best.test)}, after {format_estimate(best.validation)} on"
        " the validation part."
    )


def pareto_sentence(results: Results) -> str | None:
    """One sentence on what no other trial beats in both objectives; None where there is only one."""
    if len(results.objectives) < 2:
        return None
    finished = [trial for trial in ranked_trials(results) if trial.status == "finished"]
    on_it = [trial for trial in finished if trial.name in results.pareto_front]
    first, second = results.objectives
    between = f"{first.label} and {second.label}"
    if not on_it:
        return f"No trial finished, so there is no Pareto front of {between}."
    points = [
        f"{escape_control_characters(trial.name)} ({format_objective(first, first.value(trial.search.epochs))}, "
        f"{format_objective(second, second.value(trial.search.epochs))})"
        for trial in on_it
    ]
    return (
        f"On the Pareto front of {between}, where no other search run is better in one without being worse in the "
        f"other, {'is' if len(on_it) == 1 else 'are'} {len(on_it)} of {pluralize(len(finished), 'finished trial')}: "
        f"{join_words(points)}."
    )


def strategy_comparison(results: Results) -> str | None:
    """One sentence on what every strategy reached, `scratch` among them; None if there is only one."""
    tallies = tally_by_strategy(results.trials)
    if len(tallies) < 2:
        return None
    objective = results.objective
    reached = [
        f"{escape_control_characters(t.strategy)} {format_objective(objective, t.best)}"
        for t in tallies
        if t.best is not None
    ]
    silent = [escape_control_characters(t.strategy) for t in tallies if t.best is None]
    without = f"no trial of {' or '.join(silent)} finished"
    if not reached:
        return None
    by = "" if objective == ACCURACY else f" by {objective.label}"
    sentence = f"Best single search run of each strategy{by} on the validation part: {join_words(reached)}"
    return f"{sentence}; {without}." if silent else f"{sentence}."


def caveats(results: Results) -> list[str]:
    """Why not to trust the headline further than it goes; each a sentence or two."""
    trials = [trial for trial in ranked_trials(results) if trial.is_finalist or trial.status == "finished"]
    said = []
    if trials:
        close = _too_close(trials) if results.objective == ACCURACY else _too_close_over_seeds(trials)
        said += [*close, *_better_on_test(trials), *_thin_evidence(trials[0])]
        if trials[0].test is None:
            said.append("The test part has not been opened: the validation part, which chose, is all there is so far.")
    if len(results.openings) > 1:
        said.append(
            f"The test part was opened {len(results.openings)} times, so it is no longer untouched: whatever was "
            "changed after the first look may have been fitted to it."
        )
    if results.unfinished:
        names = ", ".join(escape_control_characters(name) for name in results.unfinished[:10])
        more = ", ..." if len(results.unfinished) > 10 else ""
        said.append(f"{pluralize(len(results.unfinished), 'trial')} begun and not ended yet: {names}{more}.")
    return said


def winning_recipe(results: Results) -> str | None:
    """The whole recipe of the best trial; None if no trial finished."""
    best = next(iter(ranked_trials(results)), None)
    if best is None or not (best.is_finalist or best.status == "finished"):
        return None
    return describe_recipe(best.search.recipe)


def cost_sentence(results: Results) -> str | None:
    """One sentence on what it cost, and on which machines; None where no price is known."""
    spent = describe_cost(results.spending)
    return None if spent is None else f"It cost {spent}."


def how_to_read(results: Results) -> list[str]:
    """What was chosen on what, when the test part was opened, and what an interval means."""
    by = results.objective.label
    chosen = f"The search chose by {by} on the validation part. The best of many validation results is partly luck"
    if any(trial.is_finalist for trial in results.trials):
        chosen += ", so the best few were trained again as finalists on new seeds and ranked by the mean of those runs"
        if results.plan["data"]["redraws"]:
            chosen += (
                ". Each seed also drew the validation part anew, the same draw for every finalist, so that the choice "
                "rests on more images than one split holds"
            )
    return [
        f"{chosen}.",
        *_warm_start(results),
        _opened(results),
        "An interval is meant to hold, in 95 of 100 such sweeps, the accuracy the recipe would reach with other seeds "
        "on other images from the same source. Runs that saw the same images are not counted as new images. With one "
        "seed it covers the chance of the images only. It does not cover images from elsewhere, nor, on the validation "
        "part, the luck of having been chosen.",
        f"Finalists come first in the ranking, in that order, then the other finished trials by the {by} of their one "
        "run on the validation part, then pruned and failed ones by how far they got.",
        *_on_two_objectives(results),
        *([COST_COVERAGE_NOTE] if cost_sentence(results) else []),
    ]


def _warm_start(results: Results) -> list[str]:
    warm = results.plan.get("warm_start")
    if not warm:
        return []
    sources = [
        f"{escape_control_characters(each['sweep'])} (distance {each['distance']:.2f})" for each in warm.get("from", [])
    ]
    if not sources:
        return ["A warm start was asked for, but no earlier sweep in the storage had data that look alike."]
    count = pluralize(len(warm["params"]), "recipe")
    return [
        f"The search began with {count} taken from {join_words(sources)}, earlier sweeps on data that look alike, by their "
        "validation scores: what they know of those data is part of the result."
    ]


def _on_two_objectives(results: Results) -> list[str]:
    if len(results.objectives) < 2:
        return []
    first, second = results.objectives
    said = (
        f"The search looked for recipes that no other beats in both {first.label} and {second.label}. Finalists were "
        f"taken from those first, but trials were stopped early, and finalists are ranked, by {first.label} alone"
    )
    cheap = ", so a recipe that gains less and costs less may have been stopped" if second.unit == "seconds" else ""
    return [f"{said}{cheap}."]


def _opened(results: Results) -> str:
    if not results.openings:
        return "The test part has not been opened."
    times = [
        f"at {escape_control_characters(opening['at'])} for {join_words([escape_control_characters(name) for name in opening['finalists']])}"
        for opening in results.openings
    ]
    once = "once" if len(times) == 1 else f"{len(times)} times"
    return f"The test part was opened {once}, after the finalists' order was fixed: {'; '.join(times)}."


def _too_close(trials: list[RankedTrial]) -> list[str]:
    first, *others = trials
    if not others or first.is_finalist != others[0].is_finalist:
        return []
    second = others[0]
    pairs = {"test": (first.test, second.test), "validation": (first.validation, second.validation)}
    for part, (one, other) in pairs.items():
        if one and other:
            overlap = (
                f"On the {part} part the intervals of the first two, {escape_control_characters(first.name)} and {escape_control_characters(second.name)}, "
                "overlap: which of them is better is not settled."
            )
            return [overlap] if one.overlaps(other) else []
    return []


def _too_close_over_seeds(trials: list[RankedTrial]) -> list[str]:
    """An interval is known for accuracies only; of anything else there is the spread over seeds."""
    first, *others = trials
    objective = first.objectives[0]
    known = f"Intervals are given for accuracy only; for {objective.label} there is the spread over seeds."
    if not others or first.is_finalist != others[0].is_finalist:
        return [known]
    spreads = [
        [value for record in trial.finals if (value := objective.value(record.epochs)) is not None]
        for trial in (first, others[0])
    ]
    if not all(len(values) > 1 for values in spreads):
        return [known]
    (low, high), (other_low, other_high) = ((min(values), max(values)) for values in spreads)
    if low > other_high or other_low > high:
        return [known]
    return [
        f"{known} Over their seeds the first two, {escape_control_characters(first.name)} ({format_objective(objective, low)} to "
        f"{format_objective(objective, high)}) and {escape_control_characters(others[0].name)} ({format_objective(objective, other_low)} to "
        f"{format_objective(objective, other_high)}), overlap: which of them is better is not settled."
    ]


def _better_on_test(trials: list[RankedTrial]) -> list[str]:
    first, *others = trials
    objective = first.objectives[0]
    own = first.test_value(objective)
    tested = [
        (objective.to_score(value), trial.name)
        for trial in others
        if (value := trial.test_value(objective)) is not None
    ]
    if not tested or own is None or max(tested)[0] <= objective.to_score(own):
        return []
    score, name = max(tested)
    reached = format_objective(objective, objective.to_score(score))
    came_out = "higher" if objective.higher_is_better else "lower, which is better"
    return [
        f"On the test part finalist {escape_control_characters(name)} came out {came_out}, at {reached}. The order stays as it was "
        "fixed on the validation part: choosing by the test part would flatter whoever was chosen."
    ]


def _thin_evidence(best: RankedTrial) -> list[str]:
    if best.seeds > 1:
        return []
    return ["The best recipe was run on one seed only, so how much another seed would change is unknown."]
