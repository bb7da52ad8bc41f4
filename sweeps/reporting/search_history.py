"""How the search went: the best value so far, and whether early epochs predicted the last one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from sweeps.reporting.figures import ReportFigure
from sweeps.reporting.formatting import (
    escape_control_characters,
    format_duration,
    format_objective,
    pluralize,
)
from sweeps.reporting.plot_style import (
    INK,
    MUTED,
    SERIES,
    StrategyStyles,
    assign_strategy_styles,
    format_objective_axis,
    new_figure,
    plot_run,
    render_svg,
)
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.sections import Section
from xfer.measure.intervals import CONFIDENCE

MIN_CORRELATED_RUNS = 5
"""Minimum number of runs for a rank correlation."""
SAFE_CORRELATION = 0.5
"""Rank correlation above which stopping by early values is called safe, and below which it is not. At 0.5, the better
of two trials was also the better one early in two of three pairs."""

BEST_SO_FAR_CAPTION = (
    "Every search run in the order in which they were started; the time is that of all runs up to it, as if they had "
    "run one after another. The line is the best finished run so far. Hollow: stopped early or failed."
)
CORRELATION_CAPTION = (
    "Spearman's rank correlation of the value at a part of each run with its last value, over the finished search runs "
    "of several epochs, with its 95% interval (Bonett and Wright 2000). Runs that were stopped have no last value, so "
    "they do not count."
)


def history_sections(results: Results) -> list[Section]:
    """Show how the search went; no sections before two trials have finished."""
    finished = [trial for trial in results.trials if trial.status == "finished" and trial.search_value is not None]
    if len(finished) < 2:
        return []
    return [_best_so_far(results, finished), _early_stopping(results, finished)]


def _best_so_far(results: Results, finished: Sequence[RankedTrial]) -> Section:
    trials, objective = results.trials, results.objective
    best = max(finished, key=_last_score)  # the first of equals
    ends = list(accumulate(trial.search.seconds for trial in trials))
    number = trials.index(best)
    later = len(trials) - number - 1
    rest = (
        f"The {pluralize(later, 'trial')} after it took {format_duration(ends[-1] - ends[number])}; none was better."
        if later
        else "It was the last trial, so more trials may find a better one."
    )
    sentence = (
        f"The best search run, trial {escape_control_characters(best.name)} with "
        f"{format_objective(objective, best.search_value)}, was number {number + 1} of {len(trials)}, after "
        f"{format_duration(ends[number])} of {format_duration(ends[-1])} of run time. {rest}"
    )
    styles = assign_strategy_styles(trial.strategy for trial in trials)
    svg = render_svg(partial(_draw_best_so_far, results, styles, ends), salt="best_so_far")
    figure = svg and ReportFigure("best_so_far", "Best so far", BEST_SO_FAR_CAPTION, svg)
    return Section("Best so far", (sentence,), figure=figure or None)


def _draw_best_so_far(results: Results, styles: StrategyStyles, ends: Sequence[float]) -> Figure:
    figure, axes = new_figure(height=3.6)
    objective = results.objective
    scale, unit = (60.0, "minutes") if ends[-1] >= 120 else (1.0, "seconds")
    best: list[tuple[float, float]] = []
    for trial, end in zip(results.trials, ends, strict=True):
        value, is_finished = trial.search_value, trial.status == "finished"
        if value is None:
            continue
        plot_run(axes, end / scale, value, styles[trial.strategy], hollow=not is_finished, size=5)
        if is_finished and (not best or objective.to_score(value) > objective.to_score(best[-1][1])):
            best.append((end / scale, value))
    steps = [*best, (ends[-1] / scale, best[-1][1])]
    axes.step(
        [time for time, _ in steps], [value for _, value in steps], where="post", color=INK, linewidth=1.4, zorder=1
    )
    axes.set_xlim(0, 1.02 * ends[-1] / scale)
    axes.set_xlabel(f"run time in {unit}")
    format_objective_axis(axes.yaxis, objective, f"validation {objective.label}")
    return figure


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of the values after a fraction of each run with the last values."""

    epoch: int
    """Epoch of the longest run."""
    correlation: float
    low: float
    """Lower end of the 95% interval."""
    high: float


def rank_correlations(curves: Sequence[Sequence[float]]) -> list[RankCorrelation]:
    """Correlate the values after each epoch with the last ones; shorter runs at the same fraction of their epochs.

    Args:
        curves: score after each epoch of every run, at least `MIN_CORRELATED_RUNS` of them.

    Returns:
        One item for each epoch of the longest run but the last; none where all values are equal.
    """
    longest = max(map(len, curves))
    last = [curve[-1] for curve in curves]
    found = []
    for epoch in range(1, longest):
        early = [curve[math.ceil(epoch * len(curve) / longest) - 1] for curve in curves]
        if len(set(early)) == 1 or len(set(last)) == 1:
            continue
        correlation = float(stats.spearmanr(early, last).statistic)
        found.append(RankCorrelation(epoch, correlation, *_correlation_interval(correlation, len(curves))))
    return found


def _correlation_interval(correlation: float, count: int) -> tuple[float, float]:
    """95% interval of Spearman's correlation by Fisher's transformation with the variance of Bonett and Wright 2000."""
    bounded = min(max(correlation, -1 + 1e-9), 1 - 1e-9)
    error = math.sqrt((1 + bounded**2 / 2) / (count - 3)) * float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    centre = math.atanh(bounded)
    return math.tanh(centre - error), math.tanh(centre + error)


def _early_stopping(results: Results, finished: Sequence[RankedTrial]) -> Section:
    title, objective = "Was early stopping safe here?", results.objective
    stopped = [trial for trial in results.trials if trial.status == "pruned" and trial.search.epochs]
    all_scores = [objective.scores(trial.search.epochs) for trial in finished if len(trial.search.epochs) > 1]
    curves = [[score for score in scores if score is not None] for scores in all_scores if None not in scores]
    if len(curves) < MIN_CORRELATED_RUNS:
        reason = (
            f"{pluralize(len(curves), 'search run')} of several epochs finished, too few for a rank correlation of "
            f"early with last values ({MIN_CORRELATED_RUNS} are needed)."
        )
        return Section(title, (reason,))
    correlations = rank_correlations(curves)
    if not correlations:
        return Section(title, ("All finished runs have the same last value, so there is nothing to rank.",))
    svg = render_svg(partial(_draw_correlations, correlations), salt="early_stopping")
    figure = svg and ReportFigure("early_stopping", title, CORRELATION_CAPTION, svg)
    sentence = _stopping_sentence(stopped, correlations, max(map(len, curves)), len(curves))
    return Section(title, (sentence,), figure=figure or None)


def _stopping_sentence(
    stopped: Sequence[RankedTrial], correlations: Sequence[RankCorrelation], longest: int, runs: int
) -> str:
    """Say what the correlation was where the first trial was stopped; at half of the runs if none was."""
    fractions = [len(trial.search.epochs) / trial.search.recipe["epochs"] for trial in stopped]
    fraction = min(fractions, default=0.5)
    at = min(correlations, key=lambda found: abs(found.epoch / longest - fraction))
    lead = (
        f"{pluralize(len(stopped), 'trial')} {'was' if len(stopped) == 1 else 'were'} stopped early, the first after "
        f"{100 * fraction:.0f}% of its epochs."
        if stopped
        else "No trial was stopped early."
    )
    if at.low > SAFE_CORRELATION:
        verdict = f"early values predict the last ones, so stopping there {'was' if stopped else 'would be'} safe"
    elif at.high < SAFE_CORRELATION:
        verdict = (
            f"early values do not predict the last ones, so stopping there {'was' if stopped else 'would be'} unsafe"
        )
    else:
        verdict = "the runs are too few to tell whether stopping there is safe"
    return (
        f"{lead} After epoch {at.epoch} of {longest}, the rank correlation with the last value is {at.correlation:.2f} "
        f"(95% interval {at.low:.2f} to {at.high:.2f}; {pluralize(runs, 'run')}): {verdict}."
    )


def _draw_correlations(correlations: Sequence[RankCorrelation]) -> Figure:
    figure, axes = new_figure(height=3.2)
    epochs, lows, highs = zip(*((found.epoch, found.low, found.high) for found in correlations), strict=True)
    axes.vlines(epochs, lows, highs, color=SERIES[0], alpha=0.6)
    axes.plot(epochs, [found.correlation for found in correlations], "o-", color=SERIES[0], markersize=5, linewidth=1.4)
    axes.axhline(SAFE_CORRELATION, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_ylim(min(0.0, *lows) - 0.05, 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlabel("epoch of the longest runs")
    axes.set_ylabel("rank correlation")
    axes.grid(True, color=MUTED, alpha=0.25, linewidth=0.6)
    return figure


def _last_score(trial: RankedTrial) -> float:
    value = trial.search_value
    return -math.inf if value is None else trial.objectives[0].to_score(value)
