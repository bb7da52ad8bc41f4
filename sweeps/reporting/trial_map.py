"""Trial map: every search run as a row, its epochs as cells, so that one sees what ran, what was stopped, and when."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sweeps.reporting.figures import ReportFigure
from sweeps.reporting.formatting import escape_control_characters, format_status, pluralize, truncate
from sweeps.reporting.plot_style import MUTED, new_figure, render_svg
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.sections import Section

MIN_TRIALS = 2
MAX_NAMED_TRIALS = 60
"""Number of trials up to which each row has its name and status; more are shown as bands without names."""
COLUMNS = 48
"""Columns of the map: trials of different lengths are stretched to the same width."""
STATUS_MARKS = {"finished": "", "pruned": "stopped", "failed": "failed"}
COLOURS = "viridis"


def trial_map_sections(results: Results) -> list[Section]:
    """Show the search runs; no section before two have an epoch."""
    trials = [trial for trial in results.trials if trial.search.epochs]
    if len(trials) < MIN_TRIALS:
        return []
    title = "Every search run"
    counts = Counter(trial.status for trial in results.trials)
    states = ", ".join(f"{count} {format_status(status)}" for status, count in sorted(counts.items()))
    sentence = f"{pluralize(len(results.trials), 'search run')}: {states}."
    names = "" if len(trials) <= MAX_NAMED_TRIALS else f" Rows are thin, because there are {len(trials):,}."
    caption = (
        f"One row for each run in the order of their names, from its first to its last planned epoch. The colour is "
        f"{results.objective.label} after the epoch on the validation set, from the worst (dark) to the best (bright) "
        f"in this figure; a row that ends early was stopped or failed.{names}"
    )
    svg = render_svg(partial(_draw, results, trials), salt="trial_map")
    return [Section(title, (sentence,), figure=ReportFigure("trial_map", title, caption, svg) if svg else None)]


def cells(results: Results, trials: list[RankedTrial]) -> NDArray[np.float64]:
    """Return scores [trials, COLUMNS], NaN where a run has no epoch or its epoch has no value.

    Column c shows the last epoch that had ended by (c + 1) / COLUMNS of the planned epochs.
    """
    found = np.full((len(trials), COLUMNS), math.nan)
    for row, trial in enumerate(trials):
        planned = max(int(trial.search.recipe["epochs"]), len(trial.search.epochs))
        scores = results.objective.scores(trial.search.epochs)
        for column in range(COLUMNS):
            epoch = math.ceil((column + 1) * planned / COLUMNS)
            score = scores[epoch - 1] if epoch <= len(scores) else None
            found[row, column] = math.nan if score is None else score
    return found


def _draw(results: Results, trials: list[RankedTrial]) -> Figure:
    scores = cells(results, trials)
    named = len(trials) <= MAX_NAMED_TRIALS
    height = 0.9 + (0.19 * len(trials) if named else 5.0)
    figure, axes = new_figure(height, left=0.34 if named else 0.09, right=0.88 if named else 0.97)
    finite = scores[np.isfinite(scores)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    shades = matplotlib.colormaps[COLOURS](Normalize(low, max(high, low + 1e-9))(scores))
    shades[~np.isfinite(scores)] = 0.0  # transparent, so that the page shows
    extent = (0.0, 1.0, len(trials) - 0.5, -0.5)
    axes.imshow(shades, aspect="auto", interpolation="nearest", extent=extent)
    axes.set_xticks([0, 0.5, 1.0], ["start", "half", "last epoch"])
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if named:
        for row, trial in enumerate(trials):
            name = truncate(f"{trial.name}  {escape_control_characters(trial.strategy)}", 34)
            axes.text(-0.02, row, name, ha="right", va="center", fontsize=8.5)
            axes.text(1.02, row, STATUS_MARKS.get(trial.status, ""), va="center", fontsize=8.5, color=MUTED)
    return figure
