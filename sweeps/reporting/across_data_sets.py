"""Compare methods across data sets: mean ranks with a critical difference, differences and interquartile means.

A method is a strategy, represented in each sweep by its best search run, or a classifier on frozen features without
training. All of a sweep's values are of the same validation images, and only methods that every sweep has are compared,
so that each has a rank on each data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeps.reporting.formatting import join_words
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import CONFIDENCE, Estimate
from sweeps.reporting.zero_effort import best_rows

Array = NDArray[np.float64]

BOOTSTRAP_DRAWS = 4000
MIN_METHODS = 2
FEW_DATA_SETS = 5
"""Number of data sets below which the conclusions begin with a warning."""
SAME_METHOD = {"logistic probe, no training": "logistic_probe"}
"""Classifiers on frozen features that are a strategy too: where all sweeps have tried that, only it is compared."""


@dataclass(frozen=True)
class MethodAccuracy:
    """Accuracy of a method on the validation images of a sweep."""

    estimate: Estimate
    correct: Array
    """[N], 1 for each image that was classified correctly and 0 for the others; only its order may be unknown."""
    runs: int
    """Finished search runs of the method, of which this is the best; 0 without training."""


@dataclass(frozen=True)
class Gap:
    """Mean difference of a method to the one with the best mean rank, over data sets."""

    mean: float
    low: float
    high: float
    """95% t interval over data sets; NaN with fewer than two."""


@dataclass(frozen=True)
class Comparison:
    """Methods compared on several data sets, the best mean rank first."""

    data_sets: tuple[str, ...]
    """Names of the sweeps."""
    methods: tuple[str, ...]
    values: tuple[tuple[MethodAccuracy, ...], ...]
    """[methods][data sets]"""
    mean_ranks: tuple[float, ...]
    """1 is the best; methods of equal accuracy share the mean of their ranks."""
    p_value: float
    """Of Friedman's (1937) test that all methods are equal; NaN if it cannot be computed."""
    critical_difference: float
    """Mean ranks closer than this differ by no more than chance explains (Nemenyi 1963; Demsar 2006)."""
    iqms: tuple[Estimate, ...]
    """Interquartile mean of the accuracies over data sets, with an interval over images (Agarwal et al. 2021)."""
    gaps: tuple[Gap, ...]
    """Of each method to the first."""
    left_out: Mapping[str, tuple[str, ...]]
    """Methods that some sweeps lack, and those sweeps."""

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """Methods whose mean rank is within the critical difference of the best one, which is the first of them."""
        return tuple(
            method
            for method, rank in zip(self.methods, self.mean_ranks, strict=True)
            if rank - self.mean_ranks[0] < self.critical_difference
        )


def methods_of(results: Results) -> dict[str, MethodAccuracy]:
    """Return every method of a sweep that has an accuracy on the validation set.

    Recipes of one strategy compete within the sweep, so more runs of a strategy make its best run better by chance.
    """
    found: dict[str, MethodAccuracy] = {}
    runs: dict[str, list[RankedTrial]] = {}
    for trial in results.trials:
        if trial.status == "finished" and trial.search_validation is not None:
            runs.setdefault(trial.strategy, []).append(trial)
    for strategy, trials in runs.items():
        best = max(trials, key=lambda trial: trial.search_accuracy or 0.0)
        evaluation, estimate = best.search.val, best.search_validation
        assert evaluation is not None, "filtered above"
        assert estimate is not None, "filtered above"
        order = np.argsort(evaluation.images)
        found[strategy] = MethodAccuracy(estimate, np.asarray(evaluation.correct, dtype=float)[order], len(trials))
    for label, _, estimate in best_rows(results, "validation"):
        correct = np.arange(estimate.images) < round(estimate.mean * estimate.images)
        chance = np.random.default_rng(0)  # the answers for single images are not stored
        found[f"{label.partition(' (')[0]}, no training"] = MethodAccuracy(
            estimate, chance.permutation(correct.astype(float)), 0
        )
    return found


def compare_across(sweeps: Mapping[str, Results]) -> Comparison:
    """Compare the methods that all sweeps have.

    Args:
        sweeps: results by the name of their sweep, at least two, each of other images.

    Raises:
        ValueError: there are fewer than two sweeps or common methods, or two sweeps are of the same images.
    """
    if len(sweeps) < 2:
        raise ValueError(f"comparing needs at least two sweeps, got {len(sweeps)}: name one for each data set")
    by_pack: dict[str, str] = {}
    for name, results in sweeps.items():
        if (earlier := by_pack.setdefault(results.plan["data"]["pack"], name)) != name:
            raise ValueError(
                f"{earlier} and {name} are sweeps of the same images, which would count twice: name one of them"
            )
    values = {name: methods_of(results) for name, results in sweeps.items()}
    every = list(dict.fromkeys(method for of_sweep in values.values() for method in of_sweep))
    lacking = {method: tuple(name for name in sweeps if method not in values[name]) for method in every}
    methods = [method for method in every if not lacking[method]]
    methods = [method for method in methods if SAME_METHOD.get(method) not in methods]
    if len(methods) < MIN_METHODS:
        found = "; ".join(f"{name}: {', '.join(of_sweep) or 'none'}" for name, of_sweep in values.items())
        raise ValueError(
            f"comparing needs at least {MIN_METHODS} methods that finished in every sweep, found {len(methods)} "
            f"({found}). --strategies clip,linear_probe,... makes each sweep try the same ones"
        )
    accuracy = np.array([[values[name][method].estimate.mean for name in sweeps] for method in methods])
    ranks = rank_columns(accuracy)
    order = sorted(range(len(methods)), key=lambda i: (ranks[i].mean(), -accuracy[i].mean()))
    sorted_values = tuple(tuple(values[name][methods[i]] for name in sweeps) for i in order)
    return Comparison(
        tuple(sweeps),
        tuple(methods[i] for i in order),
        sorted_values,
        tuple(float(ranks[i].mean()) for i in order),
        friedman_p_value(accuracy),
        critical_difference(len(methods), len(sweeps)),
        tuple(interquartile_means(sorted_values)),
        tuple(mean_gap(accuracy[i] - accuracy[order[0]]) for i in order),
        {method: names for method, names in lacking.items() if names},
    )


def rank_columns(values: ArrayLike) -> Array:
    """Return the rank of each row in each column, 1 for the largest value; equal values share their mean rank.

    >>> rank_columns([[0.9, 0.5], [0.8, 0.5], [0.7, 0.6]]).tolist()
    [[1.0, 2.5], [2.0, 2.5], [3.0, 1.0]]
    """
    from scipy import stats  # takes half a second

    return np.asarray(stats.rankdata(-np.asarray(values, dtype=float), axis=0), dtype=float)


def friedman_p_value(accuracy: Array) -> float:
    """Return the p-value of Friedman's test for [methods, data sets]; NaN for fewer than three of either."""
    if min(accuracy.shape) < 3 or np.all(accuracy == accuracy[0]):
        return math.nan
    from scipy import stats

    return float(stats.friedmanchisquare(*accuracy).pvalue)


def critical_difference(methods: int, data_sets: int, confidence: float = CONFIDENCE) -> float:
    """Return the difference of mean ranks that chance exceeds with a probability of 5% for any pair (Nemenyi 1963).

    >>> round(critical_difference(4, 14), 2)  # 1.25 in Demsar (2006), section 3.2.2
    1.25
    """
    from scipy import stats

    quantile = float(stats.studentized_range.ppf(confidence, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * data_sets))


def data_sets_needed(methods: int) -> int:
    """Return the number of data sets from which on a method that is first on all of them differs from the last."""
    return math.ceil(critical_difference(methods, 1) ** 2 / (methods - 1) ** 2)


def mean_gap(differences: ArrayLike) -> Gap:
    """Return the mean of differences, one per data set, with its t interval."""
    each = np.asarray(differences, dtype=float)
    mean = float(each.mean())
    if len(each) < 2:
        return Gap(mean, math.nan, math.nan)
    from scipy import special

    error = float(each.std(ddof=1)) / math.sqrt(len(each))
    half = float(special.stdtrit(len(each) - 1, (1 + CONFIDENCE) / 2)) * error
    return Gap(mean, mean - half, mean + half)


def interquartile_mean(values: ArrayLike) -> Array:
    """Return the mean of the middle half of values along the last axis; values at its ends count in part.

    >>> float(interquartile_mean([1.0, 2.0, 3.0, 100.0]))
    2.5
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    count = ordered.shape[-1]
    ends = np.arange(count + 1) / count
    weights = np.clip(np.minimum(ends[1:], 0.75) - np.maximum(ends[:-1], 0.25), 0, None) * 2
    return np.asarray(ordered @ weights)


def interquartile_means(values: Sequence[Sequence[MethodAccuracy]]) -> list[Estimate]:
    """Return the interquartile mean of each method over data sets.

    The interval is a bootstrap over the images of each data set, the same ones for all methods. It tells how well the
    mean of these data sets is known, not what other data sets would give.

    Args:
        values: [methods][data sets].
    """
    chance = np.random.default_rng(0)
    means = []
    for of_data_set in zip(*values, strict=True):
        images = len(of_data_set[0].correct)
        counts = chance.multinomial(images, [1 / images] * images, size=BOOTSTRAP_DRAWS)
        means.append(np.stack([counts @ value.correct / images for value in of_data_set]))
    drawn = interquartile_mean(np.stack(means, axis=-1))  # [methods, draws]
    seen = interquartile_mean([[value.estimate.mean for value in of_method] for of_method in values])
    images = sum(value.estimate.images for value in values[0])
    bounds = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=-1)
    return [
        Estimate(float(mean), float(low), float(high), images, 1)
        for mean, low, high in zip(seen, bounds[0], bounds[1], strict=True)
    ]


def conclusions(comparison: Comparison) -> list[str]:
    """State what the comparison supports, with its n, and what it leaves open. Names are not escaped."""
    count, methods = len(comparison.data_sets), comparison.methods
    best, same = methods[0], comparison.indistinguishable
    sentences = [
        f"{best} has the best mean rank of {len(methods)} methods: {comparison.mean_ranks[0]:.1f} on {count} data sets."
    ]
    if count < FEW_DATA_SETS:
        sentences.append(
            f"{count} data sets are few: ranks separate only methods that differ on nearly all of them, and what holds "
            f"here may not hold on the next."
        )
    needed = data_sets_needed(len(methods))
    if count < needed:
        sentences.append(
            f"No difference of ranks can be told from chance with {count} data sets and {len(methods)} methods: that "
            f"takes at least {needed} data sets, or fewer methods."
        )
    elif len(same) == len(methods):
        sentences.append(
            f"By their ranks, no method is shown to be worse than the best: all are within the critical difference of "
            f"{comparison.critical_difference:.1f}."
        )
    else:
        worse = [method for method in methods if method not in same]
        sentences.append(
            f"It is better than {join_words(worse)} beyond chance: their mean ranks are more than the critical "
            f"difference of {comparison.critical_difference:.1f} away."
        )
        if len(same) > 1:
            sentences.append(f"Undecided between {join_words([*same])}: more data sets would settle it.")
    for method, gap in zip(methods[1:], comparison.gaps[1:], strict=True):
        if gap.high < 0:
            interval = f"{-100 * gap.high:.1f} to {-100 * gap.low:.1f}; {count} data sets"
            sentences.append(
                f"In accuracy, {best} is ahead of {method} by {-100 * gap.mean:.1f} points on average ({interval}; not "
                f"corrected for the number of methods)."
            )
    if not math.isnan(comparison.p_value):
        sentences.append(f"Friedman's test that all methods are equal: p = {comparison.p_value:.2g}.")
    return sentences
