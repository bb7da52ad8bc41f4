"""Table of the backbone screening: linear heads on frozen features, fitted before the search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.reporting.formatting import (
    MISSING,
    escape_control_characters,
    format_choice,
    format_percent,
    format_setting,
)
from sweeps.reporting.results import Results
from sweeps.reporting.statistics import pooled_estimate
from sweeps.reporting.tables import Table, format_accuracy_interval
from sweeps.reporting.zero_effort import knn_accuracies
from xfer.objectives import ACCURACY, OBJECTIVES
from xfer.records import Record

SCREENING_CAPTION = (
    "Linear heads fitted to convergence on frozen features of each backbone, with several penalties, evaluated on the "
    "validation set. Only the best head is shown, so its accuracy is slightly optimistic, for every backbone alike. "
    "Accuracy on frozen features is only a hint of accuracy after fine-tuning. The search used the selected backbones, "
    "and lp_ft started with the penalty shown here unless the sweep set penalties explicitly."
)


def screening_caption(results: Results) -> str:
    """Return the text below the table; for a panel, it begins with the two networks that are fine-tuned in any case."""
    line = panel_line(results.screening or {})
    return f"{line}. {SCREENING_CAPTION}" if line else SCREENING_CAPTION


def screening_table(results: Results) -> Table:
    """Show the best head of each backbone, best first, and whether the backbone was selected for the search.

    Returns:
        A table without rows if the sweep had no screening.
    """
    if results.screening is None:
        return Table((), ())
    decision, objective = results.screening, OBJECTIVES[results.screening["by"]]
    neighbours = knn_accuracies(results)
    rows = []
    for name in (*decision["kept"], *decision["dropped"]):
        heads = [record for record in results.records if record.phase == "screen" and record.recipe["backbone"] == name]
        finished = [record for record in heads if record.status == "finished"]
        best = min(
            finished, key=lambda head: (-(objective.score(head.epochs) or 0.0), head.epochs[-1].val_loss), default=None
        )
        value = objective.value(best.epochs) if best else None
        rows.append(
            (
                escape_control_characters(name),
                "yes" if name in decision["kept"] else "no",
                format_choice(best.recipe["strategy"]) if best else "all failed",
                *((format_percent(value),) * (objective != ACCURACY)),
                _accuracy(best),
                *((neighbours.get(name, MISSING),) * bool(neighbours)),
                format_setting(decision["penalties"].get(name, MISSING)),
                str(len(heads)),
            )
        )
    knn_column = ("kNN",) * bool(neighbours)
    objective_column = (objective.label,) * (objective != ACCURACY)
    header = (
        "backbone",
        "selected",
        "best head",
        *objective_column,
        "validation",
        *knn_column,
        "lp_ft penalty",
        "heads",
    )
    return Table(header, tuple(rows))


def panel_line(decision: Mapping[str, Any]) -> str:
    """Return which networks of the panel of `--backbone auto` are fine-tuned in any case, and why.

    Args:
        decision: the decision of the screening.

    Returns:
        A clause without a full stop; empty for backbones that the user listed.
    """
    if "best_frozen" not in decision:
        return ""
    frozen, on_imagenet = decision["best_frozen"], decision["best_on_imagenet"]
    if on_imagenet is None:
        return f"{frozen} has the best frozen features; no accuracy on ImageNet is published for any of these networks"
    if frozen == on_imagenet:
        return f"{frozen} has both the best frozen features and the highest published accuracy on ImageNet"
    return f"{frozen} has the best frozen features, and {on_imagenet} the highest published accuracy on ImageNet"


def _accuracy(record: Record | None) -> str:
    if record is None or record.val is None:
        return format_percent(None)
    return format_accuracy_interval(record.val_accuracy, pooled_estimate([record.val]))
