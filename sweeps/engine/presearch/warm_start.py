"""Warm start: a new sweep begins with the best recipes of earlier ones on data that look alike.

Looks at earlier sweeps in the same storage, at what was measured of their data and at the validation part of their
search trials. Test parts are never asked, and a sweep whose trials saw images of this one's test part is passed over.
The same data is the best likeness of all: an earlier sweep on the same pack and seed stands at distance 0, and its
scores are of the very validation part that this sweep chooses on too. So what it hands on is no independent evidence.

What is taken is frozen into plan.json, so a sweep that is gone on with does the same whatever was added to the storage
since. The recipes taken come first and are judged like any other that a sampler proposes, for they were chosen on other
data; the known good ones follow and are spared as ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.engine import selection
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.presearch.advice import measure_dataset
from sweeps.engine.presearch.dataset_distance import MAX_DISTANCE, DatasetView, dataset_distance
from sweeps.engine.search_space.space import Space
from sweeps.engine.search_space.suggest import NearestTrial
from sweeps.engine.storage.store import Store, list_sweeps
from xfer.advice.dataset_profile import profile_from_dict
from xfer.choices import default_parameters
from xfer.data.pack import Progress, load_pack
from xfer.data.split import split_pack
from xfer.objectives import parse_objectives
from xfer.recipe import CHOICE_TABLES
from xfer.records import Record
from xfer.storage import local_cache, object_store

MAX_PER_SWEEP = 3
"""How many recipes one sweep hands on at most: a quarter of those that finished, rounded up, and no more than this."""
MAX_TOTAL = 5
"""How many a sweep begins with at most, and never with more than half of its trials."""


@dataclass(frozen=True)
class PastSweep:
    """A sweep as far as a warm start looks at it."""

    name: str
    data: tuple[str, int]
    """The pack's hash, and how many images of it are trained on."""
    seed: int
    objective: tuple[str, ...]
    seen: DatasetView | None
    """None where its data were not measured."""
    best: tuple[Record, ...] = ()
    """Those of its finished search trials that it could hand on, best first by its own objective on validation."""


@dataclass(frozen=True)
class Neighbour:
    """An earlier sweep and how far its data are from those at hand."""

    sweep: PastSweep
    distance: float


def nearest_sweeps(mine: PastSweep, others: Iterable[PastSweep]) -> list[Neighbour]:
    """Those that searched for the same and whose likeness is known, nearest first, near or far."""
    asked = [each for each in others if each.best and each.objective == mine.objective]
    found = [Neighbour(each, apart) for each in asked if (apart := _apart(mine, each)) is not None]
    return sorted(found, key=lambda near: (near.distance, near.sweep.name))


def _apart(one: PastSweep, other: PastSweep) -> float | None:
    """How far apart the data of two sweeps are; None where it cannot be known."""
    if one.data == other.data:
        return 0.0
    return dataset_distance(one.seen, other.seen) if one.seen and other.seen else None


def transferred_configs(
    near: Sequence[Neighbour], space: Space, weights: Mapping[str, str], most: int
) -> dict[str, Any]:
    """What is taken from sweeps that are alike, as plain data for plan.json.

    Args:
        near: the sweeps, nearest first.
        space: where the recipes are to be tried.
        weights: the SHA-256 of the weights of each backbone that competes here.
        most: how many recipes at most.
    """
    sources: list[dict[str, Any]] = []
    params: list[dict[str, Any]] = []
    for each in near:
        trials = []
        for record in each.sweep.best:
            granted = translate_recipe(record.recipe, space, weights)
            if granted is not None and granted not in params and len(params) < most:
                params.append(granted)
                trials.append(record.trial)
        if trials:
            sources.append({"sweep": each.sweep.name, "distance": each.distance, "trials": trials})
    return {"from": sources, "params": params}


def translate_recipe(recipe: Mapping[str, Any], space: Space, weights: Mapping[str, str]) -> dict[str, Any] | None:
    """The free choices that come nearest to a recipe in a space; None where the recipe makes no sense there.

    That is where its strategy, its network with its weights, or its optimizer does not compete: a learning rate says
    nothing under another optimizer. Everything else is moved into the domains of this space. The recipe is read and not
    the sampler's parameters, which leave out whatever was held fixed.
    """
    backbone = str(recipe["backbone"])
    if recipe["weights"] and recipe["weights"] != weights.get(backbone):
        return None
    wishes = {name: value for name, value in recipe.items() if not isinstance(value, Mapping)}
    for kind, table in CHOICE_TABLES.items():
        choice = recipe.get(kind)
        if choice is not None:  # recipes of earlier versions do not say everything
            if choice["name"] not in table:
                return None
            wishes |= {name: choice[name] for name in default_parameters(table[choice["name"]]) if name in choice}
            wishes[kind] = choice["name"]
    asked = NearestTrial(wishes)
    config = space.suggest(asked)
    same = all(config[kind] == wishes[kind] for kind in ("strategy", "optimizer")) and config["backbone"] == backbone
    return asked.suggested if same else None


def find_warm_start(
    prepared: Prepared, store: Store, advice: Mapping[str, Any], progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """What a new sweep takes from earlier ones in its storage, as plain data for plan.json.

    `from` names sweeps, distances and trials, `params` holds the choices to begin with, `passed_over` says which sweeps
    were not asked and why, `why_none` why nothing was taken. `measured` is what the advice would have measured, where
    there was none.

    Args:
        prepared: the plan.
        store: the new sweep's; its folder's neighbours are the earlier ones.
        advice: what the sweep was advised, with its measurement.
        progress: told how many images have been measured, where the advice has no measurement.
    """
    own = {} if "measured" in advice else measure_dataset(prepared, progress)
    mine = PastSweep(
        name=store.name,
        data=(prepared.pack.hash, len(prepared.split.train)),
        seed=prepared.plan.seed,
        objective=prepared.plan.objective,
        seen=_seen(own if "measured" in own else advice, prepared.backbones[0].sha256),
    )
    passed_over: dict[str, str] = {}
    ranked = nearest_sweeps(mine, _earlier(store, passed_over))
    near = []
    for each in ranked:
        if each.distance <= MAX_DISTANCE:
            reason = _saw_test_images(each.sweep, prepared, store.folder.parent)
            if reason:
                passed_over[each.sweep.name] = reason
            else:
                near.append(each)
    weights = {each.name: each.sha256 for each in prepared.backbones}
    found = transferred_configs(near, prepared.space, weights, min(MAX_TOTAL, math.ceil(prepared.plan.trials / 2)))
    if not found["params"]:
        found["why_none"] = own.get("why_none") or _why_none(ranked, near, passed_over)
    kept = {"measured": own["measured"]} if "measured" in own else {}
    return {**found, "passed_over": passed_over, **kept}


def warm_start_params(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices that a plan.json says its sweep begins with."""
    return [dict(params) for params in plan.get("warm_start", {}).get("params", [])]


def summary_line(plan: Mapping[str, Any]) -> str:
    """What was taken, in a line; empty where nobody asked."""
    warm = plan.get("warm_start", {})
    if not warm:
        return ""
    sources = [
        f"{len(each['trials'])} of {each['sweep']} (distance {each['distance']:.2f}; "
        f"trial{'s' if each['trials'][1:] else ''} {', '.join(each['trials'])})"
        for each in warm["from"]
    ]
    left = "; ".join(f"{name} was passed over: {reason}" for name, reason in warm["passed_over"].items())
    if not sources:
        return "; ".join(filter(None, [f"nothing was taken: {warm['why_none']}", left]))
    return "; ".join(filter(None, [f"begins with recipes of data that look alike: {', '.join(sources)}", left]))


def _earlier(store: Store, passed_over: dict[str, str]) -> Iterable[PastSweep]:
    """The other sweeps in a storage; those that cannot be read are passed over with the reason."""
    for other in list_sweeps(store.folder.parent):
        if other.name == store.name:
            continue
        try:
            yield _read(other)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            passed_over[other.name] = f"it cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]})"


def _read(store: Store) -> PastSweep:
    plan = store.plan() or {}
    objective = tuple(plan.get("objective", ["accuracy"]))
    objectives = parse_objectives(",".join(objective))
    records = [record for record in store.records() if record.phase == "search" and record.status == "finished"]
    best = selection.select_finalists(records, min(MAX_PER_SWEEP, math.ceil(len(records) / 4)), objectives)
    by_name = {record.trial: record for record in records}
    source = plan["advice"] if "measured" in plan.get("advice", {}) else plan.get("warm_start", {})
    return PastSweep(
        name=store.name,
        data=(plan["data"]["pack"], plan["data"]["train"]),
        seed=plan["seed"],
        objective=objective,
        seen=_seen(source, plan["backbones"][0]["weights"]),
        best=tuple(by_name[name] for name in best if objectives[0].score(by_name[name].epochs) is not None),
    )


def _seen(source: Mapping[str, Any], weights: str) -> DatasetView | None:
    return DatasetView(profile_from_dict(source["measured"]), weights) if "measured" in source else None


def _saw_test_images(earlier: PastSweep, prepared: Prepared, storage: Path) -> str:
    """Why a sweep must not be asked: its trials saw images that this sweep is to be tested on, or may have."""
    if (earlier.data[0], earlier.seed) == (prepared.pack.hash, prepared.plan.seed):
        return ""
    packs = storage / "packs" if object_store.is_remote(storage) else prepared.pack.folder.parent
    folder = packs / earlier.data[0][:16]
    if not object_store.exists(folder / "pack.json"):
        return "its images are gone, so nobody can tell whether it saw those of this test part"
    try:
        pack = load_pack(local_cache.fetch_cached(folder, "pack.json"))
        split = split_pack(pack, earlier.seed)
    except (ValueError, KeyError, OSError) as error:
        return f"its images cannot be read ({error})"
    theirs = {pack.digests[place] for place in (*split.train, *split.val)}
    ours = {prepared.pack.digests[place] for place in (*prepared.split.train, *prepared.split.val)}
    met = ({prepared.pack.digests[place] for place in prepared.split.test} - ours) & theirs
    return f"its trials saw {len(met)} of the images that this sweep is to be tested on" if met else ""


def _why_none(ranked: Sequence[Neighbour], near: Sequence[Neighbour], passed_over: Mapping[str, str]) -> str:
    if near:
        return (
            "the best recipes of data that look alike cannot be had here, with these strategies, networks, optimizers"
        )
    if not ranked:
        return "no earlier sweep in this storage has finished trials on measured data, searched for the same"
    first = ranked[0]
    if first.sweep.name in passed_over:
        return "nothing else in this storage looks alike"
    return (
        f"nothing in this storage looks alike: {first.sweep.name} comes nearest, at distance {first.distance:.2f}, and "
        f"{MAX_DISTANCE} is the limit"
    )
