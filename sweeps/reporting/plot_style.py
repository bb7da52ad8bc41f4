"""Ink, paper and colours: how every figure looks, and how it becomes SVG text.

No window system and no state that outlives a figure; the same figure gives the same bytes. Names stay text in the
SVG, where matplotlib escapes them.
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

# Okabe and Ito (2008), to be told apart with any colour vision; their yellow is left out, too faint on white, and their
# black is the ink, so that it turns light on a dark page.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", INK)
_MARKERS = "osD^vPX*<>"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
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
    """How a strategy is drawn, in every figure: colour and shape say the same, for those who see only one of them."""

    colour: str
    marker: str


StrategyStyles = Mapping[str, PlotStyle]


def assign_strategy_styles(strategies: Iterable[str]) -> dict[str, PlotStyle]:
    """A look for each strategy, whatever it is called; colours repeat after seven, with other markers."""
    return {
        strategy: PlotStyle(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, strategy in enumerate(sorted(set(strategies)))
    }


def new_figure(height: float, left: float = 0.09, right: float = 0.97) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, between `left` and `right` of its width; `height` is in inches."""
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((left, 0.48 / height, right - left, 1 - 0.78 / height))
    return figure, axes


def plot_run(axes: Axes, x: float, y: float, style: PlotStyle, hollow: bool, size: float = 6) -> None:
    """One run: filled if it counts, hollow if it was cut short; `size` is in points."""
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
    """The vertical axis as a list of names, the first on top."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)


def annotate_row(axes: Axes, row: int, text: str) -> None:
    """A remark to the right of a row."""
    axes.text(1.03, row, text, transform=axes.get_yaxis_transform(), va="center")


def format_percent_axis(axis: Axis, label: str = "") -> None:
    """Accuracies in [0, 1], read in percent."""
    axis.set_major_formatter(FuncFormatter(lambda accuracy, _: f"{100 * accuracy:.4g}%"))
    axis.grid(True, color=MUTED, alpha=0.25, linewidth=0.6)
    axis.set_label_text(label)
    axis.axes.set_axisbelow(True)


def format_objective_axis(axis: Axis, objective: Objective, label: str) -> None:
    """Values of an objective, as a person reads them."""
    format_percent_axis(axis, label)
    if objective.unit != "share":
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def render_svg(draw: Callable[[], Figure | None], salt: str) -> str | None:
    """What `draw` draws, as an SVG file; None if it has nothing to draw.

    Element names are salted, so that several figures can stand in one page.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # Letters that the font at hand lacks are measured roughly; the reader's browser has fonts of its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw()
        if figure is None:
            return None
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r' id="[a-z0-9A-Z.]+_\d+"', "", text.getvalue())


def inline_svg(svg: str) -> str:
    """The SVG element alone, its inks replaced by the page's `--ink`, `--muted` and `--paper`, light or dark."""
    element = svg[svg.index("<svg") :]
    for colour, variable in ((INK, "--ink"), (MUTED, "--muted"), (PAPER, "--paper")):
        element = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: var({variable})", element)
    return element
