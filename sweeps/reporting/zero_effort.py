"""Zero-effort rows of a report: nearest neighbours, a logistic probe and zero-shot, without training of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sweeps.reporting.formatting import (
    MISSING,
    escape_control_characters,
    format_estimate,
    format_interval,
    format_percent,
    format_setting,
    pluralize,
)
from sweeps.reporting.ranking import ranked_trials
from sweeps.reporting.results import Results
from sweeps.reporting.statistics import Estimate, estimate_accuracy
from sweeps.reporting.tables import Table, format_accuracy_interval
from xfer.measure.zero_effort import KNN, LOGISTIC_PROBE, ZERO_SHOT, Row, row_label

PART_NAMES = {"val": "validation", "test": "test"}

ZERO_EFFORT_CAPTION = (
    "Classifiers on frozen features of the pretrained network, which itself was not trained: a vote of the k nearest "
    "training images (cosine similarity, weighted as by Caron et al. 2021), and a logistic probe whose penalty was "
    "chosen by cross-validation on training images. Zero-shot rows, if an image-text network was given, compare images "
    "with sentences about the class names and use no training images (Radford et al. 2021). All rows were measured "
    "before the search and are never ranked. "
    "The test set was used for them only after it had been opened for the finalists."
)


def row_estimate(row: Row) -> Estimate:
    """Return the accuracy of a stored row with its 95% interval (Wilson 1927), over images only."""
    images = np.arange(row["images"])
    return estimate_accuracy(seed=np.zeros_like(images), image=images, correct=images < row["correct"])


def describe_rows(decision: Mapping[str, Any]) -> list[str]:
    """Describe stored rows for the console, one line per backbone, and why a backbone has none."""
    backbones = list(dict.fromkeys(row["backbone"] for row in decision["rows"]))
    lines = []
    for name in backbones:
        rows = [row for row in decision["rows"] if row["backbone"] == name]
        accuracies = []
        for row in rows:
            estimate = row_estimate(row)
            interval = format_interval(estimate.low, estimate.high)
            accuracies.append(f"{row_label(row)} {format_percent(estimate.mean)} ({interval})")
        images = pluralize(rows[0]["images"], f"{PART_NAMES[decision['part']]} image")
        is_named = len(backbones) > 1 or decision["why_none"] or rows[0]["method"] == ZERO_SHOT
        of_backbone = f", {name}" if is_named else ""
        lines.append(f"before any training{of_backbone}: {', '.join(accuracies)} of {images}")
    failed = decision["why_none"].items()
    return [*lines, *(f"before any training, {name}: not measured ({reason})" for name, reason in failed)]


def zero_effort_table(results: Results) -> Table:
    """Show the rows with their accuracies on the validation set and, once it has been opened, on the test set.

    Returns:
        A table without rows if nothing was measured.
    """
    val, test = _rows(results, "val"), _rows(results, "test")
    if not val:
        return Table((), ())
    rows = []
    for key, row in val.items():
        estimates = [row_estimate(row), *((row_estimate(test[key]) if key in test else None,) * bool(test))]
        rows.append(
            (
                escape_control_characters(row["backbone"]),
                row_label(row),
                *(MISSING if of is None else format_accuracy_interval(of.mean, of) for of in estimates),
                *(str(of["images"]) if of else MISSING for of in (row, *((test.get(key),) * bool(test)))),
                str(row["train_images"]),
                format_setting(row["penalty"]) if "penalty" in row else MISSING,
            )
        )
    header = ("backbone", "without training", "validation", *(("test",) * bool(test)))
    counts = ("validation images", *(("test images",) * bool(test)), "training images", "penalty")
    return Table((*header, *counts), tuple(rows))


def knn_accuracies(results: Results) -> dict[str, str]:
    """Return the validation accuracy of nearest neighbours by backbone, with its interval; the smallest k counts."""
    accuracies: dict[str, str] = {}
    for row in _rows(results, "val").values():
        if row["method"] == KNN:
            estimate = row_estimate(row)
            accuracies.setdefault(row["backbone"], format_accuracy_interval(estimate.mean, estimate))
    return accuracies


def best_rows(results: Results, split: str) -> list[tuple[str, str, Estimate]]:
    """Return the best row of nearest neighbours, logistic probe and zero-shot, chosen by validation accuracy.

    Args:
        results: of the sweep.
        split: `test` for accuracies on the test set where it has been opened for these rows, else `validation`.

    Returns:
        Label, set and estimate of each row; empty if nothing was measured.
    """
    val, test = _rows(results, "val"), _rows(results, "test")
    best = []
    for method in (KNN, LOGISTIC_PROBE, ZERO_SHOT):
        keys = [key for key, row in val.items() if row["method"] == method]
        if keys:
            key = max(keys, key=lambda key: val[key]["correct"] / val[key]["images"])
            on_test = split == "test" and key in test
            row = test[key] if on_test else val[key]
            best.append((row_label(row), PART_NAMES["test" if on_test else "val"], row_estimate(row)))
    return best


def zero_effort_comparison(results: Results) -> str | None:
    """Compare the winner with the best row in two sentences; None if either is missing.

    The best row is the one with the highest validation accuracy, the first of equals. Both numbers are of the test set
    once it has been opened for both.
    """
    val, test = _rows(results, "val"), _rows(results, "test")
    winner = next(iter(ranked_trials(results)), None)
    if winner is None or not val or not (winner.is_finalist or winner.status == "finished"):
        return None
    on_test = winner.test is not None and bool(test)
    keys = [key for key in val if key in test] if on_test else list(val)
    of_winner = winner.test if on_test else winner.validation
    if not keys or of_winner is None:
        return None
    best = max(keys, key=lambda key: val[key]["correct"] / val[key]["images"])
    row = test[best] if on_test else val[best]
    estimate = row_estimate(row)
    points = round(100 * (of_winner.mean - estimate.mean), 1)
    difference = f"{abs(points):.1f} points {'higher' if points > 0 else 'lower'}" if points else "the same"
    label = f"a {row_label(row)}" if row["method"] == LOGISTIC_PROBE else row_label(row)
    link = "with" if row["method"] == ZERO_SHOT else "on frozen features of"
    sentence = (
        f"Without any training, {label} {link} {escape_control_characters(row['backbone'])} reaches "
        f"{format_estimate(estimate)} on the {PART_NAMES['test' if on_test else 'val']} set; the winner reaches "
        f"{format_estimate(of_winner)}, {difference}."
    )
    verdict = "" if points > 0 else " The winner does not beat this, the cheapest method."
    if of_winner.overlaps(estimate):
        verdict += " The intervals overlap: it is not settled that anything trained here is better than that."
    return sentence + verdict


def _rows(results: Results, part: str) -> dict[tuple[Any, ...], Row]:
    """Return the rows of a part by what identifies them on both parts."""
    rows: Sequence[Row] = [row for of in results.zero_effort if of["part"] == part for row in of["rows"]]
    return {(row["backbone"], row["method"], row.get("k", row.get("prompts"))): row for row in rows}
