"""How many steps does fine-tuning need? Accuracy by length, for some strategies, batch norms and augmentations.

    python -m benchmarks.steps --weights ../shared/data/weights/mobilenetv2_100.safetensors \
        ../shared/data/hymenoptera ../shared/data/simpsons ../shared/data/caltech10 ../shared/data/stanford_cars:30

Each strategy trains with its known good recipe and batches of 16 images, with a learning rate schedule of that length.
Every seed has another validation part; the test parts are not evaluated. `FOLDER:30` stands for the first 30 classes.
`xfer.lengths` takes the default length of a run from the result.

Results are stored in benchmarks/steps.json after every run, so the same command continues after an interruption, with
further seeds or lengths too, and the page benchmarks/STEPS.md is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.results_page import markdown_table
from benchmarks.variants import known_good
from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.search_space.overrides import space_for
from xfer.devices.host_memory import retain_freed_memory
from xfer.recipe import Recipe

RESULTS_FILE = Path(__file__).with_name("steps.json")
OUTPUT_FILE = Path(__file__).with_name("STEPS.md")
WIDTH = 112
BATCH_SIZE = 16
STRATEGIES = ("clip", "naive", "lp_ft", "freeze_then_unfreeze")
BATCH_NORMS = ("with_weights", "frozen")
AUGMENTATIONS = ("flip", "random_resized_crop")
FROZEN_FRACTION = 1 / 4
"""Fraction of the run for which freeze_then_unfreeze keeps the network frozen: 2 of 8 epochs."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run: what is varied. A `steps` of 0 stands for the logistic probe, which takes none."""

    data: str
    seed: int
    steps: int
    strategy: str
    batch_norm: str = ""
    augmentation: str = ""

    @property
    def recipe_name(self) -> str:
        """The part of the name that stands in front of a row."""
        if not self.steps:
            return self.strategy
        batch_norm = "frozen" if self.batch_norm == "frozen" else "following"
        return f"{self.strategy}, batch norm {batch_norm}, {self.augmentation}"


def main() -> None:
    """Run what is missing, shortest runs first, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="images, as for a sweep; FOLDER:N for the first N classes")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm name")
    parser.add_argument("--weights", required=True, help="FILE")
    parser.add_argument("--image-size", type=int, default=96, help="in pixels")
    parser.add_argument("--steps", default="50,100,300,1000", help="lengths, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--storage", type=Path, default=Path("runs/steps"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    results = read_results()
    done = {cell_of(result) for result in results}
    jobs: list[tuple[Cell, Recipe, tuple[str, str]]] = []
    for data in args.data:
        prepared = _prepare(data, args)
        name = f"{prepared.source} ({len(prepared.pack.classes)} classes)"
        lengths = [int(steps) for steps in args.steps.split(",")]
        jobs += [job for job in _jobs(prepared, name, lengths, args.seeds) if job[0] not in done]
    jobs.sort(key=lambda job: (job[0].seed, job[0].steps))
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(args.workers, get_context("spawn"), initializer=retain_freed_memory) as pool:
        running = [pool.submit(_run_cell, *job) for job in jobs]
        for number, future in enumerate(as_completed(running), start=1):
            results.append(future.result())
            RESULTS_FILE.write_text(format_results(results), encoding="utf-8")
            print(f"{number} of {len(running)}: {results[-1]}", flush=True)
    OUTPUT_FILE.write_text(_page(results, shlex.join(sys.argv[1:])), encoding="utf-8")


def read_results() -> list[Result]:
    """Return the stored results, of all commands so far."""
    return json.loads(RESULTS_FILE.read_text(encoding="utf-8")) if RESULTS_FILE.exists() else []


def format_results(results: Iterable[Result]) -> str:
    """Return results as JSON with one line each."""
    return "[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]\n"


def cell_of(result: Mapping[str, Any]) -> Cell:
    """Return what a stored result was measured for."""
    return Cell(**{name: result[name] for name in Cell.__dataclass_fields__})


def _prepare(data: str, args: argparse.Namespace) -> Prepared:
    folder, _, classes = data.partition(":")
    plan = Plan(
        "steps",
        "How many steps does fine-tuning need?",
        data=folder,
        classes=(classes,) if classes else (),
        backbones=(args.backbone,),
        weights={args.backbone: args.weights},
        image_size=args.image_size,
        strategies=("naive",),
        advise=False,
    )
    return prepare(plan, args.storage)


def _jobs(
    prepared: Prepared, name: str, lengths: Sequence[int], seeds: int
) -> Iterator[tuple[Cell, Recipe, tuple[str, str]]]:
    """Yield each cell of a data set with its recipe and the paths of pack and weights."""
    backbone = prepared.backbones[0]
    files = (str(prepared.pack.folder), str(backbone.file))
    steps_per_epoch = math.ceil(len(prepared.split.train) / BATCH_SIZE)
    edits = {"batch_norm": ",".join(BATCH_NORMS), "augmentation": "none," + ",".join(AUGMENTATIONS)}
    space = space_for([backbone.name], 8, ("logistic_probe", *STRATEGIES), edits)
    for seed in range(1, seeds + 1):
        probe = {"backbone": backbone.name, **known_good("logistic_probe")}
        recipe = prepared.recipe(space.configured(probe)).with_seeds(seed, seed)
        yield Cell(name, seed, 0, "logistic_probe"), recipe, files
        for steps, strategy, batch_norm, augmentation in product(lengths, STRATEGIES, BATCH_NORMS, AUGMENTATIONS):
            config = {"backbone": backbone.name, **known_good(strategy), "batch_size": BATCH_SIZE}
            config |= {"batch_norm": batch_norm, "augmentation": augmentation, "mixing": "none"}
            epochs = max(2, math.ceil(steps / steps_per_epoch))
            recipe = prepared.recipe(space.configured(config)).with_seeds(seed, seed)
            frozen = (("freeze_epochs", max(1, round(FROZEN_FRACTION * epochs))),)
            choice = replace(
                recipe.strategy, values=frozen if strategy == "freeze_then_unfreeze" else recipe.strategy.values
            )
            cell = Cell(name, seed, steps, strategy, batch_norm, augmentation)
            yield cell, replace(recipe, epochs=epochs, strategy=choice), files


def _run_cell(cell: Cell, recipe: Recipe, files: tuple[str, str]) -> Result:
    import torch

    from xfer.data.pack import load_pack
    from xfer.run import Run
    from xfer.training.epochs import DivergedError

    torch.set_num_threads(1)
    run = Run(recipe, load_pack(Path(files[0])), Path(files[1]), torch.device("cpu"))
    error = None
    try:
        for _ in run:
            pass
    except DivergedError as diverged:
        error = str(diverged)
    record = run.record(phase="final", error=error)
    val = record.val
    return {
        **{name: getattr(cell, name) for name in Cell.__dataclass_fields__},
        "epochs": recipe.epochs,
        "images": len(val.correct) if val else 0,
        "correct": sum(val.correct) if val else 0,
        "start_accuracy": record.start_accuracy,
        "train_accuracy": record.epochs[-1].train_accuracy if record.epochs else None,
        "seconds": round(record.seconds, 1),
        "error": error,
    }


def _page(results: Sequence[Result], command: str) -> str:
    """Format STEPS.md."""
    lines = [
        "# Steps: how long to fine-tune",
        "",
        *textwrap.wrap(
            "Validation accuracy in %, mean over seeds, each with another validation part; the test parts were not "
            f"evaluated. Known good recipes with batches of {BATCH_SIZE}; freeze_then_unfreeze is frozen for a quarter "
            "of its steps. ± is the standard deviation over seeds; cells without it have one seed. n counts "
            "the validated images of all seeds. A diverged run counts as 0.",
            WIDTH,
        ),
        "",
        f"    python -m benchmarks.steps {command}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPU cores, one thread a run.",
    ]
    for data in dict.fromkeys(result["data"] for result in results):
        of_data = [result for result in results if result["data"] == data]
        lines += ["", f"## {data}", "", *_table(of_data)]
    lines += ["", "## Mean over data sets", "", *_mean_table(results)]
    return "\n".join(lines) + "\n"


def _accuracies(results: Iterable[Result]) -> dict[tuple[str, int], list[float]]:
    """Group accuracies in % by row and length."""
    groups: dict[tuple[str, int], list[float]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result["seed"]):
        accuracy = 100 * result["correct"] / result["images"] if result["images"] else 0.0
        groups[cell_of(result).recipe_name, result["steps"]].append(accuracy)
    return groups


def _table(results: Sequence[Result]) -> list[str]:
    groups = _accuracies(results)
    lengths = sorted({steps for _, steps in groups if steps})
    probe = groups.get(("logistic_probe", 0), [])
    n = sum(result["images"] for result in results if result["strategy"] == "logistic_probe")
    rows = [(f"logistic_probe (no steps; n = {n})", *[_mean(probe)] * bool(lengths), *[""] * (len(lengths) - 1))]
    for name in dict.fromkeys(name for name, steps in groups if steps):
        rows.append((name, *(_mean(groups.get((name, steps), [])) for steps in lengths)))
    return markdown_table(("recipe", *(f"{steps:,} steps" for steps in lengths)), rows)


def _mean_table(results: Sequence[Result]) -> list[str]:
    """Mean over the data sets that have a result for every length, of the difference to the logistic probe."""
    by_data = {
        data: _accuracies(result for result in results if result["data"] == data)
        for data in dict.fromkeys(result["data"] for result in results)
    }
    lengths = sorted({result["steps"] for result in results if result["steps"]})
    names = dict.fromkeys(cell_of(result).recipe_name for result in results if result["steps"])
    rows = []
    for name in names:
        cells = []
        for steps in lengths:
            gains = [
                fmean(groups[name, steps]) - fmean(groups["logistic_probe", 0])
                for groups in by_data.values()
                if (name, steps) in groups and ("logistic_probe", 0) in groups
            ]
            cells.append(f"{fmean(gains):+.1f} ({len(gains)})" if gains else "")
        rows.append((name, *cells))
    return [
        "Points above the logistic probe; in parentheses the number of data sets.",
        "",
        *markdown_table(("recipe", *(f"{steps:,} steps" for steps in lengths)), rows),
    ]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
