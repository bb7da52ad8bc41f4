"""Time left of a sweep, stage by stage: pure functions of the paces that have been measured so far.

The search is extrapolated from the trials that have ended or are running, the finals from the search runs of those that
would be finalists now, the test part from the time that evaluating an image has taken. What has not been measured is
not known, and is not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sweeps.engine.schedulers import FIRST_FRACTION, LearningCurve, top_k_count
from sweeps.reporting.formatting import join_words
from xfer.hyperparameters import FROZEN_HEADS
from xfer.records import MAX_NOISE_IMAGES, NOISE_KINDS, Epoch, Phase

OPENING_SECONDS = 1.5
"""Seconds to build a network and read its checkpoint. Measured with MobileNetV2 on one core (2026-11-30)."""


@dataclass(frozen=True)
class StageTime:
    """A stage that is running or still to come."""

    name: str
    seconds: float | None
    """Seconds left; None if not known yet."""


@dataclass(frozen=True)
class RunPace:
    """How far a run has come, and how fast."""

    trial: str
    phase: Phase
    is_head: bool
    """Whether only a head on frozen features is trained, which costs next to nothing."""
    epochs: int
    """Number of completed epochs."""
    planned_epochs: int
    seconds: float
    """Duration of the completed epochs."""
    ended: bool
    seconds_per_evaluation: float | None
    """Seconds to evaluate one image; None if unknown."""

    @property
    def full_seconds(self) -> float | None:
        """Duration of the run with all planned epochs; None before the first epoch."""
        return self.seconds / self.epochs * self.planned_epochs if self.epochs else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run has all planned epochs; None before the first epoch."""
        return self.seconds / self.epochs * (self.planned_epochs - self.epochs) if self.epochs else None


def run_pace(
    trial: str, phase: Phase, recipe: Mapping[str, Any], epochs: Sequence[Epoch], data: Mapping[str, Any], ended: bool
) -> RunPace:
    """Return the pace of a run.

    Args:
        trial: its name.
        phase: its phase.
        recipe: its recipe as plain data.
        epochs: its epochs so far.
        data: the number of images in each part, by its name (`data` of plan.json).
        ended: whether it has a record.
    """
    is_head = recipe["strategy"]["name"] in FROZEN_HEADS
    limit = recipe.get("images_per_class")
    images = data["train"] if limit is None else min(data["train"], limit * recipe["classes"])
    # Heads are evaluated on cached features, and a noisy copy of the validation part takes another pass.
    evaluated = [epoch for epoch in epochs if epoch.images_per_second > 0 and not is_head]
    passes = [epoch.seconds - images / epoch.images_per_second for epoch in evaluated]
    per_image = [
        seconds / (data["val"] * (1 if epoch.val_noisy_accuracy is None else 2))
        for epoch, seconds in zip(evaluated, passes, strict=True)
    ]
    return RunPace(
        trial,
        phase,
        is_head,
        len(epochs),
        recipe["epochs"],
        math.fsum(epoch.seconds for epoch in epochs),
        ended,
        max(0.0, fmean(per_image)) if per_image else None,
    )


def time_left(
    plan: Mapping[str, Any],
    runs: Iterable[RunPace],
    finalists: Sequence[str],
    *,
    concurrent: int = 1,
    stretch: float = 1.0,
    limit: float | None = None,
    tested: int = 0,
    noise_scores: int = 0,
    measured: Mapping[str, float | None] | None = None,
) -> tuple[StageTime, ...]:
    """Return the stages of a sweep that are not over, in their order, with the seconds that each will take.

    Args:
        plan: the content of plan.json.
        runs: the runs that have ended or are running, of all phases.
        finalists: the trials that would be finalists now, or are.
        concurrent: number of concurrent trials.
        stretch: wall-clock time over the time that concurrent epochs have taken, at least 1.
        limit: seconds left of a time or cost budget, which ends search and finals; None for no budget.
        tested: number of final runs that have been evaluated on the test part.
        noise_scores: number of kinds of noise under which final runs have been evaluated, summed over runs.
        measured: seconds left of stages that are measured otherwise, by name; None for those not known yet.

    Returns:
        `screening`, `search`, `finals`, `test` and `noise`, without those that are over or not planned.
    """
    by_phase: dict[str, list[RunPace]] = {"search": [], "final": []}
    for run in runs:
        by_phase.setdefault(run.phase, []).append(run)
    search, finals = by_phase["search"], by_phase["final"]
    ended = sum(run.ended for run in search)
    final_runs = _final_runs(plan, search, finalists, searching=ended < plan["trials"])
    ended_finals = {run.trial for run in finals if run.ended}
    stages: dict[str, float | None] = {}
    if measured and "screening" in measured:
        stages["screening"] = None
    if ended < plan["trials"]:
        stages["search"] = _search_seconds(plan, search, concurrent, stretch)
    if any(name not in ended_finals for name, _ in final_runs):
        stages["finals"] = _finals_seconds(plan, final_runs, search, finals, concurrent, stretch)
    if limit is not None:
        stages = _within(limit, stages)
    heads = sum(head for _, head in final_runs)
    passes = len(final_runs) - heads + min(heads, 1)  # heads share one pass of the frozen body
    per_image = [run.seconds_per_evaluation for run in (*search, *finals) if run.seconds_per_evaluation is not None]
    pace = fmean(per_image) if per_image else None
    workers = max(1, min(concurrent, passes))
    if tested < len(final_runs):
        share = 1 - tested / len(final_runs)
        stages["test"] = _evaluation_seconds(pace, plan["data"]["test"], passes, len(final_runs), workers, share)
    if plan.get("noise", True) and noise_scores < len(final_runs) * len(NOISE_KINDS):
        images = len(NOISE_KINDS) * min(plan["data"]["test"], MAX_NOISE_IMAGES)
        share = 1 - noise_scores / (len(final_runs) * len(NOISE_KINDS))
        stages["noise"] = _evaluation_seconds(pace, images, passes, len(final_runs), workers, share)
    stages |= {name: left for name, left in (measured or {}).items() if name in stages and left is not None}
    return tuple(StageTime(name, seconds) for name, seconds in stages.items())


def format_time_left(stages: Sequence[StageTime]) -> str:
    """Return the time left as text, the running stage first; "" if no stage is left.

    >>> format_time_left([StageTime("search", 118), StageTime("finals", 790), StageTime("test", 40)])
    'search 2 min · finals about 13 min · test about 40 s · 16 min left'
    >>> format_time_left([StageTime("search", 118), StageTime("finals", None)])
    'search 2 min · finals not known yet · at least 2 min left'
    >>> format_time_left([StageTime("search", None)])
    'time left: not known yet'
    """
    if not stages:
        return ""
    known = [(stage.name, _rounded(stage.seconds)) for stage in stages if stage.seconds is not None]
    if not known:
        return "time left: not known yet"
    parts = [
        f"{name} {'' if name == stages[0].name else 'about '}{_format_rounded(seconds)}" for name, seconds in known
    ]
    unknown = [stage.name for stage in stages if stage.seconds is None]
    total = _format_rounded(_rounded(sum(seconds for _, seconds in known)))
    if unknown:
        return " · ".join([*parts, f"{join_words(unknown)} not known yet", f"at least {total} left"])
    return " · ".join([*parts, f"{total} left"]) if len(parts) > 1 else f"{parts[0]} left"


def _final_runs(
    plan: Mapping[str, Any], search: Sequence[RunPace], finalists: Sequence[str], searching: bool
) -> list[tuple[str, bool]]:
    """Return the final runs that there will be, each with whether it trains only a head.

    While the search runs, trials that are not known yet may become finalists; their names are empty.
    """
    heads = {run.trial for run in search if run.is_head}
    expected = [(name, name in heads) for name in finalists]
    if searching and plan["finalists"]:
        expected += [("", False)] * (min(plan["finalists"], plan["trials"]) - len(expected))
    return [(f"{name}-s{seed}", head) for seed in range(1, plan["seeds"] + 1) for name, head in expected]


def _search_seconds(
    plan: Mapping[str, Any], search: Sequence[RunPace], concurrent: int, stretch: float
) -> float | None:
    """Return the seconds until the last trial of the search ends; None before anything but a head has an epoch."""
    if not _telling(plan, search):
        return None
    trials = plan["trials"]
    known = [run for run in search if run.epochs]
    if plan["scheduler"] == "one_epoch_top_k":
        continuing = min(1.0, top_k_count(trials) / trials)
        mean_cost = fmean(_seconds_for(run, continuing) for run in known)
    else:
        mean_cost = fmean(run.seconds if run.ended else run.full_seconds or 0.0 for run in known)
    running = [run.seconds_left for run in search if not run.ended]
    jobs = [mean_cost if left is None else left for left in running]
    jobs += [mean_cost] * max(0, trials - len(search))
    return stretch * _makespan(jobs, concurrent)


def _seconds_for(run: RunPace, continuing: float) -> float:
    """Return the seconds of a run that waits after its first epochs and continues with some probability."""
    first = LearningCurve((), epochs=run.planned_epochs).epoch_at(FIRST_FRACTION)
    return run.seconds / run.epochs * (first + continuing * (run.planned_epochs - first))


def _telling(plan: Mapping[str, Any], search: Sequence[RunPace]) -> list[RunPace]:
    """Return the runs that tell how long others take: heads only do if nothing else competes."""
    heads_only = all(name.strip() in FROZEN_HEADS for name in plan["space"]["strategy"].split(","))
    return [run for run in search if run.epochs and (heads_only or not run.is_head)]


def _finals_seconds(
    plan: Mapping[str, Any],
    final_runs: Sequence[tuple[str, bool]],
    search: Sequence[RunPace],
    finals: Sequence[RunPace],
    concurrent: int,
    stretch: float,
) -> float | None:
    """Return the seconds of all final runs that have not ended; None if nothing tells how long one of them takes."""
    known = {run.trial: run for run in (*search, *finals)}
    full = [run.full_seconds for run in _telling(plan, search) if run.full_seconds is not None]
    jobs: list[float] = []
    for name, _ in final_runs:
        trial = name.rpartition("-s")[0]
        run = known.get(name)
        own = [other.seconds for other in finals if other.ended and other.trial.rpartition("-s")[0] == trial]
        source = known.get(trial)
        cost = fmean(own) if own else (source.full_seconds if source else None)
        if cost is None:
            if not full:
                return None
            cost = fmean(full)
        if run is None:
            jobs.append(cost)
        elif not run.ended:
            jobs.append(cost if run.seconds_left is None else run.seconds_left)
    return stretch * _makespan(jobs, concurrent)


def _evaluation_seconds(
    pace: float | None, images: int, passes: int, runs: int, workers: int, share: float
) -> float | None:
    """Return the seconds to evaluate networks on images.

    Args:
        pace: seconds per image and network; None if unknown.
        images: number of images for each network.
        passes: number of passes over the images.
        runs: number of networks to be opened.
        workers: number of concurrent tasks.
        share: fraction that has not been evaluated yet.
    """
    return None if pace is None else share * (pace * images * passes + OPENING_SECONDS * runs) / workers


def _within(limit: float, stages: Mapping[str, float | None]) -> dict[str, float | None]:
    """Shorten search and finals to a budget, of which the finals get what they need."""
    search, finals, left = stages.get("search"), stages.get("finals"), max(0.0, limit)
    if search is not None:
        search = min(search, max(0.0, left - (finals or 0.0)))
    if finals is not None:
        finals = min(finals, max(0.0, left - (search or 0.0)))
    shortened = {"search": search, "finals": finals}
    return {name: shortened.get(name, seconds) for name, seconds in stages.items()}


def _makespan(jobs: Sequence[float], concurrent: int) -> float:
    """Return the wall-clock time of jobs of which some run at a time: at least that of the longest one."""
    return max(sum(jobs) / max(1, concurrent), max(jobs, default=0.0))


def _rounded(seconds: float) -> int:
    """Round to what is worth showing: multiples of 5 s below a minute, of a minute below 2 h, then of 10 min."""
    for unit, below in ((5, 57.5), (60, 7_170), (600, math.inf)):
        if seconds < below:
            return max(5, unit * math.floor(seconds / unit + 0.5))
    raise ValueError(f"seconds must be a number, got {seconds}")


def _format_rounded(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    hours, minutes = divmod(seconds // 60, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
