"""Recipe variants, compared outside of a search, on several seeds with different validation parts.

The test part is not evaluated. Finished runs are stored, so the same command resumes after an interruption.
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
from sweeps.engine.search_space.known_good import known_good_recipes
from sweeps.engine.search_space.overrides import space_for
from xfer.devices.host_memory import retain_freed_memory
from xfer.recipe import Recipe
from xfer.records import Record, as_dict, record_from_dict
from xfer.training import networks


def known_good(strategy: str) -> Config:
    """The first known good recipe of a strategy on a batch-norm network."""
    return next(params for params in known_good_recipes() if params["strategy"] == strategy)


@dataclass(frozen=True)
class Variant:
    """A recipe that shows one entry of a table of choices."""

    kind: str
    """Table of the entry, such as `optimizer`."""
    entry: str
    setting: str
    """Names of data set and network."""
    recipe: Recipe | None
    """None if the network does not support the entry."""
    files: tuple[str, str] = ("", "")
    """Paths of pack and weights."""
    refusal: str = ""
    """Why the network does not support the entry."""


@dataclass(frozen=True)
class VariantResult:
    """The runs of a variant, one per seed."""

    variant: Variant
    records: tuple[Record, ...]

    @property
    def accuracies(self) -> list[float]:
        """Validation accuracies in [0, 1] of the seeds that did not diverge."""
        return [record.val_accuracy or 0.0 for record in self.records if record.status == "finished"]

    @property
    def accuracy(self) -> str:
        """Mean and standard deviation of the validation accuracy over the seeds, and the number of diverged seeds."""
        accuracies = self.accuracies
        diverged = len(self.records) - len(accuracies)
        text = f"{fmean(accuracies):.1%} ± {stdev(accuracies):.1%}" if len(accuracies) > 1 else "no number"
        return text + (f" ({diverged} of {len(self.records)} diverged)" if diverged else "")

    @property
    def images(self) -> int:
        """Number of evaluated images, over all seeds."""
        return sum(len(record.val.correct) for record in self.records if record.val)


def prepare_data(
    data: str, backbone: str, weights: str, image_size: int, epochs: int | None, storage: Path
) -> Prepared:
    """Prepare images and a network as for a sweep, with runs of the default length if `epochs` is None."""
    plan = Plan("arms", "What does each of them do?", data=data, backbones=(backbone,), weights={backbone: weights})
    settings = {"image_size": image_size, "epochs": epochs, "strategies": ("naive",), "advise": False}
    return prepare(replace(plan, **settings), storage)  # type: ignore[arg-type]  # mixed types


def build_variants(
    prepared: Prepared, entries: Iterable[tuple[str, Config]], edits: Mapping[str, str] | None = None
) -> Iterator[Variant]:
    """Build a variant for each entry.

    Args:
        prepared: images and a network.
        entries: pairs of the entry's table and its parameters. Missing parameters take their first or known good value.
        edits: edits of the default search space, see `sweeps.engine.search_space.overrides.space_for`.
    """
    backbone = prepared.backbones[0]
    space = space_for([backbone.name], prepared.space.length, edits=edits or {})
    setting = f"{prepared.source}, {backbone.name}"
    for kind, params in entries:
        recipe = prepared.recipe(space.configured({"backbone": backbone.name, **params}))
        try:
            networks.check_network(recipe)
            yield Variant(kind, str(params[kind]), setting, recipe, (str(prepared.pack.folder), str(backbone.file)))
        except ValueError as error:
            yield Variant(kind, str(params[kind]), setting, None, refusal=str(error))


def run_variants(variants: Iterable[Variant], seeds: Sequence[int], folder: Path, workers: int) -> list[VariantResult]:
    """Run every variant on every seed in single-threaded processes, except for runs stored in `folder`."""
    variants = list(variants)
    folder.mkdir(parents=True, exist_ok=True)
    repeats = [
        (variant.recipe.with_seeds(seed, seed), variant.files)
        for seed in seeds
        for variant in variants
        if variant.recipe
    ]
    jobs = {recipe.id: (recipe, files) for recipe, files in repeats if not (folder / f"{recipe.id}.json").exists()}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=retain_freed_memory) as pool:
        running = [pool.submit(_run_recipe, recipe, *files, folder) for recipe, files in jobs.values()]
        for number, future in enumerate(as_completed(running), start=1):
            print(f"{number} of {len(running)}: {future.result()}", flush=True)
    return [VariantResult(variant, tuple(_read_records(variant, seeds, folder))) for variant in variants]


def _run_recipe(recipe: Recipe, pack: str, weights: str, folder: Path) -> str:
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


def _read_records(variant: Variant, seeds: Sequence[int], folder: Path) -> Iterator[Record]:
    if variant.recipe is None:
        return
    for seed in seeds:
        yield record_from_dict(json.loads((folder / f"{variant.recipe.with_seeds(seed, seed).id}.json").read_text()))
