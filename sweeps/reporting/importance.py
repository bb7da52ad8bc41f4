"""Importance of every choice of the search, as the report shows it."""

from __future__ import annotations

from sweeps.reporting.formatting import escape_control_characters, format_percent, join_words, pluralize
from sweeps.reporting.results import Results
from sweeps.reporting.sections import Section
from sweeps.reporting.tables import Table

MIN_TRIALS = 10
"""Minimum number of finished trials from which importances are computed."""
MIN_TOP_TRIALS = 5
"""Minimum number of best trials, as Optuna recommends for PED-ANOVA."""
TOP_FRACTION = 0.1
"""Fraction of the finished trials that are the best ones, if that makes at least `MIN_TOP_TRIALS`."""

IMPORTANCE_CAPTION = (
    "Conditional PED-ANOVA (arXiv:2304.10255 and 2601.20800), computed by Optuna: how much the values of a choice "
    "differ between the best trials and all finished ones, as a part of the sum over all choices. For comparison, "
    "the results were exchanged at random between the same trials: 1.0 in the third column is what a choice without "
    "effect exceeds in one of 20 searches. Trials are the finished ones in which the choice existed."
)


def top_trials(finished: int) -> int:
    """Return how many of the finished trials count as the best ones.

    >>> top_trials(10), top_trials(200)
    (5, 20)
    """
    return max(MIN_TOP_TRIALS, round(TOP_FRACTION * finished))


def importance_sections(results: Results) -> list[Section]:
    """Show the importance of every choice; one sentence with the reason if the trials are too few.

    Returns:
        No section before the first trial has finished, and if nothing was chosen.
    """
    title, found = "Importance of every choice", results.importances
    finished = sum(trial.status == "finished" for trial in results.trials)
    if found is None:
        if not finished or finished >= MIN_TRIALS:  # the caller has not computed them, or there is nothing to choose
            return []
        reason = f"{pluralize(finished, 'trial')} finished, too few for importances ({MIN_TRIALS} are needed)."
        return [Section(title, (reason,))]
    names = [escape_control_characters(choice.choice) for choice in found.choices if choice.is_beyond_chance]
    beyond = (
        f"More than by chance, {join_words(names)} made the difference"
        if names
        else "No choice made more difference than chance explains"
    )
    trials = pluralize(found.finished, "finished trial")
    compared = f"all {trials}" if found.trials == found.finished else f"{found.trials:,} of {trials}"
    sentence = f"{beyond} between the best {found.top} and {compared}."
    rows = tuple(
        (
            escape_control_characters(choice.choice),
            format_percent(choice.share),
            f"{choice.times_chance:.1f}",
            f"{choice.trials:,}",
        )
        for choice in found.choices
    )
    table = Table(("choice", "importance", "times chance", "trials"), rows)
    return [Section(title, (sentence,), table=table, caption=IMPORTANCE_CAPTION)]
