"""Rank the trials, as a list, a data frame and CSV, and tally them by strategy."""

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
    "test_noisy_images",
)
_INTEGER_COLUMNS = (
    "rank",
    "freeze_epochs",
    "batch_size",
    "epochs",
    "seeds",
    "val_images",
    "test_images",
    "test_noisy_images",
    "flops",
    "images_per_class",
    "views",
)
_TEXT_COLUMNS = (
    *("trial", "strategy", "backbone", "optimizer", "schedule", "augmentation", "mixing", "loss", "status", "key"),
    *("objective", "on_front", "embedding_loss", "head", "activation", "batch_norm", "colour"),
)
_NUMERIC_RARE_SETTINGS = ("body_rate", "clip_value", "images_per_class", "views")
_STATUS_ORDER = {"finished": 1, "pruned": 2, "failed": 3}  # finalists come first, at 0


def ranked_trials(results: Results) -> list[RankedTrial]:
    """Rank all trials, best first.

    Finalists come first, in the order that was fixed before the last use of the test set: test results must not change
    it. Before the first use they are ordered by the mean of the deciding objective over their final runs, on the
    validation set. The other finished trials follow by the same score, then pruned and failed trials by the number of
    epochs they completed.
    """
    fixed_order = list(results.openings[-1]["finalists"]) if results.openings else []

    def sort_key(trial: RankedTrial) -> tuple[float, ...]:
        score = -math.inf if trial.score is None else trial.score
        if trial.is_finalist:
            position = fixed_order.index(trial.name) if trial.name in fixed_order else len(fixed_order)
            return 0, position, -score
        epochs = 0 if trial.status == "finished" else len(trial.search.epochs)
        return _STATUS_ORDER[trial.status], -epochs, -score

    return sorted(results.trials, key=sort_key)


def ranking_frame(results: Results) -> pd.DataFrame:
    """Build a data frame with the columns `RANKING_COLUMNS` and one row per trial, best first.

    Accuracies and interval bounds are in [0, 1]; values that were not measured are missing. A finalist's values are
    means over its final runs; the validation accuracy of any other trial is that of its search run. `epochs` is the
    number of epochs of the search run, `seeds` the number of runs behind `val_accuracy`, and `seconds` the total time
    of search and final runs. `objective` lists the objectives of the sweep. With two objectives, `on_front` says
    whether the trial is on the Pareto front. `gap` is training minus validation accuracy (`Epoch.gap`). `flops` counts
    the forward pass of one image.
    """
    rows = [_row(rank, trial, results) for rank, trial in enumerate(ranked_trials(results), start=1)]
    frame = pd.DataFrame(rows, columns=list(RANKING_COLUMNS))
    dtypes = {
        column: "Int64" if column in _INTEGER_COLUMNS else "object" if column in _TEXT_COLUMNS else "Float64"
        for column in RANKING_COLUMNS
    }
    return frame.astype(dtypes)


def ranking_csv(frame: pd.DataFrame) -> str:
    """Format the ranking as CSV in which no cell can act as a spreadsheet formula."""
    return frame.map(_escape_formula).to_csv(index=False, lineterminator="\n")


def _escape_formula(cell: Any) -> Any:
    """Prefix text that a spreadsheet would evaluate as a formula with an apostrophe (OWASP, CSV injection).

    Numbers are left unchanged. Full-width signs are escaped too, because some spreadsheets evaluate them.
    """
    if not isinstance(cell, str):
        return cell
    first = unicodedata.normalize("NFKC", cell).lstrip(" ")[:1]
    return f"'{cell}" if first in set("=+-@\t\r") else cell


@dataclass(frozen=True)
class StrategyTally:
    """Results of all trials of one strategy."""

    strategy: str
    trials: tuple[RankedTrial, ...]

    @property
    def accuracies(self) -> list[float]:
        """Validation accuracies of the finished search runs: one seed each, so strategies are comparable."""
        return [t.search_accuracy for t in self.trials if t.status == "finished" and t.search_accuracy is not None]

    @property
    def values(self) -> list[float]:
        """Values of the deciding objective of the finished search runs."""
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
        """Number of trials by status."""
        return Counter(trial.status for trial in self.trials)


def tally_by_strategy(trials: Iterable[RankedTrial]) -> list[StrategyTally]:
    """Tally the trials by strategy, the strategy with the best finished trial first."""
    by_strategy: dict[str, list[RankedTrial]] = defaultdict(list)
    for trial in trials:
        by_strategy[trial.strategy].append(trial)
    tallies = [StrategyTally(strategy, tuple(group)) for strategy, group in by_strategy.items()]
    return sorted(tallies, key=lambda tally: (-_score(tally), tally.strategy))


def _score(tally: StrategyTally) -> float:
    return -math.inf if tally.best is None else tally.trials[0].objectives[0].to_score(tally.best)


def _row(rank: int, trial: RankedTrial, results: Results) -> dict[str, Any]:
    recipe = trial.search.recipe
    choices = ("optimizer", "schedule", "augmentation", "mixing", "loss")
    return {
        "rank": rank,
        "trial": escape_control_characters(trial.name),
        "strategy": format_choice(recipe["strategy"], omit=frozenset({"freeze_epochs"})),
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
        **_estimate_cells("val", trial.validation),
        **_estimate_cells("test", trial.test),
        "test_accuracy": trial.test.mean if trial.test else None,
        "search_val_accuracy": trial.search_accuracy,
        "key": trial.search.key,
        "objective": ",".join(objective.name for objective in results.objectives),
        "on_front": ("yes" if trial.name in results.pareto_front else "no") if results.objectives[1:] else None,
        **{name: trial.mean(partial(_last_epoch_value, name)) for name in _EPOCH_FIELDS},
        **{f"test_{name}": trial.test_mean(attrgetter(name)) for name in _EVALUATION_FIELDS},
        "test_noisy_images": _noisy_images(trial),
        "start_accuracy": trial.mean(attrgetter("start_accuracy")),
        "flops": trial.search.flops,
        **rare_settings(recipe),
        **{setting: recipe.get(setting, DEFAULT_CHOICES[setting]) for setting in _NUMERIC_RARE_SETTINGS},
    }


_EPOCH_FIELDS = (
    *("val_loss", "val_balanced_accuracy", "val_top5_accuracy", "val_calibration_error", "val_noisy_accuracy"),
    *("gap", "distance", "peak_memory_mb"),
)
_EVALUATION_FIELDS = ("loss", "balanced_accuracy", "top5_accuracy", "calibration_error", "noisy_accuracy")


def _last_epoch_value(name: str, record: Record) -> float | None:
    value: float | None = getattr(record.epochs[-1], name) if record.epochs else None
    return value


def _noisy_images(trial: RankedTrial) -> int | None:
    """Number of images behind the accuracy under noise on the test set; None if not measured."""
    return min((record.test.noisy_images for record in trial.finals if record.test and record.test.noisy), default=None)


def _estimate_cells(split: str, estimate: Estimate | None) -> dict[str, float | int]:
    if estimate is None:
        return {}
    return {f"{split}_ci_low": estimate.low, f"{split}_ci_high": estimate.high, f"{split}_images": estimate.images}
