"""Compare the finalists with each other: differences on the same images and seeds, and shared ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.statistics import BestComparison, compare_with_best
from xfer.objectives import ACCURACY
from xfer.records import Evaluation

DEFAULT_MARGIN = 0.01
"""Difference in accuracy that does not matter, for sweeps whose plan has no `margin`."""


@dataclass(frozen=True)
class FinalsComparison:
    """The finalists' accuracies on one set, compared with the best of the others."""

    split: str
    """Set behind the comparison: test or validation."""
    trials: tuple[RankedTrial, ...]
    """At least two finalists, in the order of the ranking."""
    correct: NDArray[np.float64]
    """Shape [trials, seeds, images]: 1 for a correct prediction, 0 for a wrong one, NaN if a seed did not see it."""
    by_name: dict[str, BestComparison]

    @property
    def tied(self) -> list[RankedTrial]:
        """The finalists that may be the best; a single one is better than all others."""
        return [trial for trial in self.trials if self.by_name[trial.name].tied]


def compare_finalists(results: Results, finalists: Sequence[RankedTrial]) -> FinalsComparison | None:
    """Compare the finalists on the test set or, before it is used, on the validation set.

    Args:
        results: of the sweep.
        finalists: in the order of the ranking. One without a seed in common with those before it is left out.

    Returns:
        None if the sweep does not rank by accuracy, or if fewer than two finalists can be compared.
    """
    if results.objective != ACCURACY:
        return None
    for split in ("test", "validation"):
        evaluations: dict[str, dict[int, Evaluation]] = {}
        for trial in finalists:
            by_seed = {
                int(record.recipe["seed"]): evaluation
                for record in trial.finals
                if (evaluation := record.test if split == "test" else record.val)
            }
            if by_seed and all(by_seed.keys() & others.keys() for others in evaluations.values()):
                evaluations[trial.name] = by_seed
        if len(evaluations) > 1:
            correct = _answers(list(evaluations.values()))
            by_name = compare_with_best(correct, list(evaluations), margin=margin(results))
            trials = tuple(trial for trial in finalists if trial.name in evaluations)
            return FinalsComparison(split, trials, correct, by_name)
    return None


def margin(results: Results) -> float:
    """Return the difference in accuracy that does not matter in practice."""
    return float(results.plan.get("margin", DEFAULT_MARGIN))


def rank_numbers(names: Sequence[str], comparison: FinalsComparison | None) -> list[int]:
    """Return the ranks of trials that are listed best first: those tied with the first one share rank 1.

    The others have the rank of their position, as in 1, 1, 3. If the first trial is not tied with the best, the ranks
    are 1, 2, 3, because test results never change the order.
    """
    tied = set() if comparison is None else {trial.name for trial in comparison.tied}
    shares = bool(names) and names[0] in tied
    return [1 if shares and name in tied else position for position, name in enumerate(names, start=1)]


def _answers(evaluations: Sequence[dict[int, Evaluation]]) -> NDArray[np.float64]:
    """Build an array [trials, seeds, images] from the evaluations by seed of each trial."""
    seeds = sorted(set().union(*evaluations))
    every = [evaluation for by_seed in evaluations for evaluation in by_seed.values()]
    images = np.unique(np.concatenate([evaluation.images for evaluation in every]))
    correct = np.full((len(evaluations), len(seeds), len(images)), np.nan)
    for trial, by_seed in enumerate(evaluations):
        for seed, evaluation in by_seed.items():
            correct[trial, seeds.index(seed), np.searchsorted(images, evaluation.images)] = evaluation.correct
    return correct
