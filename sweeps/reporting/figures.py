"""The report's figures: what each strategy reached, the finalists, learning curves, and cost against accuracy."""

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
    """A figure ready for a report."""

    name: str
    """Of its file, without the ending."""
    title: str
    caption: str
    svg: str


def report_figures(results: Results) -> list[ReportFigure]:
    """Every figure that there is something to show in; none before the first epoch of the first trial."""
    trials = ranked_trials(results)
    if not _measured(trials):
        return []
    looks = assign_strategy_styles(trial.strategy for trial in trials)
    words = {"label": results.objective.label, "second": results.objectives[-1].label}
    drawn = [
        (name, title.format(**words), caption.format(**words), render_svg(partial(draw, trials, looks), salt=name))
        for name, title, caption, draw in _FIGURES
    ]
    return [ReportFigure(name, title, caption, svg) for name, title, caption, svg in drawn if svg]


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, value) that no other point beats in one and equals in the other, cheapest first.

    >>> pareto_front([(1, 0.5), (2, 0.4), (3, 0.9)])
    [(1, 0.5), (3, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def spread_labels(places: Sequence[float], gap: float) -> list[float]:
    """The ascending places, moved up as little as it takes for neighbours to stand `gap` apart, then centred again.

    >>> spread_labels([1.0, 1.0, 5.0], gap=2.0)
    [0.0, 2.0, 5.0]
    """
    moved: list[float] = []
    group: list[int] = []  # how many labels stand in each run of touching labels
    for place in places:
        group.append(1)
        moved.append(place)
        # A run keeps its centre, so moving it can make it touch the one below.
        while len(moved) > 1 and moved[-1] - moved[-2] < gap * (group[-1] + group[-2]) / 2:
            size, centre = group.pop(), moved.pop()
            moved[-1] = (moved[-1] * group[-1] + centre * size) / (group[-1] + size)
            group[-1] += size
    return [centre + gap * (i - (size - 1) / 2) for centre, size in zip(moved, group, strict=True) for i in range(size)]


def _strategies(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure:
    tallies, objective = tally_by_strategy(trials), trials[0].objectives[0]
    figure, axes = new_figure(height=0.9 + 0.5 * len(tallies), left=0.24, right=0.8)
    for row, tally in enumerate(tallies):
        look = styles[tally.strategy]
        axes.barh(row, tally.best or 0, height=0.62, color=look.colour, alpha=0.3)
        for i, trial in enumerate(_measured(tally.trials)):
            plot_run(axes, _value(trial), row + 0.14 * (i % 3 - 1), look, hollow=trial.status != "finished")
        best = "none finished" if tally.best is None else f"best {format_objective(objective, tally.best)}"
        annotate_row(axes, row, f"{best}, n = {len(tally.trials)}")
    classes = trials[0].search.recipe["classes"]
    guessing = 1 / classes if objective.unit == "share" else math.log(classes)
    axes.axvline(guessing, color=MUTED, linewidth=0.8, linestyle=":")
    axes.text(guessing, 1.0, "guessing", transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=MUTED)
    set_row_labels(axes, [_name(tally.strategy) for tally in tallies])
    most = max(guessing, *map(_value, _measured(trials)))
    axes.set_xlim(0, 1 if objective.unit == "share" else 1.05 * most)
    format_objective_axis(axes.xaxis, objective, "" if objective == ACCURACY else _on_validation(objective))
    return figure


def _finalists(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure | None:
    finalists = [trial for trial in trials if trial.is_finalist]
    if not finalists:
        return None
    figure, axes = new_figure(height=1.2 + 0.62 * len(finalists), left=0.3, right=0.76)
    for row, trial in enumerate(finalists):
        look = PlotStyle(styles[trial.strategy].colour, "o")
        parts = {"validation": trial.validation, "test": trial.test}
        for (part, estimate), place in zip(parts.items(), (row - 0.15, row + 0.15), strict=True):
            if estimate:
                axes.plot([estimate.low, estimate.high], [place, place], color=look.colour, linewidth=1.6)
                plot_run(axes, estimate.mean, place, look, hollow=part == "validation", size=7)
        annotate_row(axes, row, "\n".join(f"{part} {format_percent(e.mean)}" for part, e in parts.items() if e))
    set_row_labels(axes, [f"{escape_control_characters(trial.name)}  {_name(trial.strategy)}" for trial in finalists])
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
    for trial in sorted(_measured(trials), key=_score):  # the best on top
        epochs, ended = trial.search.epochs, trial.status == "finished"
        axes.plot(
            [epoch.epoch for epoch in epochs],
            [math.nan if score is None else objective.to_score(score) for score in objective.scores(epochs)],
            color=styles[trial.strategy].colour,
            linewidth=2.4 if trial.is_finalist else 1.1 if ended else 0.7,
            alpha=1.0 if trial.is_finalist else 0.6,
            marker="o" if ended else "x",
            markersize=3 if ended else 5,
            markevery=[len(epochs) - 1],
        )
        best[trial.strategy] = trial
    low, high = axes.get_ylim()
    labelled = sorted(best.values(), key=_value)
    places = spread_labels([_value(trial) for trial in labelled], gap=0.055 * (high - low))
    for trial, place in zip(labelled, places, strict=True):
        axes.annotate(
            _name(trial.strategy),
            xy=(trial.search.epochs[-1].epoch, _value(trial)),
            xytext=(1.04, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": styles[trial.strategy].colour, "relpos": (0, 0.5), "shrinkB": 3},
        )
    axes.set_xlim(0.8, max(len(trial.search.epochs) for trial in trials) + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlabel("epochs trained")
    format_objective_axis(axes.yaxis, objective, _on_validation(objective))
    return figure


def _cost(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure:
    return _against(trials, styles, SECONDS)


def _trade(trials: Sequence[RankedTrial], styles: StrategyStyles) -> Figure | None:
    """One objective against the other, where the cost is none of them."""
    second = trials[0].objectives[-1]
    return None if second in (trials[0].objectives[0], SECONDS) else _against(trials, styles, second)


def _against(trials: Sequence[RankedTrial], styles: StrategyStyles, second: Objective) -> Figure:
    """Every search run in the objective that decides and in another one, with the Pareto front of the finished."""
    figure, axes = new_figure(height=4.0, right=0.72)
    first = trials[0].objectives[0]
    places = {
        trial.name: (max(x, 0.01) if second == SECONDS else x, _value(trial))
        for trial in _measured(trials)
        if (x := second.value(trial.search.epochs)) is not None
    }
    shown = [trial for trial in trials if trial.name in places]
    ended = {trial.name: places[trial.name] for trial in shown if trial.status == "finished"}
    steps = pareto_front((-second.to_score(x), first.to_score(y)) for x, y in ended.values())
    front = [(second.to_score(-cost), first.to_score(score)) for cost, score in steps]
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=MUTED, linewidth=1)
    for trial in shown:
        plot_run(axes, *places[trial.name], styles[trial.strategy], hollow=trial.name not in ended, size=7)
    if second in trials[0].objectives:  # the front is what was searched for
        axes.plot(
            [place[0] for place in front],
            [place[1] for place in front],
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=INK,
            markeredgewidth=1.1,
            clip_on=False,
            label="Pareto front",
        )
    labelled = front[:: -(len(front) // 8 + 1)]  # from the best down, no more than can be read
    for name, place in ended.items():
        if place in labelled:
            axes.annotate(
                escape_control_characters(name),
                place,
                (-6, 7),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                fontsize=8.5,
            )

    if second == SECONDS:
        seconds = [x for x, _ in places.values()]
        # Room for at least two of the marks 1, 2, 5, 10, ... that the axis is read by.
        room = max(1.2, math.sqrt(6.5 * min(seconds) / max(seconds)))
        axes.set_xscale("log")
        axes.set_xlim(min(seconds) / room, max(seconds) * room)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_xlabel("seconds for the run (log scale)")
    else:
        format_objective_axis(axes.xaxis, second, _on_validation(second))
    for strategy in sorted({trial.strategy for trial in shown}):
        axes.plot([], [], styles[strategy].marker, color=styles[strategy].colour, label=_name(strategy))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    format_objective_axis(axes.yaxis, first, _on_validation(first))
    return figure


_FIGURES: tuple[tuple[str, str, str, FigureFunction], ...] = (
    (
        "strategies",
        "What each strategy reached",
        "The bar is the strategy's best search run on the validation part, every dot one trial on one seed; a hollow "
        "dot was stopped early or failed and does not count for the bar.",
        _strategies,
    ),
    (
        "finalists",
        "The finalists on new seeds",
        "Accuracy: the mean over a finalist's seeds and its 95% interval, in the order fixed on the validation part.",
        _finalists,
    ),
    (
        "learning_curves",
        "Learning curves",
        "The {label} on the validation part after each epoch of the search. Bold: finalists; a cross: stopped early or "
        "failed.",
        _learning_curves,
    ),
    (
        "cost",
        "Cost against {label}",
        "Every search run; the line joins those that no other finished run beats in both time and {label}. Hollow: "
        "stopped early or failed.",
        _cost,
    ),
    (
        "trade",
        "What {label} costs in {second}",
        "Every search run; ringed and joined by the line are those that no other finished run beats in both. Hollow: "
        "stopped early or failed.",
        _trade,
    ),
)


def _name(strategy: str) -> str:
    return truncate(escape_control_characters(strategy), 24)


def _on_validation(objective: Objective) -> str:
    return f"{objective.label} on the validation part{'' if objective.higher_is_better else ' (lower is better)'}"


def _measured(trials: Sequence[RankedTrial]) -> list[RankedTrial]:
    return [trial for trial in trials if trial.search_value is not None]


def _value(trial: RankedTrial) -> float:
    assert trial.search_value is not None, "only measured trials are drawn"
    return trial.search_value


def _score(trial: RankedTrial) -> float:
    return trial.objectives[0].to_score(_value(trial))
