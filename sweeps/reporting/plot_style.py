"""Plot style: colours, markers and layout of all figures, and their rendering to SVG.

Rendering needs no window system, leaves no global state, and gives the same bytes for the same figure. Names remain
text in the SVG, where matplotlib escapes them.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter

from xfer.objectives import Objective

INK, MUTED, PAPER = "#24292e", "#767e87", "#fefefe"

# Palette of Okabe and Ito (2008), distinguishable with any colour vision. Yellow is omitted because it is too faint on
# white. Black is replaced by INK, which turns light on a dark page.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", INK)
_MARKERS = "osD^vPX*<>"

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
_WIDTH = 8.6  # inches of 72 points


@dataclass(frozen=True)
class PlotStyle:
    """Colour and marker of a strategy in every figure. Either is enough to identify it, for colour-blind readers."""

    colour: str
    marker: str


StrategyStyles = Mapping[str, PlotStyle]


def assign_strategy_styles(strategies: Iterable[str]) -> dict[str, PlotStyle]:
    """Assign each strategy a style by its alphabetical order; colours repeat after seven, with other markers."""
    return {
        strategy: PlotStyle(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, strategy in enumerate(sorted(set(strategies)))
    }


def new_figure(height: float, left: float = 0.09, right: float = 0.97) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes.

    Args:
        height: of the figure in inches.
        left: left end of the axes as a fraction of the figure's width.
        right: right end of the axes as a fraction of the figure's width.
    """
    figure = Figure(figsize=(_WIDTH, height))
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


def set_row_labels(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows of the vertical axis with names, the first on top."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)


def annotate_row(axes: Axes, row: int, text: str) -> None:
    """Write text to the right of a row."""
    axes.text(1.03, row, text, transform=axes.get_yaxis_transform(), va="center")


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
    for colour, variable in ((INK, "--ink"), (MUTED, "--muted"), (PAPER, "--paper")):
        element = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: var({variable})", element)
    return element
