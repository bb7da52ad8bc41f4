"""Arms: recipes that are compared outside of a search, each on several seeds with a validation part of its own.

The test part stays closed. What has been run is kept, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev

from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.known_good import KNOWN_GOOD
from sweeps.engine.search_space.overrides import space_for
from xfer.devices.host_memory import retain_freed_memory
from xfer.recipe import Recipe
from xfer.records import Record, as_dict, record_from_dict
from xfer.training import networks


def known_good(strategy: str) -> Config:
    """The first recipe that searches begin with, of this strategy."""
    return next(wish for wish in KNOWN_GOOD if wish["strategy"] == strategy)


@dataclass(frozen=True)
class Variant:
    """An entry in a recipe."""

    kind: str
    entry: str
    where: str
    """The images and the network."""
    recipe: Recipe | None
    """None where the network cannot do it."""
    job: tuple[str, str] = ("", "")
    """Pack and weights file."""
    refusal: str = ""


@dataclass(frozen=True)
class VariantResult:
    """What an arm came to on its seeds."""

    arm: Variant
    records: tuple[Record, ...]

    @property
    def accuracies(self) -> list[float]:
        """On the validation part, in [0, 1], of the seeds that did not diverge."""
        return [record.val_accuracy or 0.0 for record in self.records if record.status == "finished"]

    @property
    def accuracy(self) -> str:
        """Mean and standard deviation of the validation accuracy over the seeds, and how many of them diverged."""
        found = self.accuracies
        lost = len(self.records) - len(found)
        said = f"{fmean(found):.1%} ± {stdev(found):.1%}" if len(found) > 1 else "no number"
        return said + (f" ({lost} of {len(self.records)} diverged)" if lost else "")

    @property
    def images(self) -> int:
        """On how many images it rests, over all seeds."""
        return sum(len(record.val.correct) for record in self.records if record.val)


def prepare_data(data: str, backbone: str, weights: str, image_size: int, epochs: int, storage: Path) -> Prepared:
    """Images and a network, as for a sweep."""
    plan = Plan("arms", "What does each of them do?", data=data, backbones=(backbone,), weights={backbone: weights})
    settings = {"image_size": image_size, "epochs": epochs, "strategies": ("naive",), "advise": False}
    return prepare(replace(plan, **settings), storage)  # type: ignore[arg-type]  # of mixed types


def build_variants(
    prepared: Prepared, wishes: Iterable[tuple[str, Config]], edits: Mapping[str, str] | None = None
) -> Iterator[Variant]:
    """The recipe of each wish, which is the kind of entry that it is about, and what is asked for.

    Args:
        prepared: images and a network.
        wishes: what they do not name takes the first value there is, or the good one.
        edits: of the usual space, as `sweeps.engine.search_space.overrides.space_for` takes them.
    """
    backbone = prepared.backbones[0]
    space = space_for([backbone.name], prepared.plan.epochs, edits=edits or {})
    where = f"{prepared.source}, {backbone.name}"
    for kind, wish in wishes:
        recipe = prepared.recipe(space.configured({"backbone": backbone.name, **wish}))
        try:
            networks.check_network(recipe)
            yield Variant(kind, str(wish[kind]), where, recipe, (str(prepared.pack.folder), str(backbone.file)))
        except ValueError as error:
            yield Variant(kind, str(wish[kind]), where, None, refusal=str(error))


def run_variants(asked: Iterable[Variant], seeds: Sequence[int], folder: Path, workers: int) -> list[VariantResult]:
    """Run every arm on every seed, in processes of one thread each, but for what has been run."""
    asked = list(asked)
    folder.mkdir(parents=True, exist_ok=True)
    repeats = [(arm.recipe.with_seeds(seed, seed), arm.job) for seed in seeds for arm in asked if arm.recipe]
    jobs = {recipe.id: (recipe, job) for recipe, job in repeats if not (folder / f"{recipe.id}.json").exists()}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=retain_freed_memory) as pool:
        running = [pool.submit(_run_one, recipe, *job, folder) for recipe, job in jobs.values()]
        for done, future in enumerate(as_completed(running), start=1):
            print(f"{done} of {len(running)}: {future.result()}", flush=True)
    return [VariantResult(arm, tuple(_records(arm, seeds, folder))) for arm in asked]


def _run_one(recipe: Recipe, pack: str, weights: str, folder: Path) -> str:
    import torch

    from xfer.data.pack import load_pack
    from xfer.run import Run
    from xfer.training.epochs import DivergedError

    torch.set_num_threads(1)
    file = Path(weights) if recipe.weights else None
    run, error = Run(recipe, load_pack(Path(pack)), file, torch.device("cpu")), None
    try:
        for _ in run:
            pass
    except DivergedError as diverged:
        error = str(diverged)
    record = run.record(phase="final", error=error)
    (folder / f"{recipe.id}.json").write_text(json.dumps(as_dict(record)))
    return f"{recipe.strategy} {record.val_accuracy if error is None else error}"


def _records(arm: Variant, seeds: Sequence[int], folder: Path) -> Iterator[Record]:
    for seed in seeds if arm.recipe else ():
        assert arm.recipe is not None
        yield record_from_dict(json.loads((folder / f"{arm.recipe.with_seeds(seed, seed).id}.json").read_text()))
