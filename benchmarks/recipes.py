"""Which recipe of each strategy should a search begin with?

    python -m benchmarks.recipes --backbone mobilenetv2_100 \
        --weights ../shared/data/weights/mobilenetv2_100.safetensors --image-size 96 ../shared/data/simpsons ...

Optimizers and learning rates of each strategy are tried on several data sets, all else being as a search begins with
it. What a recipe falls short of the best of its strategy there, in points of validation accuracy, is its regret; the
one with the smallest mean regret is what KNOWN_GOOD in sweeps/engine/search_space/known_good.py should name, if such a
choice holds on
data that it was not made on: each data set is left out in turn. The test parts stay closed; QuickDraw and
Stanford Cars, on which row 3 of RESULTS.md is measured, are not looked at.

The table goes to benchmarks/RECIPES.md. Runs are kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from benchmarks.results_page import markdown_table
from benchmarks.variants import VariantResult, build_variants, known_good, prepare_data, run_variants
from sweeps.engine.search_space.distributions import Config

OUTPUT_FILE = Path(__file__).with_name("RECIPES.md")
WIDTH = 112
CANDIDATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "clip": {
        "sgd": (1e-2, 3e-2, 1e-1),
        "adam": (5e-4, 2e-3),
        "radam": (2e-3, 5e-3),
        "ranger": (3e-3, 1e-2, 2e-2),
    },
    "freeze_then_unfreeze": {"sgd": (1e-2, 3e-2, 1e-1), "adam": (5e-4, 2e-3), "ranger": (1e-2,)},
    "naive": {"sgd": (1e-3, 3e-3, 1e-2), "adam": (5e-4, 2e-3), "ranger": (1e-2,)},
    "linear_probe": {"sgd": (1e-1,), "adam": (5e-3, 1e-2), "ranger": (1e-2, 3e-2)},
    "scratch": {"sgd": (3e-2,), "adam": (5e-4, 2e-3), "ranger": (1e-2,)},
}
"""By strategy and optimizer: learning rates. Those that a search begins with now are among them."""


def main() -> None:
    """Run what has not been run, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="images, as for a sweep: several data sets")
    parser.add_argument("--backbone", required=True, help="timm's name")
    parser.add_argument("--weights", required=True, help="FILE")
    parser.add_argument("--image-size", type=int, required=True, help="in pixels")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--storage", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    every = [
        arm
        for data in asked.data
        for arm in build_variants(
            prepare_data(data, asked.backbone, asked.weights, asked.image_size, asked.epochs, asked.storage),
            (("strategy", wish) for wish in candidate_recipes()),
        )
    ]
    results = run_variants(every, range(1, asked.seeds + 1), asked.storage / "records", asked.workers)
    page = _page(results, asked)
    print(page)
    OUTPUT_FILE.write_text(page)


def candidate_recipes() -> list[Config]:
    """Each strategy's known good recipe with every optimizer and rate in turn."""
    return [
        {**_without_rate(known_good(strategy)), "optimizer": optimizer, f"{optimizer}.learning_rate": rate}
        for strategy, optimizers in CANDIDATES.items()
        for optimizer, rates in optimizers.items()
        for rate in rates
    ]


def recipe_regrets(accuracies: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What each recipe falls short of the best one, by recipe and data set.

    >>> recipe_regrets({"a": {"x": 0.5, "y": 1.0}, "b": {"x": 0.75, "y": 0.5}})
    {'a': {'x': 0.25, 'y': 0.0}, 'b': {'x': 0.0, 'y': 0.5}}
    """
    best = {where: max(found[where] for found in accuracies.values()) for where in next(iter(accuracies.values()))}
    return {name: {where: best[where] - found[where] for where in best} for name, found in accuracies.items()}


def lowest_regret_recipe(accuracies: Mapping[str, Mapping[str, float]], without: str | None = None) -> str:
    """The recipe of the smallest mean regret, over all data sets or all but one.

    >>> lowest_regret_recipe({"a": {"x": 0.5, "y": 1.0}, "b": {"x": 0.75, "y": 0.5}})
    'a'
    >>> lowest_regret_recipe({"a": {"x": 0.5, "y": 1.0}, "b": {"x": 0.75, "y": 0.5}}, without="y")
    'b'
    """
    missed = recipe_regrets(accuracies)
    return min(missed, key=lambda name: fmean(value for where, value in missed[name].items() if where != without))


def _without_rate(wish: Config) -> Config:
    return {name: value for name, value in wish.items() if not name.endswith("learning_rate")}


def _page(results: list[VariantResult], asked: argparse.Namespace) -> str:
    """The committed tables, with the command, the date and the machine that made them."""
    command = (
        f"python -m benchmarks.recipes --backbone {asked.backbone} --weights {asked.weights} --image-size "
        f"{asked.image_size} --epochs {asked.epochs} --seeds {asked.seeds} {shlex.join(asked.data)}"
    )
    found: dict[str, dict[str, dict[str, float]]] = {}
    images: dict[str, int] = {}
    for result in results:
        recipe, where = result.arm.recipe, result.arm.where.split(",")[0]
        assert recipe is not None
        name = f"{recipe.optimizer} {recipe.learning_rate:g}"
        # One that diverged has an accuracy too, and is not to be begun with: 0.
        lost = [0.0] * (len(result.records) - len(result.accuracies))
        found.setdefault(result.arm.entry, {}).setdefault(name, {})[where] = fmean([*result.accuracies, *lost])
        images[where] = max(images.get(where, 0), result.images)
    said = ", ".join(f"{where} {count}" for where, count in images.items())
    lines = [
        "# Recipes: what a search should begin with",
        "",
        *textwrap.wrap(
            f"Mean validation accuracy over {asked.seeds} seeds, each with a validation part of its own (images in "
            f"all: {said}); the test parts stayed closed. {asked.backbone} at {asked.image_size} px, {asked.epochs} "
            f"epochs. Regret: what a recipe falls short of the best of its strategy, in points, mean over the data "
            f"sets. A run that diverged counts as 0.",
            WIDTH,
        ),
        "",
        f"    {command}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPU cores, one thread a run.",
    ]
    for strategy, accuracies in found.items():
        missed = {name: fmean(each.values()) for name, each in recipe_regrets(accuracies).items()}
        rows = [
            (f"`{name}`", *(f"{accuracies[name][where]:.1%}" for where in images), f"{100 * missed[name]:.1f}")
            for name in sorted(missed, key=missed.__getitem__)
        ]
        left_out = {where: lowest_regret_recipe(accuracies, without=where) for where in images}
        lines += ["", f"## {strategy}", "", *markdown_table(("recipe", *images, "regret"), rows), ""]
        lines += textwrap.wrap(
            "Chosen without looking at it: "
            + "; ".join(f"{where} `{name}` {accuracies[name][where]:.1%}" for where, name in left_out.items())
            + ".",
            WIDTH,
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
