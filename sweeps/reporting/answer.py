"""What the sweep found, in sentences, with everything that speaks against it."""

from __future__ import annotations

from collections import Counter

from sweeps.reporting.ranking import by_strategy, ranked
from sweeps.reporting.results import Results, Trial
from sweeps.reporting.words import counted, describe, evidence, listed, number, percent, recipe_in_words, visible


def headline(results: Results) -> str:
    """The answer in one sentence of plain text."""
    trials = ranked(results)
    if not trials:
        return "No trial has ended yet."
    best = trials[0]
    if not (best.is_finalist or best.status == "finished"):
        ends = Counter(trial.status for trial in trials)
        counts = [f"{counted(ends[end], 'trial')} {end}" for end in ("pruned", "failed") if ends[end]]
        return f"No trial finished, so there is nothing to rank: {listed(counts)}."

    recipe = best.search.recipe
    winner = (
        f"{describe(recipe['strategy'])} on {visible(recipe['backbone'])} with {describe(recipe['optimizer'])}"
        f" at learning rate {number(recipe['learning_rate'])} (trial {visible(best.name)})"
    )
    if best.validation is None:
        return f"Ahead is {winner}, with {percent(best.val_accuracy)} on the validation part."
    if best.test is None:
        return f"Ahead is {winner}, with {evidence(best.validation)} on the validation part."
    return (
        f"Best is {winner}: {evidence(best.test)} on the test part, after {evidence(best.validation)}"
        " on the validation part, which it was chosen on."
    )


def comparison(results: Results) -> str | None:
    """One sentence on what every strategy reached, `scratch` among them; None if there is only one."""
    tallies = by_strategy(results.trials)
    if len(tallies) < 2:
        return None
    reached = [f"{visible(t.strategy)} {percent(t.best)}" for t in tallies if t.best is not None]
    silent = [visible(t.strategy) for t in tallies if t.best is None]
    without = f"no trial of {' or '.join(silent)} finished"
    if not reached:
        return None
    sentence = f"Best single search run of each strategy on the validation part: {listed(reached)}"
    return f"{sentence}; {without}." if silent else f"{sentence}."


def caveats(results: Results) -> list[str]:
    """Why not to trust the headline further than it goes; each a sentence or two."""
    trials = [trial for trial in ranked(results) if trial.is_finalist or trial.status == "finished"]
    said = []
    if trials:
        said += [*_too_close(trials), *_better_on_test(trials), *_thin_evidence(trials[0])]
        if trials[0].test is None:
            said.append("The test part has not been opened: the validation part, which chose, is all there is so far.")
    if len(results.openings) > 1:
        said.append(
            f"The test part was opened {len(results.openings)} times, so it is no longer untouched: whatever was "
            "changed after the first look may have been fitted to it."
        )
    if results.unfinished:
        names = ", ".join(visible(name) for name in results.unfinished[:10])
        more = ", ..." if len(results.unfinished) > 10 else ""
        said.append(f"{counted(len(results.unfinished), 'trial')} begun and not ended yet: {names}{more}.")
    return said


def winning_recipe(results: Results) -> str | None:
    """The whole recipe of the best trial; None if no trial finished."""
    best = next(iter(ranked(results)), None)
    if best is None or not (best.is_finalist or best.status == "finished"):
        return None
    return recipe_in_words(best.search.recipe)


def how_to_read(results: Results) -> list[str]:
    """What was chosen on what, when the test part was opened, and what an interval means."""
    chosen = "The search chose on the validation part. The highest of many validation results is partly luck"
    if any(trial.is_finalist for trial in results.trials):
        chosen += ", so the best few were trained again as finalists on new seeds and ranked by the mean of those runs"
        if results.plan["data"]["redraws"]:
            chosen += (
                ". Each seed also drew the validation part anew, the same draw for every finalist, so that the choice "
                "rests on more images than one split holds"
            )
    return [
        f"{chosen}.",
        _opened(results),
        "An interval is meant to hold, in 95 of 100 such sweeps, the accuracy the recipe would reach with other seeds "
        "on other images from the same source. Runs that saw the same images are not counted as new images. With one "
        "seed it covers the chance of the images only. It does not cover images from elsewhere, nor, on the validation "
        "part, the luck of having been chosen.",
        "Finalists come first in the ranking, in that order, then the other finished trials by the validation accuracy "
        "of their one run, then pruned and failed ones by how far they got.",
    ]


def _opened(results: Results) -> str:
    if not results.openings:
        return "The test part has not been opened."
    times = [
        f"at {visible(opening['at'])} for {listed([visible(name) for name in opening['finalists']])}"
        for opening in results.openings
    ]
    once = "once" if len(times) == 1 else f"{len(times)} times"
    return f"The test part was opened {once}, after the finalists' order was fixed: {'; '.join(times)}."


def _too_close(trials: list[Trial]) -> list[str]:
    first, *others = trials
    if not others or first.is_finalist != others[0].is_finalist:
        return []
    second = others[0]
    pairs = {"test": (first.test, second.test), "validation": (first.validation, second.validation)}
    for part, (one, other) in pairs.items():
        if one and other:
            overlap = (
                f"On the {part} part the intervals of the first two, {visible(first.name)} and {visible(second.name)}, "
                "overlap: which of them is better is not settled."
            )
            return [overlap] if one.overlaps(other) else []
    return []


def _better_on_test(trials: list[Trial]) -> list[str]:
    first, *others = trials
    tested = [(trial.test.mean, trial.name) for trial in others if trial.test]
    if not tested or first.test is None or max(tested)[0] <= first.test.mean:
        return []
    mean, name = max(tested)
    return [
        f"On the test part finalist {visible(name)} came out higher, at {percent(mean)}. The order stays as it was "
        "fixed on the validation part: choosing by the test part would flatter whoever was chosen."
    ]


def _thin_evidence(best: Trial) -> list[str]:
    if best.seeds > 1:
        return []
    return ["The best recipe was run on one seed only, so how much another seed would change is unknown."]
