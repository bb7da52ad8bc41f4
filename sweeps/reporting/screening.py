"""What heads on frozen features said of each backbone, before the search."""

from __future__ import annotations

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
from xfer.objectives import ACCURACY, OBJECTIVES
from xfer.records import Record

SCREENING_CAPTION = (
    "Heads in closed form on what each frozen backbone makes of the images, on the validation part, under several "
    "penalties: the best of them is shown, so its accuracy is a little too good, for every backbone alike. How a "
    "network serves frozen is only a sign of how it serves fine-tuned. The search was about the backbones that went "
    "on, and lp_ft started with the penalty that stands here, unless penalties had been asked for."
)


def screening_table(results: Results) -> Table:
    """For each backbone its best head, the best first, and whether the search went on with it; empty without one."""
    if results.screening is None:
        return Table((), ())
    decision, objective = results.screening, OBJECTIVES[results.screening["by"]]
    rows = []
    for name in (*decision["kept"], *decision["dropped"]):
        heads = [record for record in results.records if record.phase == "screen" and record.recipe["backbone"] == name]
        finished = [record for record in heads if record.status == "finished"]
        best = min(
            finished, key=lambda one: (-(objective.score(one.epochs) or 0.0), one.epochs[-1].val_loss), default=None
        )
        value = objective.value(best.epochs) if best else None
        rows.append(
            (
                escape_control_characters(name),
                "yes" if name in decision["kept"] else "no",
                format_choice(best.recipe["strategy"]) if best else "all failed",
                *((format_percent(value),) * (objective != ACCURACY)),
                _accuracy(best),
                format_setting(decision["penalties"].get(name, MISSING)),
                str(len(heads)),
            )
        )
    beside = (objective.label,) * (objective != ACCURACY)
    return Table(("backbone", "goes on", "best head", *beside, "validation", "lp_ft penalty", "heads"), tuple(rows))


def _accuracy(record: Record | None) -> str:
    if record is None or record.val is None:
        return format_percent(None)
    return format_accuracy_interval(record.val_accuracy, pooled_estimate([record.val]))
