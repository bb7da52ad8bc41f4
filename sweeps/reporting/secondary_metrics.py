"""What there is to know beside accuracy: calibration, noise and confusion, and what transfer brought."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from sweeps.reporting.formatting import (
    escape_control_characters,
    format_choice,
    format_percent,
    format_percentage_points,
    join_words,
    pluralize,
)
from sweeps.reporting.ranking import ranked_trials
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.tables import Table
from xfer.measure.benefits import TransferBenefits, accuracy_curve, transfer_benefits
from xfer.records import Evaluation

BASELINE = "scratch"
"""The strategy that transfers nothing: what the others are held against."""
NUM_CONFUSED_PAIRS = 3
"""How many pairs of classes are named for each finalist."""

SECONDARY_METRICS_CAPTION = (
    "The finalists on the test part, as means over their seeds. Balanced accuracy counts every class the same. "
    "Calibration error is how far the probability of the most likely class lies from how often it is the right one; "
    "lower is better. Under noise is the mean over the kinds of noise beside it, each at five severities. None of it "
    "has an interval here, and small differences are chance."
)
TRANSFER_BENEFITS_CAPTION = (
    "The validation accuracy of each strategy's best search run minus that of the best run from scratch on the same "
    "backbone, in percentage points: before the first step (start), after the first epoch (early), the gain in each "
    "epoch until half of the rise is done (slope), and where the curve converges (asymptote). A strategy that starts "
    "high has less left to gain, so its slope may well be lower. Each run has its own optimizer and rate, and each is "
    "one seed: these are differences between recipes."
)


def secondary_metrics_table(results: Results) -> Table:
    """What else the test part said of the finalists, in their order; no rows before it was opened.

    Means over a finalist's seeds. What was not measured, as in sweeps of older versions, has no column.
    """
    tested = [trial for trial in ranked_trials(results) if trial.test]
    kinds = dict.fromkeys(
        noisy.kind for trial in tested for record in trial.finals if record.test for noisy in record.test.noisy
    )
    columns: dict[str, Callable[[Evaluation], float | None]] = {
        "top-5": lambda on: on.top5_accuracy,
        "balanced": lambda on: on.balanced_accuracy,
        "calibration error": lambda on: on.calibration_error,
        "under noise": lambda on: on.noisy_accuracy,
        **{kind: _under(kind) for kind in kinds},
    }
    cells = {name: [trial.test_mean(read) for trial in tested] for name, read in columns.items()}
    known = {name: values for name, values in cells.items() if any(value is not None for value in values)}
    rows = [
        (
            escape_control_characters(trial.name),
            format_choice(trial.search.recipe["strategy"]),
            format_percent(trial.test.mean if trial.test else None),
            *(format_percent(values[place]) for values in known.values()),
        )
        for place, trial in enumerate(tested)
    ]
    return Table(
        ("trial", "strategy", "accuracy", *map(escape_control_characters, known)), tuple(rows) if known else ()
    )


def most_confused(results: Results) -> list[str]:
    """For each finalist, the pairs of classes that it took for each other most often on the test part; a sentence."""
    classes = results.plan["data"]["classes"]
    said = []
    for trial in ranked_trials(results):
        wrong: Counter[tuple[int, int]] = Counter()
        tests = [record.test for record in trial.finals if record.test and record.test.confusion]
        for test in tests:
            wrong.update({(true, taken): count for true, taken, count in test.confusion if true != taken})
        if not tests or not wrong:
            continue
        first = sorted(wrong.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_CONFUSED_PAIRS]
        pairs = [f"{_name(classes, true)} for {_name(classes, taken)} ({count})" for (true, taken), count in first]
        total = sum(len(test.images) for test in tests)
        said.append(
            f"{escape_control_characters(trial.name)} was wrong {pluralize(wrong.total(), 'time')} in {total:,} looks at a test image, "
            f"most often taking {join_words(pairs)}."
        )
    return said


def transfer_benefits_table(results: Results) -> Table:
    """Each strategy's best search run held against the best one from scratch on the same backbone.

    Start, early, slope and asymptote are differences in validation accuracy (`xfer.measure.benefits`); no rows where
    nothing from scratch finished, or in sweeps of older versions, which do not know how a run started.
    """
    best: dict[tuple[str, str], RankedTrial] = {}
    for trial in sorted(filter(_has_curve, results.trials), key=lambda trial: (-_accuracy(trial), trial.name)):
        best.setdefault((format_choice(_backbone(trial)), trial.strategy), trial)
    rows = []
    for (backbone, strategy), trial in best.items():
        bare = best.get((backbone, BASELINE))
        if bare is None or strategy == BASELINE:
            continue
        brought = transfer_benefits(accuracy_curve(trial.search), accuracy_curve(bare.search))
        against = f"{escape_control_characters(trial.name)} against {escape_control_characters(bare.name)}"
        rows.append((escape_control_characters(strategy), backbone, against, *_differences(brought)))
    return Table(("strategy", "backbone", "trials", "start", "early", "slope", "asymptote"), tuple(rows))


def _differences(brought: TransferBenefits) -> Sequence[str]:
    slope = f"{format_percentage_points(brought.slope)} an epoch"
    return (
        format_percentage_points(brought.start),
        format_percentage_points(brought.early),
        slope,
        format_percentage_points(brought.asymptote),
    )


def _under(kind: str) -> Callable[[Evaluation], float | None]:
    def accuracy(on: Evaluation) -> float | None:
        found = [noisy.accuracy for noisy in on.noisy if noisy.kind == kind]
        return fmean(found) if found else None

    return accuracy


def _has_curve(trial: RankedTrial) -> bool:
    run = trial.search
    whole = all(math.isfinite(epoch.val_accuracy) for epoch in run.epochs)
    return run.status == "finished" and run.start_accuracy is not None and bool(run.epochs) and whole


def _accuracy(trial: RankedTrial) -> float:
    assert trial.search_accuracy is not None, "only trials with a curve are compared"
    return trial.search_accuracy


def _backbone(trial: RankedTrial) -> dict[str, object]:
    recipe = trial.search.recipe
    return {"name": recipe["backbone"], **recipe["backbone_args"]}


def _name(classes: Sequence[str], place: int) -> str:
    return escape_control_characters(classes[place] if place < len(classes) else f"class {place}")
