"""Who came where: trials in order, as a table, as CSV, and strategy by strategy."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from statistics import median
from typing import Any

import pandas as pd

from sweeps.reporting.formatting import DEFAULT_CHOICES, escape_control_characters, format_choice, rare_settings
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import Estimate
from xfer.records import Record

RANKING_COLUMNS = (
    *("rank", "trial", "strategy", "freeze_epochs", "clip_norm", "backbone", "optimizer", "schedule"),
    *("augmentation", "mixing", "loss", "learning_rate", "weight_decay", "batch_size", "epochs", "status"),
    *("val_accuracy", "test_accuracy", "test_ci_low", "test_ci_high", "seeds", "seconds"),
    *("val_ci_low", "val_ci_high", "val_images", "test_images", "search_val_accuracy", "key"),
    *("objective", "on_front", "val_loss", "val_balanced_accuracy", "val_top5_accuracy", "val_calibration_error"),
    *("val_noisy_accuracy", "test_loss", "test_balanced_accuracy", "test_top5_accuracy", "test_calibration_error"),
    *("test_noisy_accuracy", "gap", "distance", "start_accuracy", "flops", "peak_memory_mb"),
    *DEFAULT_CHOICES,
)
_WHOLE = (
    "rank",
    "freeze_epochs",
    "batch_size",
    "epochs",
    "seeds",
    "val_images",
    "test_images",
    "flops",
    "images_per_class",
    "views",
)
_TEXT = (
    *("trial", "strategy", "backbone", "optimizer", "schedule", "augmentation", "mixing", "loss", "status", "key"),
    *("objective", "on_front", "embedding_loss", "head", "activation", "batch_norm", "colour"),
)

_NUMBERS = ("body_rate", "clip_value", "images_per_class", "views")
"""Of the settings that are rarely changed those that stay numbers."""

_PLACE = {"finished": 1, "pruned": 2, "failed": 3}  # finalists stand before them, at 0


def ranked_trials(results: Results) -> list[RankedTrial]:
    """All trials, best first.

    Finalists stand first, in the order that was fixed before the test part was last opened: what the test part said
    must not move them. Before it is opened they go by the mean of their final runs on the validation part, in the
    objective that decides. Then come the other finished trials by the same, and pruned and failed ones by how far they
    got.
    """
    fixed_order = list(results.openings[-1]["finalists"]) if results.openings else []

    def place(trial: RankedTrial) -> tuple[float, ...]:
        score = -math.inf if trial.score is None else trial.score
        if trial.is_finalist:
            opened = fixed_order.index(trial.name) if trial.name in fixed_order else len(fixed_order)
            return 0, opened, -score
        reached = 0 if trial.status == "finished" else len(trial.search.epochs)
        return _PLACE[trial.status], -reached, -score

    return sorted(results.trials, key=place)


def ranking_frame(results: Results) -> pd.DataFrame:
    """One row for each trial, best first, with the columns `RANKING_COLUMNS`.

    Accuracies and interval ends are in [0, 1]. A finalist's are means over its final runs, any other trial's
    validation accuracy is that of its search run; what was not measured is missing. `epochs` counts the epochs that
    were trained in the search, `seeds` the runs behind `val_accuracy`, `seconds` search and final runs together.
    `objective` says what the sweep searched for, and `pareto_mask`, where that were two things, who is beaten by none in
    both. `gap` is training minus validation accuracy (`Epoch.gap`), `flops` are those of one image's way forward.
    """
    rows = [_row(rank, trial, results) for rank, trial in enumerate(ranked_trials(results), start=1)]
    frame = pd.DataFrame(rows, columns=list(RANKING_COLUMNS))
    types = {
        column: "Int64" if column in _WHOLE else "object" if column in _TEXT else "Float64"
        for column in RANKING_COLUMNS
    }
    return frame.astype(types)


def ranking_csv(frame: pd.DataFrame) -> str:
    """The ranking as CSV that a spreadsheet takes for data, whatever its cells say."""
    return frame.map(_no_formula).to_csv(index=False, lineterminator="\n")


def _no_formula(cell: Any) -> Any:
    """A cell with an apostrophe in front of any text that a spreadsheet would run as a formula (OWASP, CSV injection).

    Numbers stay numbers. Full-width signs count as well: some spreadsheets run them too.
    """
    if not isinstance(cell, str):
        return cell
    first = unicodedata.normalize("NFKC", cell).lstrip(" ")[:1]
    return f"'{cell}" if first in set("=+-@\t\r") else cell


@dataclass(frozen=True)
class StrategyTally:
    """How the trials of one strategy went."""

    strategy: str
    trials: tuple[RankedTrial, ...]

    @property
    def accuracies(self) -> list[float]:
        """What its finished search runs reached on the validation part: one seed each, so strategies compare."""
        return [t.search_accuracy for t in self.trials if t.status == "finished" and t.search_accuracy is not None]

    @property
    def values(self) -> list[float]:
        """What they reached in the objective that decides."""
        return [t.search_value for t in self.trials if t.status == "finished" and t.search_value is not None]

    @property
    def best(self) -> float | None:
        """The best of `values`; None if no trial finished."""
        return max(self.values, key=self.trials[0].objectives[0].to_score, default=None)

    @property
    def median_value(self) -> float | None:
        """The median of `values`; None if no trial finished."""
        return median(self.values) if self.values else None

    @property
    def counts(self) -> Counter[str]:
        """How many trials finished, were pruned and failed."""
        return Counter(trial.status for trial in self.trials)


def tally_by_strategy(trials: Iterable[RankedTrial]) -> list[StrategyTally]:
    """A tally for each strategy, the one with the best finished trial first."""
    members: dict[str, list[RankedTrial]] = defaultdict(list)
    for trial in trials:
        members[trial.strategy].append(trial)
    tallies = [StrategyTally(strategy, tuple(group)) for strategy, group in members.items()]
    return sorted(tallies, key=lambda tally: (-_score(tally), tally.strategy))


def _score(tally: StrategyTally) -> float:
    return -math.inf if tally.best is None else tally.trials[0].objectives[0].to_score(tally.best)


def _row(rank: int, trial: RankedTrial, results: Results) -> dict[str, Any]:
    recipe = trial.search.recipe
    choices = ("optimizer", "schedule", "augmentation", "mixing", "loss")
    return {
        "rank": rank,
        "trial": escape_control_characters(trial.name),
        "strategy": format_choice(recipe["strategy"], leave_out=frozenset({"freeze_epochs"})),
        "freeze_epochs": recipe["strategy"].get("freeze_epochs"),
        "clip_norm": recipe["clip_norm"],
        "backbone": format_choice({"name": recipe["backbone"], **recipe["backbone_args"]}),
        **{choice: format_choice(recipe[choice]) for choice in choices},
        **{setting: recipe[setting] for setting in ("learning_rate", "weight_decay", "batch_size")},
        "epochs": len(trial.search.epochs),
        "status": trial.status,
        "val_accuracy": trial.val_accuracy,
        "seeds": trial.seeds,
        "seconds": trial.seconds,
        **_estimated("val", trial.validation),
        **_estimated("test", trial.test),
        "test_accuracy": trial.test.mean if trial.test else None,
        "search_val_accuracy": trial.search_accuracy,
        "key": trial.search.key,
        "objective": ",".join(each.name for each in results.objectives),
        "on_front": ("yes" if trial.name in results.pareto_front else "no") if results.objectives[1:] else None,
        **{name: trial.mean(partial(_last, name)) for name in _PER_EPOCH},
        **{f"test_{name}": trial.test_mean(attrgetter(name)) for name in _PER_PART},
        "start_accuracy": trial.mean(attrgetter("start_accuracy")),
        "flops": trial.search.flops,
        **rare_settings(recipe),
        **{setting: recipe.get(setting, DEFAULT_CHOICES[setting]) for setting in _NUMBERS},
    }


_PER_EPOCH = (
    *("val_loss", "val_balanced_accuracy", "val_top5_accuracy", "val_calibration_error", "val_noisy_accuracy"),
    *("gap", "distance", "peak_memory_mb"),
)
_PER_PART = ("loss", "balanced_accuracy", "top5_accuracy", "calibration_error", "noisy_accuracy")


def _last(name: str, record: Record) -> float | None:
    """What an epoch's field was after the last one."""
    value: float | None = getattr(record.epochs[-1], name) if record.epochs else None
    return value


def _estimated(part: str, estimate: Estimate | None) -> dict[str, float | int | None]:
    if estimate is None:
        return {}
    return {f"{part}_ci_low": estimate.low, f"{part}_ci_high": estimate.high, f"{part}_images": estimate.images}
