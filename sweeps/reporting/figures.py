"""Figures of the report: results by strategy, finalists, learning curves, cost against accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from sweeps.reporting.formatting import escape_control_characters, format_objective, format_percent, truncate
from sweeps.reporting.plot_style import (
    INK,
    MUTED,
    PAPER,
    PlotStyle,
    StrategyStyles,
    annotate_row,
    assign_strategy_styles,
    format_objective_axis,
    format_percent_axis,
    new_figure,
    plot_run,
    render_svg,
    set_row_labels,
)
from sweeps.reporting.ranking import ranked_trials, tally_by_strategy
from sweeps.reporting.results import RankedTrial, Results
from xfer.objectives import ACCURACY, OBJECTIVES, Objective

FigureFunction = Callable[[Sequence[RankedTrial], StrategyStyles], Figure | None]
SECONDS = OBJECTIVES["seconds"]


@dataclass(frozen=True)
class ReportFigure:
    """A rendered figure with its title and caption."""

    name: str
    """File name without its extension."""
    title: str
    caption: str
    svg: str


def report_figures(results: Results) -> list[ReportFigure]:
    """Render every figure that has data to show.

    Returns:
        The figures in report order; an empty list before the first epoch of the first trial.
    """
    trials = ranked_trials(results)
    if not _measured(trials):
        return []
    styles = assign_strategy_styles(trial.strategy for trial in trials)
    labels = {"first": results.objective.label, "second": results.objectives[-1].label}
    rendered = [
        (name, title.format(**labels), caption.format(**labels), render_svg(partial(draw, trials, styles), salt=name))
        for name, title, caption, draw in _FIGURES
    ]
    return [ReportFigure(name, title, caption, svg) for name, title, caption, svg in rendered if svg]


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Pareto front of (cost, value) points: low cost and high value are better.

    Returns:
        The points that are not dominated by another point, cheapest first.

    >>> pareto_front([(1, 0.5), (2, 0.4), (3, 0.9)])
    [(1, 0.5), (3, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def spread_labels(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until neighbours are at least `gap` apart, keeping each cluster centred.

    Args:
        positions: ascending positions of the labels.
        gap: minimum distance of neighbours, in the same unit.

    >>> spread_labels([1.0, 1.0, 5.0], gap=2.0)
    [0.0, 2.0, 5.0]
    """
    centres: list[float] = []
    sizes: list[int] = []  # number of labels in each cluster of touching labels
    for position in positions:
        sizes.append(1)
        centres.append(position)
        # A cluster keeps its centre, so growing it can make it touch the cluster below.
        while len(centres) > 1 and centres[-1] - centres[-2] < gap * (sizes[-1] + sizes[-2]) / 2:
            size, centre = sizes.pop(), centres.pop()
            centres[-1] = (centres[-1] * sizes[-1] + centre * size) / (sizes[-1] + size)
            sizes[-1] += size
    return [
        centre + gap * (i - (size - 1) / 2) for centre, size in zip(centres, sizes, strict=True) for i in range(size)
    ]


def _strategies(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure:
    tallies, objective = tally_by_strategy(trials), trials[0].objectives[0]
    figure, axes = new_figure(height=0.9 + 0.5 * len(tallies), left=0.24, right=0.8)
    for row, tally in enumerate(tallies):
        style = styles[tally.strategy]
        axes.barh(row, tally.best or 0, height=0.62, color=style.colour, alpha=0.3)
        for i, trial in enumerate(_measured(tally.trials)):
            plot_run(axes, _value(trial), row + 0.14 * (i % 3 - 1), style, hollow=trial.status != "finished")
        best = "none finished" if tally.best is None else f"best {format_objective(objective, tally.best)}"
        annotate_row(axes, row, f"{best}, n = {len(tally.trials)}")
    classes = trials[0].search.recipe["classes"]
    chance = 1 / classes if objective.unit == "share" else math.log(classes)
    axes.axvline(chance, color=MUTED, linewidth=0.8, linestyle=":")
    axes.text(chance, 1.0, "chance", transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=MUTED)
    set_row_labels(axes, [_strategy_label(tally.strategy) for tally in tallies])
    largest = max(chance, *map(_value, _measured(trials)))
    axes.set_xlim(0, 1 if objective.unit == "share" else 1.05 * largest)
    format_objective_axis(axes.xaxis, objective, "" if objective == ACCURACY else _axis_label(objective))
    return figure


def _finalists(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure | None:
    finalists = [trial for trial in trials if trial.is_finalist]
    if not finalists:
        return None
    figure, axes = new_figure(height=1.2 + 0.62 * len(finalists), left=0.3, right=0.76)
    for row, trial in enumerate(finalists):
        style = PlotStyle(styles[trial.strategy].colour, "o")
        estimates = {"validation": trial.validation, "test": trial.test}
        for (split, estimate), y in zip(estimates.items(), (row - 0.15, row + 0.15), strict=True):
            if estimate:
                axes.plot([estimate.low, estimate.high], [y, y], color=style.colour, linewidth=1.6)
                plot_run(axes, estimate.mean, y, style, hollow=split == "validation", size=7)
        annotate_row(axes, row, "\n".join(f"{split} {format_percent(e.mean)}" for split, e in estimates.items() if e))
    set_row_labels(
        axes, [f"{escape_control_characters(trial.name)}  {_strategy_label(trial.strategy)}" for trial in finalists]
    )
    axes.plot([], [], "o", color=INK, markerfacecolor=PAPER, label="validation")
    if any(trial.test for trial in finalists):
        axes.plot([], [], "o", color=INK, label="test")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    format_percent_axis(axes.xaxis)
    return figure


def _learning_curves(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure:
    figure, axes = new_figure(height=4.2, right=0.74)
    objective = trials[0].objectives[0]
    best: dict[str, RankedTrial] = {}
    for trial in sorted(_measured(trials), key=_score):  # the best are drawn last, on top
        epochs, finished = trial.search.epochs, trial.status == "finished"
        axes.plot(
            [epoch.epoch for epoch in epochs],
            [math.nan if score is None else objective.to_score(score) for score in objective.scores(epochs)],
            color=styles[trial.strategy].colour,
            linewidth=2.4 if trial.is_finalist else 1.1 if finished else 0.7,
            alpha=1.0 if trial.is_finalist else 0.6,
            marker="o" if finished else "x",
            markersize=3 if finished else 5,
            markevery=[len(epochs) - 1],
        )
        best[trial.strategy] = trial
    low, high = axes.get_ylim()
    labelled = sorted(best.values(), key=_value)
    label_positions = spread_labels([_value(trial) for trial in labelled], gap=0.055 * (high - low))
    for trial, position in zip(labelled, label_positions, strict=True):
        axes.annotate(
            _strategy_label(trial.strategy),
            xy=(trial.search.epochs[-1].epoch, _value(trial)),
            xytext=(1.04, position),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": styles[trial.strategy].colour, "relpos": (0, 0.5), "shrinkB": 3},
        )
    axes.set_xlim(0.8, max(len(trial.search.epochs) for trial in trials) + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlabel("epoch")
    format_objective_axis(axes.yaxis, objective, _axis_label(objective))
    return figure


def _cost(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure:
    return _scatter(trials, styles, SECONDS)


def _trade(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure | None:
    """The two objectives of the search against each other, unless `_cost` shows them already."""
    second = trials[0].objectives[-1]
    return None if second in (trials[0].objectives[0], SECONDS) else _scatter(trials, styles, second)


def _scatter(trials: Sequence[RankedTrial], styles: StrategyStyles, second: Objective) -> Figure:
    """Plot every search run by the main objective and `second`, with the Pareto front of the finished runs."""
    figure, axes = new_figure(height=4.0, right=0.72)
    first = trials[0].objectives[0]
    points = {
        trial.name: (max(x, 0.01) if second == SECONDS else x, _value(trial))
        for trial in _measured(trials)
        if (x := second.value(trial.search.epochs)) is not None
    }
    shown = [trial for trial in trials if trial.name in points]
    finished = {trial.name: points[trial.name] for trial in shown if trial.status == "finished"}
    scores = pareto_front((-second.to_score(x), first.to_score(y)) for x, y in finished.values())
    front = [(second.to_score(-cost), first.to_score(score)) for cost, score in scores]
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=MUTED, linewidth=1)
    for trial in shown:
        plot_run(axes, *points[trial.name], styles[trial.strategy], hollow=trial.name not in finished, size=7)
    if second in trials[0].objectives:  # the front was the goal of the search
        axes.plot(
            [x for x, _ in front],
            [y for _, y in front],
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=INK,
            markeredgewidth=1.1,
            clip_on=False,
            label="Pareto front",
        )
    labelled = front[:: -(len(front) // 8 + 1)]  # from the best down, at most as many as stay readable
    for name, point in finished.items():
        if point in labelled:
            axes.annotate(
                escape_control_characters(name),
                point,
                (-6, 7),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                fontsize=8.5,
            )

    if second == SECONDS:
        seconds = [x for x, _ in points.values()]
        # Keep at least two of the ticks 1, 2, 5, 10, ... in view, so that the axis can be read.
        margin = max(1.2, math.sqrt(6.5 * min(seconds) / max(seconds)))
        axes.set_xscale("log")
        axes.set_xlim(min(seconds) / margin, max(seconds) * margin)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_xlabel("run time in seconds (log scale)")
    else:
        format_objective_axis(axes.xaxis, second, _axis_label(second))
    for strategy in sorted({trial.strategy for trial in shown}):
        axes.plot([], [], styles[strategy].marker, color=styles[strategy].colour, label=_strategy_label(strategy))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    format_objective_axis(axes.yaxis, first, _axis_label(first))
    return figure


_FIGURES: tuple[tuple[str, str, str, FigureFunction], ...] = (
    (
        "strategies",
        "Validation {first} by strategy",
        "A bar is the strategy's best finished search run, a dot is one trial on one seed. Hollow dots were stopped "
        "early or failed, and do not count towards the bar.",
        _strategies,
    ),
    (
        "finalists",
        "Finalists on new seeds",
        "Mean accuracy over each finalist's seeds with its 95% interval, in the order fixed on the validation set.",
        _finalists,
    ),
    (
        "learning_curves",
        "Learning curves",
        "Validation {first} after each epoch of the search. Bold: finalists. Cross: stopped early or failed.",
        _learning_curves,
    ),
    (
        "cost",
        "Run time against {first}",
        "Every search run. The line connects the finished runs that no other finished run beats in both run time and "
        "{first}. Hollow: stopped early or failed.",
        _cost,
    ),
    (
        "trade",
        "Trade-off between {first} and {second}",
        "Every search run. The line connects the ringed runs, which no other finished run beats in both objectives. "
        "Hollow: stopped early or failed.",
        _trade,
    ),
)


def _strategy_label(strategy: str) -> str:
    return truncate(escape_control_characters(strategy), 24)


def _axis_label(objective: Objective) -> str:
    return f"validation {objective.label}{'' if objective.higher_is_better else ' (lower is better)'}"


def _measured(trials: Sequence[RankedTrial]) -> list[RankedTrial]:
    return [trial for trial in trials if trial.search_value is not None]


def _value(trial: RankedTrial) -> float:
    assert trial.search_value is not None, "only trials with a value are drawn"
    return trial.search_value


def _score(trial: RankedTrial) -> float:
    return trial.objectives[0].to_score(_value(trial))
