"""Selection: which trials are finalists, which runs they get on new seeds, and how they are ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from sweeps.engine.plan import Plan
from sweeps.engine.storage.store import Trial
from xfer.hyperparameters import FROZEN_HEADS
from xfer.objectives import ACCURACY, Objective, pareto_mask
from xfer.recipe import recipe_from_dict
from xfer.records import Record


def select_finalists(
    records: Iterable[Record], count: int, objectives: Sequence[Objective] = (ACCURACY,), control: str | None = None
) -> list[str]:
    """Select the finalists: the best trials of the search and, in addition, the control and the best frozen head.

    The control is the recipe that a user would take without a search, and the head on frozen features is the cheapest
    baseline. The final comparison always has both if they have finished the search. They take no other trial's place.

    Args:
        records: records of all phases.
        count: maximum number of finalists besides these two; 0 selects none.
        objectives: as in `select_best`.
        control: key of the control's recipe; None selects no control.

    Returns:
        The names of the trials, best first; after them the control and the head if they are not among the best.
    """
    ended = {record.trial: record for record in records}
    ranked = select_best(ended.values(), len(ended), objectives)
    best = ranked[:count]
    if not count:
        return best
    added = (
        next((name for name in ranked if ended[name].key == control), None),
        next((name for name in ranked if is_frozen_head(ended[name])), None),
    )
    return list(dict.fromkeys([*best, *(name for name in added if name is not None)]))


def is_frozen_head(record: Record) -> bool:
    """Return whether a run trained nothing but a head on frozen features."""
    return record.recipe["strategy"]["name"] in FROZEN_HEADS


def select_best(records: Iterable[Record], count: int, objectives: Sequence[Objective] = (ACCURACY,)) -> list[str]:
    """Select the best finished search trials, at most one per recipe.

    Args:
        records: records of all phases.
        count: maximum number of trials.
        objectives: the first one ranks; with two, trials on the Pareto front come first.

    Returns:
        The names of the trials, best first; the earlier trial wins a tie.
    """
    finished = [record for record in records if record.phase == "search" and record.status == "finished"]
    scores = {record.trial: tuple(final_score(record, objective) for objective in objectives) for record in finished}
    front = dict(
        zip(scores, pareto_mask(list(scores.values())) if objectives[1:] else [True] * len(scores), strict=True)
    )
    best: dict[str, Record] = {}
    for record in sorted(finished, key=lambda run: (not front[run.trial], -scores[run.trial][0], run.trial)):
        best.setdefault(record.key, record)
    return [record.trial for record in best.values()][:count]


def finalist_trials(finalists: Sequence[Record], plan: Plan, redraws: bool) -> list[Trial]:
    """Return the runs of the finalists: each recipe on `plan.seeds` seeds that the search did not use.

    Args:
        finalists: the records of the selected search trials.
        plan: the plan.
        redraws: whether each seed also draws its own validation part, the same one for every finalist.

    Returns:
        The trials, seed by seed rather than finalist by finalist, so that a sweep that is cut short has compared all
        finalists.
    """
    recipes = {record.trial: recipe_from_dict(record.recipe) for record in finalists}
    return [
        Trial(f"{name}-s{seed}", "final", {}, recipe.with_seeds(plan.seed + seed, seed if redraws else 0).as_dict())
        for seed in range(1, plan.seeds + 1)
        for name, recipe in recipes.items()
    ]


def final_rounds(plan: Plan, concurrent: int) -> int:
    """Return how many rounds of `concurrent` trials the finals of a plan take."""
    return math.ceil(plan.finalists * plan.seeds / concurrent)


def search_trial_name(trial: str) -> str:
    """Return the name of the search trial that a final run repeats, or the name itself.

    >>> search_trial_name("0007-s2"), search_trial_name("0007")
    ('0007', '0007')
    """
    return trial.partition("-")[0]


def finalist_runs(records: Iterable[Record], finalists: Sequence[str]) -> dict[str, list[Record]]:
    """Return the finished final runs of each finalist, by the name of its search trial."""
    finished = [record for record in records if record.phase == "final" and record.status == "finished"]
    return {name: [record for record in finished if search_trial_name(record.trial) == name] for name in finalists}


def winner_metrics(
    winner: Record, records: Iterable[Record], objectives: Sequence[Objective] = (ACCURACY,)
) -> dict[str, float]:
    """Return the metrics of the winner's recipe: means over its final runs, if it has any.

    Args:
        winner: the record of the winner, of the search or of a final run.
        records: records of all phases.
        objectives: what was searched for.

    Returns:
        Mean value by metric: the objectives, accuracy in any case, and everything that was measured on the test part.
    """
    trial = search_trial_name(winner.trial)
    runs = finalist_runs(records, [trial])[trial] or [winner]
    metrics = {
        objective.metric: [value for run in runs if (value := objective.value(run.epochs)) is not None]
        for objective in dict.fromkeys((ACCURACY, *objectives))
    }
    tests = [run.test for run in runs if run.test is not None]
    for name in ("accuracy", "balanced_accuracy", "noisy_accuracy"):
        metrics[f"test_{name}"] = [value for test in tests if (value := getattr(test, name)) is not None]
    return {name: fmean(values) for name, values in metrics.items() if values}


def rank_finalists(runs: Mapping[str, Sequence[Record]], objective: Objective = ACCURACY) -> list[str]:
    """Rank finalists by their mean score over seeds, best first; finalists without a finished run are left out."""
    means = {
        name: fmean(final_score(record, objective) for record in records) for name, records in runs.items() if records
    }
    return sorted(means, key=lambda name: (-means[name], name))


def final_score(record: Record, objective: Objective) -> float:
    """Return the final score of a finished run, higher is better; -inf if it was not measured."""
    score = objective.score(record.epochs)
    return -math.inf if score is None else score
