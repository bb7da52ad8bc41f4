"""What heads on frozen features said of each backbone, before the search."""

from __future__ import annotations

from sweeps.reporting.results import Results
from sweeps.reporting.statistics import pooled
from sweeps.reporting.tables import Table, with_interval
from sweeps.reporting.words import describe, percent, visible
from xfer.objectives import ACCURACY, OBJECTIVES
from xfer.records import Record

IN_WORDS = (
    "Heads in closed form on what each frozen backbone makes of the images, on the validation part, each under several "
    "penalties: the best of them is shown, so its accuracy is a little too good, for every backbone alike. How a "
    "network serves frozen is only a sign of how it serves fine-tuned; what was left out was not fine-tuned."
)


def screening(results: Results) -> Table:
    """For each backbone its best head, the best first, and whether the search went on with it; empty without one."""
    header = ("backbone", "goes on", "best head", "validation", "heads")
    decision = results.screening
    if decision is None:
        return Table(header, ())
    objective = OBJECTIVES.get(str(decision["by"]), ACCURACY)
    rows = []
    for name in (*decision["kept"], *decision["dropped"]):
        heads = [record for record in results.records if record.phase == "screen" and record.recipe["backbone"] == name]
        finished = [record for record in heads if record.status == "finished"]
        best = max(finished, key=lambda record: objective.score(record.epochs) or 0.0, default=None)
        rows.append(
            (
                visible(name),
                "yes" if name in decision["kept"] else "no",
                describe(best.recipe["strategy"]) if best else "all failed",
                _accuracy(best),
                str(len(heads)),
            )
        )
    return Table(header, tuple(rows))


def _accuracy(record: Record | None) -> str:
    if record is None or record.val is None:
        return percent(None)
    return with_interval(record.val_accuracy, pooled([record.val]))
