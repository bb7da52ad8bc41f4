"""Rank the trials, as a list, a data frame and CSV, and tally them by strategy.

There is one ranking. If there are finals, it holds the finalists alone, by the mean of their final runs: a single
search run is not comparable with such a mean. Without finals, it holds all trials, by their search runs.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from statistics import median
from typing import TYPE_CHECKING, Any

from sweeps.reporting.class_accuracy import summarize_classes
from sweeps.reporting.finals import FinalsComparison, compare_finalists, control_key, rank_numbers
from sweeps.reporting.formatting import (
    DEFAULT_CHOICES,
    escape_control_characters,
    format_choice,
    format_status,
    join_words,
    pluralize,
    rare_settings,
)
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import Estimate
from xfer.records import Evaluation, Record
from xfer.storage.redaction import redact

if TYPE_CHECKING:
    import pandas as pd

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
    "steps",
    "test_flip_accuracy",
    *("val_worst_class", "val_worst_class_accuracy", "val_worst_class_ci_low", "val_worst_class_ci_high"),
    *("val_worst_class_images", "test_worst_class", "test_worst_class_accuracy", "test_worst_class_ci_low"),
    *("test_worst_class_ci_high", "test_worst_class_images"),
    "kept",
    "image_size",
    *("tied_with_best", "diff_to_best", "diff_low", "diff_high", "control"),
)
_INTEGER_COLUMNS = (
    "rank",
    "freeze_epochs",
    "batch_size",
    "epochs",
    "steps",
    "seeds",
    "val_images",
    "test_images",
    "test_noisy_images",
    "val_worst_class_images",
    "test_worst_class_images",
    "flops",
    "images_per_class",
    "views",
    "image_size",
)
_TEXT_COLUMNS = (
    *("trial", "strategy", "backbone", "optimizer", "schedule", "augmentation", "mixing", "loss", "status", "key"),
    *("objective", "on_front", "balance", "embedding_loss", "head", "activation", "batch_norm", "colour"),
    *("val_worst_class", "test_worst_class"),
    *("kept", "tied_with_best", "control"),
)
_NUMERIC_RARE_SETTINGS = ("body_rate", "clip_value", "images_per_class", "views", "drop_path")
_STATUS_ORDER = {"finished": 0, "pruned": 1, "failed": 2}


def ranked_trials(results: Results) -> list[RankedTrial]:
    """Order all trials, best first.

    The finalists come first (`ranked_finalists`), and the others follow by their search runs (`trials_by_search`).
    """
    finalists = ranked_finalists(results)
    names = {trial.name for trial in finalists}
    return [*finalists, *(trial for trial in trials_by_search(results) if trial.name not in names)]


def ranked_finalists(results: Results) -> list[RankedTrial]:
    """Rank the finalists, best first.

    They keep the order that was fixed before the last use of the test set: test results must not change it. That order
    and, before the first use, this one is by the mean of the deciding objective over the final runs, on the validation
    set. A trial that was a finalist only of an earlier start, or became one after the last use of the test set, is not
    among them.
    """
    finalists = [trial for trial in results.trials if trial.is_finalist]
    if results.openings:
        by_name = {trial.name: trial for trial in finalists}
        return [by_name[name] for name in results.openings[-1]["finalists"] if name in by_name]
    return sorted(finalists, key=lambda trial: -math.inf if trial.score is None else trial.score, reverse=True)


def best_value(results: Results) -> float | None:
    """Return the value by which the best trial ranks first, in the deciding objective; None if no trial finished."""
    best = next(iter(ranked_trials(results)), None)
    return best.value(results.objective) if best and (best.is_finalist or best.status == "finished") else None


def trials_by_search(results: Results) -> list[RankedTrial]:
    """Order all trials by their search run: finished ones by their score, then stopped and failed ones by epochs."""

    def sort_key(trial: RankedTrial) -> tuple[float, ...]:
        value = trial.search_value
        score = -math.inf if value is None else trial.objectives[0].to_score(value)
        epochs = 0 if trial.status == "finished" else len(trial.search.epochs)
        return _STATUS_ORDER[trial.status], -epochs, -score

    return sorted(results.trials, key=sort_key)


def ranking_frame(results: Results) -> pd.DataFrame:
    """Build a data frame with the columns `RANKING_COLUMNS` and one row per trial, best first.

    Accuracies and interval bounds are in [0, 1]; values that were not measured are missing. A finalist's values are
    means over its final runs; the validation accuracy of any other trial is that of its search run. `epochs` is the
    number of epochs of the search run, `seeds` the number of runs behind `val_accuracy`, and `seconds` the total time
    of search and final runs. `val_worst_class` and `test_worst_class` name the class with the lowest accuracy over the
    same runs, and further columns have its accuracy, interval and number of images. `objective` lists the objectives of
    the sweep. `diff_to_best`, `diff_low` and `diff_high` are a finalist's difference to the best of the other finalists
    and its simultaneous interval; finalists that may be the best (`tied_with_best`) share rank 1 (`rank_numbers`).
    `control` marks trials of the recipe that the plan names as the control. With two objectives, `on_front` says
    whether the trial is on the Pareto front. `gap` is training minus validation accuracy (`Epoch.gap`). `flops` counts
    the forward pass of one image.
    """
    import pandas as pd  # takes a second, and a sweep imports this module before its plan is written

    trials, comparison = ranked_trials(results), compare_finalists(results, ranked_finalists(results))
    ranks = rank_numbers([trial.name for trial in trials], comparison)
    rows = [
        _row(rank, trial, results) | _difference_cells(trial, comparison)
        for rank, trial in zip(ranks, trials, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=list(RANKING_COLUMNS))
    dtypes = {
        column: "Int64" if column in _INTEGER_COLUMNS else "object" if column in _TEXT_COLUMNS else "Float64"
        for column in RANKING_COLUMNS
    }
    return frame.astype(dtypes)


def ranking_csv(frame: pd.DataFrame) -> str:
    """Format the ranking as CSV in which no cell can act as a spreadsheet formula."""
    return frame.map(_escape_formula).to_csv(index=False, lineterminator="\n")


def ranking_parquet(frame: pd.DataFrame) -> bytes:
    """Format the ranking as a Parquet file: the columns and types of the data frame, without passwords."""
    redacted = {name: frame[name].map(redact, na_action="ignore") for name in _TEXT_COLUMNS}
    return bytes(frame.assign(**redacted).to_parquet(index=False))


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
    """Best first, as in the ranking."""
    finalist: RankedTrial | None = None
    """Its best finalist; None if none of its trials is one."""

    @property
    def representative(self) -> RankedTrial | None:
        """The trial that stands for the strategy: its best finalist, else its best finished trial, else None."""
        finished = (trial for trial in self.trials if trial.status == "finished" and trial.search_value is not None)
        return self.finalist or next(finished, None)

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

    @property
    def why_unfinished(self) -> str:
        """Why there is nothing to compare: how its trials ended, as in "2 trials stopped early"; "" if one finished."""
        if self.representative is not None:
            return ""
        counts = self.counts
        ends = [f"{pluralize(counts[status], 'trial')} {format_status(status)}" for status in counts]
        return join_words(ends)


def tally_by_strategy(results: Results) -> list[StrategyTally]:
    """Tally the trials by strategy, in the order of the ranking: by their best finalist, then by their best trial."""
    finalists = {trial.name for trial in ranked_finalists(results)}
    by_strategy: dict[str, list[RankedTrial]] = defaultdict(list)
    for trial in ranked_trials(results):
        by_strategy[trial.strategy].append(trial)
    return [
        StrategyTally(strategy, tuple(trials), next((trial for trial in trials if trial.name in finalists), None))
        for strategy, trials in by_strategy.items()
    ]


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
        "steps": results.steps(trial.search),
        "status": trial.status,
        "val_accuracy": trial.val_accuracy,
        "seeds": trial.seeds,
        "seconds": trial.seconds,
        **_estimate_cells("val", trial.validation),
        **_estimate_cells("test", trial.test),
        "control": _control_cell(trial, control_key(results)),
        "test_accuracy": trial.test.mean if trial.test else None,
        "search_val_accuracy": trial.search_accuracy,
        "key": trial.search.key,
        "objective": ",".join(objective.name for objective in results.objectives),
        "on_front": ("yes" if trial.name in results.pareto_front else "no") if results.objectives[1:] else None,
        **{name: trial.mean(partial(_last_epoch_value, name)) for name in _EPOCH_FIELDS},
        **{f"test_{name}": trial.test_mean(attrgetter(name)) for name in _EVALUATION_FIELDS},
        "test_noisy_images": _noisy_images(trial),
        **_worst_class_cells("val", trial.val_evaluations, results),
        **_worst_class_cells("test", trial.test_evaluations, results),
        "kept": trial.kept or None,
        "image_size": recipe["image_size"],
        "start_accuracy": trial.mean(attrgetter("start_accuracy")),
        "flops": trial.search.flops,
        **rare_settings(recipe),
        **{setting: recipe.get(setting, DEFAULT_CHOICES[setting]) for setting in _NUMERIC_RARE_SETTINGS},
    }


def _control_cell(trial: RankedTrial, control: str | None) -> str | None:
    if control is None:
        return None
    return "yes" if trial.search.key == control else "no"


def _difference_cells(trial: RankedTrial, comparison: FinalsComparison | None) -> dict[str, Any]:
    if comparison is None or trial.name not in comparison.by_name:
        return {}
    to_best = comparison.by_name[trial.name]
    return {
        "tied_with_best": "yes" if to_best.tied else "no",
        "diff_to_best": to_best.mean,
        "diff_low": to_best.low,
        "diff_high": to_best.high,
    }


_EPOCH_FIELDS = (
    *("val_loss", "val_balanced_accuracy", "val_top5_accuracy", "val_calibration_error", "val_noisy_accuracy"),
    *("gap", "distance", "peak_memory_mb"),
)
_EVALUATION_FIELDS = (
    *("loss", "balanced_accuracy", "top5_accuracy", "calibration_error", "noisy_accuracy", "flip_accuracy"),
)


def _last_epoch_value(name: str, record: Record) -> float | None:
    value: float | None = getattr(record.epochs[-1], name) if record.epochs else None
    return value


def _noisy_images(trial: RankedTrial) -> int | None:
    """Number of images behind the accuracy under noise on the test set; None if not measured."""
    return min((record.test.noisy_images for record in trial.finals if record.test and record.test.noisy), default=None)


def _worst_class_cells(split: str, evaluations: Sequence[Evaluation], results: Results) -> dict[str, Any]:
    summary = summarize_classes(evaluations, results.plan["data"]["classes"])
    if summary is None:
        return {}
    return {
        f"{split}_worst_class": escape_control_characters(summary.worst),
        f"{split}_worst_class_accuracy": summary.accuracy,
        f"{split}_worst_class_ci_low": summary.low,
        f"{split}_worst_class_ci_high": summary.high,
        f"{split}_worst_class_images": summary.images,
    }


def _estimate_cells(split: str, estimate: Estimate | None) -> dict[str, float | int]:
    if estimate is None:
        return {}
    return {f"{split}_ci_low": estimate.low, f"{split}_ci_high": estimate.high, f"{split}_images": estimate.images}
