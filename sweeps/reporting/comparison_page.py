"""Write a comparison of sweeps: comparison.md, comparison.html, comparison.csv and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sweeps.reporting.across_data_sets import Comparison, compare_across, conclusions
from sweeps.reporting.figures import ReportFigure
from sweeps.reporting.first_screen import first_screen
from sweeps.reporting.formatting import (
    MISSING,
    escape_control_characters,
    format_duration,
    format_interval,
    format_percent,
    format_percentage_points,
    join_words,
    pluralize,
)
from sweeps.reporting.plot_style import (
    INK,
    ROW_HEIGHT,
    PlotStyle,
    assign_strategy_styles,
    format_percent_axis,
    new_figure,
    render_svg,
    set_rows,
    title_row,
)
from sweeps.reporting.ranking import ranked_finalists, ranking_csv
from sweeps.reporting.render import html_environment, markdown_environment, write_published
from sweeps.reporting.results import Results
from sweeps.reporting.tables import Table, format_accuracy_interval
from xfer.objectives import ACCURACY

QUESTION = "Which way of transferring a pretrained network is best across these data sets?"
METHODS_CAPTION = (
    "Accuracy on the validation images of each sweep with its 95% interval: of a strategy its best search run "
    "(comparison.csv has the number of its runs; more runs make the best one better by chance), of methods without "
    "training a classifier on frozen features. IQM: mean of the middle half over data sets, with an interval over "
    "images (Agarwal et al. 2021). Gap: mean difference to the first row, with a t interval over data sets."
)
ANSWERS_CAPTION = (
    "The first finalist of each sweep, on the test set where it was opened (its final runs on new seeds), and what it "
    "gains over the control, the recipe to take without a search. Tied: finalists that may be the best one too."
)


def write_comparison(sweeps: Mapping[str, Results], folder: Path, command: str) -> tuple[Comparison, Path]:
    """Compare sweeps, and write the comparison into `folder`, replacing an older one.

    Args:
        sweeps: results by the name of their sweep.
        folder: where the files go.
        command: the command line, which the page repeats.

    Returns:
        The comparison and the path of comparison.html.

    Raises:
        ValueError: the sweeps cannot be compared (`compare_across`).
    """
    comparison = compare_across(sweeps)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures = _figures(comparison, sweeps)
    for figure in figures:
        write_published(folder / "figures" / f"{figure.name}.svg", figure.svg)
    write_published(folder / "comparison.csv", ranking_csv(comparison_frame(comparison)))
    context = {
        "title": f"{len(comparison.methods)} methods on {len(sweeps)} data sets",
        "question": QUESTION,
        "conclusions": [escape_control_characters(sentence) for sentence in conclusions(comparison)],
        "figures": figures,
        "methods": methods_table(comparison, sweeps),
        "methods_caption": METHODS_CAPTION + _objectives(sweeps) + _left_out(comparison),
        "answers": answers_table(sweeps),
        "answers_caption": ANSWERS_CAPTION,
        "command": command,
    }
    write_published(folder / "comparison.md", markdown_environment().get_template("comparison.md.j2").render(context))
    page = folder / "comparison.html"
    write_published(page, html_environment().get_template("comparison.html.j2").render(context))
    return comparison, page


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """Return one row for each method and data set."""
    rows = []
    for index, method in enumerate(comparison.methods):
        for name, value in zip(comparison.data_sets, comparison.values[index], strict=True):
            rows.append(
                {
                    "method": escape_control_characters(method),
                    "sweep": escape_control_characters(name),
                    "accuracy": value.estimate.mean,
                    "low": value.estimate.low,
                    "high": value.estimate.high,
                    "images": value.estimate.images,
                    "runs": value.runs,
                    "mean_rank": comparison.mean_ranks[index],
                    "iqm": comparison.iqms[index].mean,
                    "gap_to_first": comparison.gaps[index].mean,
                    "gap_low": comparison.gaps[index].low,
                    "gap_high": comparison.gaps[index].high,
                }
            )
    return pd.DataFrame(rows)


def methods_table(comparison: Comparison, sweeps: Mapping[str, Results]) -> Table:
    """Return one row per method: mean rank, interquartile mean, gap to the first, accuracy on each data set."""
    titles = data_set_titles(sweeps)
    rows = []
    for method, rank, iqm, gap, values in zip(
        comparison.methods, comparison.mean_ranks, comparison.iqms, comparison.gaps, comparison.values, strict=True
    ):
        interval = f" ({format_percentage_points(gap.low)} to {format_percentage_points(gap.high)})"
        rows.append(
            (
                escape_control_characters(method),
                f"{rank:.1f}",
                format_accuracy_interval(iqm.mean, iqm),
                MISSING if method == comparison.methods[0] else f"{format_percentage_points(gap.mean)}{interval}",
                *(format_accuracy_interval(value.estimate.mean, value.estimate) for value in values),
            )
        )
    return Table(("method", "mean rank", "IQM", "gap", *titles), tuple(rows))


def answers_table(sweeps: Mapping[str, Results]) -> Table:
    """Return one row per sweep: its first finalist with its accuracy, what is tied, the gain over the control, cost."""
    rows = []
    for title, results in zip(data_set_titles(sweeps), sweeps.values(), strict=True):
        screen = first_screen(results)
        ranked = ranked_finalists(results)
        if not screen.bars or not ranked:
            rows.append((title, *(MISSING,) * 6))
            continue
        first = screen.bars[0]
        tied = [bar.name for bar in screen.bars[1:] if bar.is_tied]
        control = next((bar for bar in screen.bars if bar.role == "the control"), None)
        gain = "is the control" if control is first else MISSING if control is None else control.gain
        rows.append(
            (
                title,
                first.name,
                f"{format_percent(first.estimate.mean)} ({format_interval(first.estimate.low, first.estimate.high)})",
                f"{screen.split}, {pluralize(first.estimate.images, 'image')}",
                ", ".join(tied) or MISSING,
                gain,
                format_duration(results.seconds),
            )
        )
    header = ("data set", "first", "accuracy", "set", "tied with it", "gain over the control", "time of runs")
    return Table(header, tuple(rows))


def data_set_titles(sweeps: Mapping[str, Results]) -> tuple[str, ...]:
    """Return the folder of each sweep's images, or the sweep's name where folders share a name."""
    folders = [str(results.plan["data"].get("folder") or name) for name, results in sweeps.items()]
    return tuple(
        escape_control_characters(folder if folders.count(folder) == 1 else name)
        for folder, name in zip(folders, sweeps, strict=True)
    )


def _objectives(sweeps: Mapping[str, Results]) -> str:
    others = {results.objective.label for results in sweeps.values() if results.objective != ACCURACY}
    return f" Some sweeps searched for {join_words(sorted(others))}; accuracies are compared." if others else ""


def _left_out(comparison: Comparison) -> str:
    if not comparison.left_out:
        return ""
    parts = [f"{method} (not in {', '.join(names)})" for method, names in comparison.left_out.items()]
    return f" Left out, because some sweeps lack them: {escape_control_characters('; '.join(parts))}."


def _figures(comparison: Comparison, sweeps: Mapping[str, Results]) -> list[ReportFigure]:
    titles = data_set_titles(sweeps)
    drawn = (
        (
            "accuracies",
            "Accuracy of each method on each data set",
            "Validation accuracy with its 95% interval; the black line is the interquartile mean over data sets.",
            partial(_draw_accuracies, comparison, titles),
        ),
        (
            "ranks",
            "Mean ranks",
            f"1 is the best. Bars are half the critical difference long to either side ({len(titles)} data sets): "
            f"methods whose bars overlap cannot be told apart by their ranks.",
            partial(_draw_ranks, comparison),
        ),
    )
    figures = []
    for name, title, caption, draw in drawn:
        if svg := render_svg(draw, salt=name):
            figures.append(ReportFigure(name, title, caption, svg))
    return figures


def _draw_accuracies(comparison: Comparison, titles: tuple[str, ...]) -> Figure:
    styles: Mapping[str, PlotStyle] = assign_strategy_styles(titles)
    rows = len(comparison.methods)
    figure, axes = new_figure(1.1 + rows * ROW_HEIGHT)
    for row, (method, values) in enumerate(zip(comparison.methods, comparison.values, strict=True)):
        title_row(axes, row, escape_control_characters(method))
        for number, (title, value) in enumerate(zip(titles, values, strict=True)):
            style, y = styles[title], row - 0.12 + 0.5 * (number + 0.5) / len(titles)
            estimate = value.estimate
            axes.plot([estimate.low, estimate.high], [y, y], color=style.colour, linewidth=1.4)
            label = title if row == 0 else None
            axes.plot([estimate.mean], [y], style.marker, color=style.colour, markersize=4.5, label=label, linestyle="")
        iqm = comparison.iqms[row].mean
        axes.plot([iqm, iqm], [row - 0.12, row + 0.4], color=INK, linewidth=1.6)
    set_rows(axes, rows)
    format_percent_axis(axes.xaxis)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper left", ncols=3, bbox_to_anchor=(0.08, 1.0))
    return figure


def _draw_ranks(comparison: Comparison) -> Figure:
    rows, half = len(comparison.methods), comparison.critical_difference / 2
    figure, axes = new_figure(0.9 + rows * ROW_HEIGHT * 0.6)
    for row, (method, rank) in enumerate(zip(comparison.methods, comparison.mean_ranks, strict=True)):
        title_row(axes, row, escape_control_characters(method))
        axes.plot([rank - half, rank + half], [row + 0.15] * 2, color=INK, linewidth=1.6)
        axes.plot([rank], [row + 0.15], "o", color=INK, markersize=5)
    set_rows(axes, rows)
    axes.xaxis.grid(True, alpha=0.25)
    axes.set_xlim(0.5, rows + 0.5)
    axes.set_xlabel("mean rank")
    return figure
