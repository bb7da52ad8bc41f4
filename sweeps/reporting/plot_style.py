"""Plot style: colours, markers and layout of all figures, and their rendering to SVG.

Rendering needs no window system, leaves no global state, and gives the same bytes for the same figure. Names remain
text in the SVG, where matplotlib escapes them.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter

from xfer.objectives import Objective

SERIES = ("#1744dc", "#6b3200", "#3c995c", "#df5da2", "#80942d", "#6e429c")
"""Colours of the strategies on a light page. Here and on a dark page, all pairs differ clearly for readers with any
colour vision (simulated after Machado et al. 2009), and each has a contrast of at least 3 to the page, as WCAG 2.2
demands in 1.4.11."""
INK, MUTED, PAPER = "#24292e", "#636c76", "#fefefe"
ACCENT = "#0072b2"
PAGE_COLOURS: dict[str, tuple[str, str]] = {
    "paper": (PAPER, "#14181d"),
    "ink": (INK, "#e4e8ec"),
    "muted": (MUTED, "#98a2ad"),
    "line": ("#d8dee4", "#323941"),
    "shade": ("#f4f6f8", "#1d2329"),
    "tied": ("#eaf2fa", "#24384a"),
    "accent": (ACCENT, "#56b4e9"),
    **{
        f"series-{number}": (light, dark)
        for number, (light, dark) in enumerate(
            zip(SERIES, ("#2a76fd", "#f8a83e", "#7aef93", "#ae5272", "#74792f", "#be7ad2"), strict=True), start=1
        )
    },
}
"""Colours of report.html on a light and on a dark page, by the name of their CSS variable."""

_COLOURS = (*SERIES, INK)
_MARKERS = "osD^vPX*<>"
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 1, 1, 1)))

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain dollar signs
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
FIGURE_WIDTH = 7.2
"""Width of a figure in inches. At the width of a page, its text has the size of the text around it."""
ROW_HEIGHT = 0.82
"""Height of a row with a title, a remark and marks, in inches."""


@dataclass(frozen=True)
class PlotStyle:
    """Colour, marker and line of a strategy in every figure."""

    colour: str
    marker: str
    dash: Any = "-"
    """Line style, as matplotlib takes it."""


StrategyStyles = Mapping[str, PlotStyle]


def assign_strategy_styles(strategies: Iterable[str]) -> dict[str, PlotStyle]:
    """Assign each strategy a style by its alphabetical order.

    Colours repeat after seven strategies, with other markers and lines.
    """
    return {
        strategy: PlotStyle(
            _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]
        )
        for i, strategy in enumerate(sorted(set(strategies)))
    }


def new_figure(height: float, left: float = 0.09, right: float = 0.97) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes.

    Args:
        height: of the figure in inches.
        left: left end of the axes as a fraction of the figure's width.
        right: right end of the axes as a fraction of the figure's width.
    """
    figure = Figure(figsize=(FIGURE_WIDTH, height))
    axes = figure.add_axes((left, 0.48 / height, right - left, 1 - 0.78 / height))
    return figure, axes


def plot_run(axes: Axes, x: float, y: float, style: PlotStyle, hollow: bool, size: float = 6) -> None:
    """Plot one run as a marker of `size` points, hollow if the run is not to be counted."""
    face, edge, width = (PAPER, style.colour, 1.2) if hollow else (style.colour, PAPER, 0.5)
    axes.plot(
        [x],
        [y],
        style.marker,
        markersize=size,
        markerfacecolor=face,
        markeredgecolor=edge,
        markeredgewidth=width,
        clip_on=False,
    )


def set_rows(axes: Axes, count: int) -> None:
    """Make the vertical axis one of rows, the first on top; `title_row` names them."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(count - 0.5, -0.5)


def title_row(axes: Axes, row: int, title: str, remark: str = "") -> None:
    """Write a title and a remark above the marks of a row, from the left end, where a narrow screen shows them."""
    left = axes.get_yaxis_transform()
    axes.text(0, row - 0.33, title, transform=left, va="center")
    axes.text(0, row - 0.11, remark, transform=left, va="center", color=MUTED, fontsize=8.5)


def format_percent_axis(axis: Axis, label: str = "") -> None:
    """Format an axis of accuracies in [0, 1] in percent."""
    axis.set_major_formatter(FuncFormatter(lambda accuracy, _: f"{100 * accuracy:.4g}%"))
    axis.grid(True, color=MUTED, alpha=0.25, linewidth=0.6)
    axis.set_label_text(label)
    axis.axes.set_axisbelow(True)


def format_objective_axis(axis: Axis, objective: Objective, label: str) -> None:
    """Format an axis in the unit of the objective."""
    format_percent_axis(axis, label)
    if objective.unit != "share":
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def render_svg(draw: Callable[[], Figure | None], salt: str) -> str | None:
    """Render the figure that `draw` returns.

    Args:
        draw: creates the figure under the report's style; None means that there is nothing to draw.
        salt: makes element ids unique, so that several figures fit in one page.

    Returns:
        The content of an SVG file, or None.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # Characters missing from the installed font only affect layout: the reader's browser uses its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw()
        if figure is None:
            return None
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r' id="[a-z0-9A-Z.]+_\d+"', "", text.getvalue())


def inline_svg(svg: str) -> str:
    """Extract the SVG element, with its colours replaced by the page's CSS variables for light and dark mode.

    Args:
        svg: the content of an SVG file, as returned by `render_svg`.
    """
    element = svg[svg.index("<svg") :]
    for variable, (colour, _) in PAGE_COLOURS.items():
        element = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: var(--{variable})", element)
    return element
