"""Figures of the report: results by strategy, finalists, learning curves, cost against accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from sweeps.reporting.formatting import (
    describe_strategy,
    escape_control_characters,
    format_objective,
    format_percent,
    pluralize,
    truncate,
)
from sweeps.reporting.plot_style import (
    INK,
    MUTED,
    PAPER,
    ROW_HEIGHT,
    PlotStyle,
    StrategyStyles,
    assign_strategy_styles,
    format_objective_axis,
    format_percent_axis,
    new_figure,
    plot_run,
    render_svg,
    set_rows,
    title_row,
)
from sweeps.reporting.ranking import StrategyTally, ranked_finalists, ranked_trials, tally_by_strategy
from sweeps.reporting.results import RankedTrial, Results
from xfer.objectives import ACCURACY, OBJECTIVES, Objective
from xfer.records import Record

FigureFunction = Callable[[Results, StrategyStyles], Figure | None]
SECONDS = OBJECTIVES["seconds"]
_FRONT_CAPTION = (
    "Every search run. The line connects the ringed runs, which no other finished run beats in both objectives. "
    "Hollow: stopped early or failed."
)


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
    if not _measured(results.trials):
        return []
    styles = assign_strategy_styles(trial.strategy for trial in results.trials)
    labels = {"first": results.objective.label, "second": results.objectives[-1].label}
    figures = []
    for kind in _FIGURES:
        if svg := render_svg(partial(kind.draw, results, styles), salt=kind.name):
            caption = _caption(kind, results).format(**labels)
            figures.append(ReportFigure(kind.name, kind.title.format(**labels), caption, svg))
    return figures


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


def _strategies(results: Results, styles: StrategyStyles) -> Figure:
    tallies, objective = tally_by_strategy(results), results.objective
    has_finals = any(tally.finalist for tally in tallies)
    figure, axes = new_figure(height=0.9 + ROW_HEIGHT * len(tallies), left=0.02, right=0.98)
    for row, tally in enumerate(tallies):
        style, y = styles[tally.strategy], row + 0.2
        title = f"{_strategy_label(tally.strategy)}: {_row_summary(tally, has_finals)}"
        title_row(axes, row, title, describe_strategy(tally.strategy))
        length = _bar_length(tally, has_finals)
        if length is not None:
            axes.barh(y, length, height=0.34, color=style.colour, alpha=0.25)
        for i, trial in enumerate(_measured(tally.trials)):
            hollow = has_finals or trial.status != "finished"
            plot_run(axes, _value(trial), y + 0.12 * (i % 3 - 1), style, hollow=hollow, size=3.5 if has_finals else 6)
        for value in _final_values(tally.finalist):
            plot_run(axes, value, y, style, hollow=False, size=7)
    guess = results.guessing_rate if objective.unit == "share" else math.log(results.classes)
    axes.axvline(guess, color=MUTED, linewidth=0.8, linestyle=":")
    axes.text(guess, 1.0, "guessing", transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=MUTED)
    set_rows(axes, len(tallies))
    values = [_value(trial) for trial in _measured(results.trials)]
    finals = [value for tally in tallies for value in _final_values(tally.finalist)]
    axes.set_xlim(0, 1 if objective.unit == "share" else 1.05 * max(guess, *values, *finals))
    format_objective_axis(axes.xaxis, objective, "" if objective == ACCURACY else _axis_label(objective))
    return figure


def _bar_length(tally: StrategyTally, has_finals: bool) -> float | None:
    """The value that ranks the strategy: of final runs if there are any in the sweep. None if it is not ranked."""
    if tally.finalist:
        return tally.finalist.value(tally.finalist.objectives[0])
    return None if has_finals else tally.best


def _row_summary(tally: StrategyTally, has_finals: bool) -> str:
    objective = tally.trials[0].objectives[0]
    if tally.finalist:
        value = format_objective(objective, tally.finalist.value(objective))
        return f"{value}, mean of {pluralize(tally.finalist.seeds, 'final run')}"
    if tally.best is None:
        return f"{'not ranked' if has_finals else 'none finished'}, {tally.why_unfinished}"
    count = tally.counts["finished"]
    runs = f"best of {pluralize(count, 'single run')}" if count > 1 else "a single run"
    value = format_objective(objective, tally.best)
    return f"not ranked, {runs} has {value}" if has_finals else f"{value}, {runs}"


def _final_values(finalist: RankedTrial | None) -> list[float]:
    """Values of a finalist's final runs."""
    if finalist is None:
        return []
    values = [finalist.objectives[0].value(record.epochs) for record in finalist.finals if record.val]
    return [value for value in values if value is not None and math.isfinite(value)]


def _finalists(results: Results, styles: StrategyStyles) -> Figure | None:
    finalists = ranked_finalists(results)
    if not finalists:
        return None
    figure, axes = new_figure(height=1.2 + ROW_HEIGHT * len(finalists), left=0.04, right=0.97)
    for row, trial in enumerate(finalists):
        style = PlotStyle(styles[trial.strategy].colour, "o")
        estimates = {"validation": trial.validation, "test": trial.test}
        for (split, estimate), y in zip(estimates.items(), (row + 0.02, row + 0.28), strict=True):
            if estimate:
                axes.plot([estimate.low, estimate.high], [y, y], color=style.colour, linewidth=1.6)
                plot_run(axes, estimate.mean, y, style, hollow=split == "validation", size=7)
        reached = ", ".join(f"{split} {format_percent(e.mean)}" for split, e in estimates.items() if e)
        name = f"{_strategy_label(trial.strategy)} ({escape_control_characters(trial.name)})"
        title_row(axes, row, f"{row + 1}. {name}: {reached}")
    set_rows(axes, len(finalists))
    axes.plot([], [], "o", color=INK, markerfacecolor=PAPER, label="validation")
    if any(trial.test for trial in finalists):
        axes.plot([], [], "o", color=INK, label="test")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    format_percent_axis(axes.xaxis)
    return figure


@dataclass(frozen=True)
class _Curve:
    """Values of the deciding objective after each epoch, from epoch 1 on."""

    strategy: str
    values: tuple[float, ...]

    @property
    def end(self) -> tuple[float, float]:
        """The last epoch and its value."""
        return len(self.values), self.values[-1]


def _learning_curves(results: Results, styles: StrategyStyles) -> Figure:
    figure, axes = new_figure(height=max(4.2, _legend_height(results)), right=0.72)
    for trial in sorted(_measured(results.trials), key=_score):  # the best are drawn last, on top
        curve, finished = _search_curve(trial), trial.status == "finished"
        style, width = styles[trial.strategy], 1.0 if finished else 0.8
        _plot_curve(axes, curve, style, width, "." if finished else "x", style.dash if finished else (0, (1, 2)))
    finals = {trial.name: _final_curve(trial) for trial in ranked_finalists(results)}
    for curve in reversed(list(finals.values())):
        style = styles[curve.strategy]
        _plot_curve(axes, curve, style, 2.6, style.marker, style.dash)
    stars = [tally.representative for tally in tally_by_strategy(results) if tally.representative]
    _label_curves(axes, [finals.get(trial.name) or _search_curve(trial) for trial in stars], styles)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlabel("epoch")
    format_objective_axis(axes.yaxis, results.objective, _axis_label(results.objective))
    return figure


def _plot_curve(axes: Axes, curve: _Curve, style: PlotStyle, width: float, marker: str, dash: Any) -> None:
    axes.plot(
        range(1, len(curve.values) + 1),
        curve.values,
        color=style.colour,
        linewidth=width,
        linestyle=dash,
        marker=marker,
        markersize=6 if width > 2 else 4.5,
        markevery=[len(curve.values) - 1],
        clip_on=False,
    )


def _label_curves(axes: Axes, curves: Sequence[_Curve], styles: StrategyStyles) -> None:
    """Name curves at their ends: those that reach the last epoch in the margin, shorter ones next to their last point.

    No line leads from a curve to its name; colour and marker of the name are those of the curve.
    """
    last = max((len(line.get_xdata()) for line in axes.lines), default=1)  # type: ignore[arg-type]
    axes.set_xlim(0.8, last + 0.2)
    low, high = axes.get_ylim()
    for epochs in sorted({len(curve.values) for curve in curves}):
        group = sorted((curve for curve in curves if len(curve.values) == epochs), key=lambda curve: curve.end[1])
        positions = spread_labels([curve.end[1] for curve in group], gap=0.06 * (high - low))
        for curve, y in zip(group, positions, strict=True):
            style, name = styles[curve.strategy], _strategy_label(curve.strategy)
            if epochs == last:
                margin = axes.get_yaxis_transform()
                axes.plot([1.03], [y], style.marker, color=style.colour, markersize=6, transform=margin, clip_on=False)
                axes.text(1.055, y, name, transform=margin, va="center")
            else:
                patch = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1}  # over other curves
                axes.annotate(name, (epochs, y), (8, 0), textcoords="offset points", va="center", bbox=patch)
    axes.set_ylim(low, high)


def _legend_height(results: Results) -> float:
    """Height in inches of a figure that names every strategy at its right side."""
    return 1.0 + 0.22 * len({trial.strategy for trial in results.trials})


def _search_curve(trial: RankedTrial) -> _Curve:
    return _Curve(trial.strategy, _values_by_epoch(trial.objectives[0], trial.search))


def _final_curve(trial: RankedTrial) -> _Curve:
    """Mean over the final runs: it ends at the value that ranks the finalist."""
    runs = [_values_by_epoch(trial.objectives[0], record) for record in trial.finals if record.val]
    return _Curve(trial.strategy, tuple(fmean(values) for values in zip(*runs, strict=False)))


def _values_by_epoch(objective: Objective, record: Record) -> tuple[float, ...]:
    scores = objective.scores(record.epochs)
    return tuple(math.nan if score is None else objective.to_score(score) for score in scores)


def _cost(results: Results, styles: StrategyStyles) -> Figure:
    return _scatter(results, styles, SECONDS)


def _trade(results: Results, styles: StrategyStyles) -> Figure | None:
    """The two objectives of the search against each other, unless `_cost` shows them already."""
    second = results.objectives[-1]
    return None if second in (results.objective, SECONDS) else _scatter(results, styles, second)


def _scatter(results: Results, styles: StrategyStyles, second: Objective) -> Figure:
    """Plot every search run by the main objective and `second`, with the Pareto front that the caption explains.

    Finalists stand at the means of their final runs, and search runs are small then, unless the front of the search
    runs was the goal of the search.
    """
    figure, axes = new_figure(height=max(4.0, _legend_height(results)), right=0.72)
    first, is_goal = results.objective, second in results.objectives
    points = {
        trial.name: (_positive(x, second), _value(trial))
        for trial in _measured(results.trials)
        if (x := trial.value_in_search(second)) is not None
    }
    shown = [trial for trial in ranked_trials(results) if trial.name in points]
    finals = {} if is_goal else _mean_points(ranked_finalists(results), second)
    finished = {trial.name: points[trial.name] for trial in shown if trial.status == "finished"}
    for trial in shown:
        hollow, size = bool(finals) or trial.name not in finished, 4 if finals else 7
        plot_run(axes, *points[trial.name], styles[trial.strategy], hollow=hollow, size=size)
    for trial in ranked_finalists(results):
        if trial.name in finals:
            plot_run(axes, *finals[trial.name], styles[trial.strategy], hollow=False, size=8)
    _draw_front(axes, finals or finished, results, second)

    if second == SECONDS:
        seconds = [x for x, _ in [*points.values(), *finals.values()]]
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
    for strategy in dict.fromkeys(trial.strategy for trial in shown):
        axes.plot([], [], styles[strategy].marker, color=styles[strategy].colour, label=_strategy_label(strategy))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    format_objective_axis(axes.yaxis, first, _axis_label(first))
    return figure


def _draw_front(axes: Axes, points: Mapping[str, tuple[float, float]], results: Results, second: Objective) -> None:
    """Connect and name the points that no other point beats in both objectives."""
    first = results.objective
    scores = pareto_front((-second.to_score(x), first.to_score(y)) for x, y in points.values())
    front = [(second.to_score(-cost), first.to_score(score)) for cost, score in scores]
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=MUTED, linewidth=1)
    if second in results.objectives:  # the front was the goal of the search
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
    for name, point in points.items():
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


def _mean_points(finalists: Sequence[RankedTrial], second: Objective) -> dict[str, tuple[float, float]]:
    """Means of the final runs of each finalist in `second` and in the deciding objective."""
    points = {}
    for trial in finalists:
        x, y = trial.value(second), trial.value(trial.objectives[0])
        if x is not None and y is not None:
            points[trial.name] = (_positive(x, second), y)
    return points


def _positive(x: float, objective: Objective) -> float:
    return max(x, 0.01) if objective == SECONDS else x  # on a log scale


@dataclass(frozen=True)
class _FigureKind:
    name: str
    title: str
    draw: FigureFunction
    caption: str
    """For a sweep without finals."""
    caption_with_finals: str


_FIGURES = (
    _FigureKind(
        "strategies",
        "Validation {first} by strategy",
        _strategies,
        "A bar is the strategy's best finished run, a dot is one run on one seed. Hollow dots were stopped early or "
        "failed, and do not count towards the bar.",
        "In the order of the ranking. A bar is the mean over the final runs of the strategy's best finalist, and the "
        "large dots on it are those runs. Small hollow dots are single search runs, which are not ranked.",
    ),
    _FigureKind(
        "finalists",
        "Finalists on new seeds",
        _finalists,
        "",
        "Mean accuracy over each finalist's final runs with its 95% interval, in the order of the ranking.",
    ),
    _FigureKind(
        "learning_curves",
        "Learning curves",
        _learning_curves,
        "Validation {first} after each epoch, one line for each run. The names stand at the best finished run of each "
        "strategy. Dotted, with a cross at the end: stopped early or failed.",
        "Validation {first} after each epoch. Bold: mean over a finalist's final runs. Thin: single search runs, those "
        "that were stopped early or failed dotted, with a cross at the end. The names stand at the best finalist of "
        "each strategy, or else at its best finished search run.",
    ),
    _FigureKind(
        "cost",
        "Run time against {first}",
        _cost,
        "Every search run. The line connects the finished runs that no other finished run beats in both run time and "
        "{first}. Hollow: stopped early or failed.",
        "Large dots: mean over a finalist's final runs. Small hollow dots: single search runs. The line connects the "
        "finalists that no other finalist beats in both run time and {first}.",
    ),
    _FigureKind(
        "trade",
        "Trade-off between {first} and {second}",
        _trade,
        _FRONT_CAPTION,
        _FRONT_CAPTION,
    ),
)


def _caption(kind: _FigureKind, results: Results) -> str:
    if kind.draw is _cost and SECONDS in results.objectives:
        return _FRONT_CAPTION
    return kind.caption_with_finals if ranked_finalists(results) else kind.caption


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
