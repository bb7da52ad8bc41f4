"""What heads on frozen features said of each backbone, before the search."""

from __future__ import annotations

from sweeps.reporting.formatting import MISSING, describe, number, percent, visible
from sweeps.reporting.results import Results
from sweeps.reporting.statistics import pooled
from sweeps.reporting.tables import Table, with_interval
from xfer.objectives import ACCURACY, OBJECTIVES
from xfer.records import Record

IN_WORDS = (
    "Heads in closed form on what each frozen backbone makes of the images, on the validation part, under several "
    "penalties: the best of them is shown, so its accuracy is a little too good, for every backbone alike. How a "
    "network serves frozen is only a sign of how it serves fine-tuned. The search was about the backbones that went "
    "on, and lp_ft started with the penalty that stands here, unless penalties had been asked for."
)


def screening(results: Results) -> Table:
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
                visible(name),
                "yes" if name in decision["kept"] else "no",
                describe(best.recipe["strategy"]) if best else "all failed",
                *((percent(value),) * (objective != ACCURACY)),
                _accuracy(best),
                number(decision["penalties"].get(name, MISSING)),
                str(len(heads)),
            )
        )
    beside = (objective.label,) * (objective != ACCURACY)
    return Table(("backbone", "goes on", "best head", *beside, "validation", "lp_ft penalty", "heads"), tuple(rows))


def _accuracy(record: Record | None) -> str:
    if record is None or record.val is None:
        return percent(None)
    return with_interval(record.val_accuracy, pooled([record.val]))
