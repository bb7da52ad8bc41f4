"""Which recipe of each strategy should a search start with?

    python -m benchmarks.recipes --backbone mobilenetv2_100 \
        --weights ../shared/data/weights/mobilenetv2_100.safetensors --image-size 96 ../shared/data/simpsons ...

Tries optimizers and learning rates of each strategy on several data sets, everything else as in its known good recipe.
The regret of a recipe on a data set is its distance to the best recipe of its strategy, in points of validation
accuracy. RESEARCHED in sweeps/engine/search_space/known_good.py should name the recipe with the smallest mean regret,
if that choice generalizes: each data set is left out in turn. The test parts are not evaluated. QuickDraw and Stanford
Cars, on which row 3 of RESULTS.md is measured, are not used.

The table is written to benchmarks/RECIPES.md. Runs are stored, so the same command resumes after an interruption.
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
    "lp_ft": {"sgd": (1e-3, 3e-3, 1e-2), "adam": (1e-4, 5e-4), "ranger": (3e-3,)},
    "layer_decay": {"adamw": (1e-4, 5e-4, 2e-3)},
    "freeze_then_unfreeze": {"sgd": (1e-2, 3e-2, 1e-1), "adam": (5e-4, 2e-3), "ranger": (1e-2,)},
    "naive": {"sgd": (1e-3, 3e-3, 1e-2), "adam": (5e-4, 2e-3), "ranger": (1e-2,)},
    "linear_probe": {"sgd": (1e-2, 1e-1), "adam": (1e-3, 3e-3, 1e-2), "ranger": (1e-2, 3e-2)},
    "scratch": {"sgd": (3e-2,), "adam": (5e-4, 2e-3), "ranger": (1e-2,)},
}
"""Learning rates by strategy and optimizer, including those of the current known good recipes."""


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="images of several data sets, as for a sweep")
    parser.add_argument("--backbone", required=True, help="timm name")
    parser.add_argument("--weights", required=True, help="FILE")
    parser.add_argument("--image-size", type=int, required=True, help="in pixels")
    parser.add_argument("--epochs", type=int, help="by default the length of a sweep's trials on these images")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--storage", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    variants = [
        variant
        for data in args.data
        for variant in build_variants(
            prepare_data(data, args.backbone, args.weights, args.image_size, args.epochs, args.storage),
            (("strategy", params) for params in candidate_recipes()),
        )
    ]
    results = run_variants(variants, range(1, args.seeds + 1), args.storage / "records", args.workers)
    page = _page(results, args)
    print(page)
    OUTPUT_FILE.write_text(page)


def candidate_recipes() -> list[Config]:
    """The known good recipe of each strategy with every optimizer and learning rate of `CANDIDATES`."""
    return [
        {**_without_rate(known_good(strategy)), "optimizer": optimizer, f"{optimizer}.learning_rate": rate}
        for strategy, optimizers in CANDIDATES.items()
        for optimizer, rates in optimizers.items()
        for rate in rates
    ]


def recipe_regrets(accuracies: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Distance of each recipe to the best one, by recipe and data set.

    >>> recipe_regrets({"a": {"x": 0.5, "y": 1.0}, "b": {"x": 0.75, "y": 0.5}})
    {'a': {'x': 0.25, 'y': 0.0}, 'b': {'x': 0.0, 'y': 0.5}}
    """
    data_sets = next(iter(accuracies.values()))
    best = {data: max(by_data[data] for by_data in accuracies.values()) for data in data_sets}
    return {name: {data: best[data] - by_data[data] for data in best} for name, by_data in accuracies.items()}


def lowest_regret_recipe(accuracies: Mapping[str, Mapping[str, float]], without: str | None = None) -> str:
    """The recipe with the smallest mean regret, over all data sets or all except `without`.

    >>> lowest_regret_recipe({"a": {"x": 0.5, "y": 1.0}, "b": {"x": 0.75, "y": 0.5}})
    'a'
    >>> lowest_regret_recipe({"a": {"x": 0.5, "y": 1.0}, "b": {"x": 0.75, "y": 0.5}}, without="y")
    'b'
    """
    regrets = recipe_regrets(accuracies)
    return min(regrets, key=lambda name: fmean(value for data, value in regrets[name].items() if data != without))


def _without_rate(params: Config) -> Config:
    return {name: value for name, value in params.items() if not name.endswith("learning_rate")}


def _page(results: list[VariantResult], args: argparse.Namespace) -> str:
    """Format RECIPES.md: the tables with their command, date and machine."""
    epochs = f" --epochs {args.epochs}" if args.epochs else ""
    length = f"{args.epochs} epochs" if args.epochs else "default length"
    command = (
        f"python -m benchmarks.recipes --backbone {args.backbone} --weights {args.weights} --image-size "
        f"{args.image_size}{epochs} --seeds {args.seeds} {shlex.join(args.data)}"
    )
    by_strategy: dict[str, dict[str, dict[str, float]]] = {}
    images: dict[str, int] = {}
    for result in results:
        recipe, data = result.variant.recipe, result.variant.setting.split(",")[0]
        assert recipe is not None
        name = f"{recipe.optimizer} {recipe.learning_rate:g}"
        # A diverged run counts as 0 despite its accuracy, because no search should start with it.
        diverged = [0.0] * (len(result.records) - len(result.accuracies))
        by_recipe = by_strategy.setdefault(result.variant.entry, {})
        by_recipe.setdefault(name, {})[data] = fmean([*result.accuracies, *diverged])
        images[data] = max(images.get(data, 0), result.images)
    image_counts = ", ".join(f"{data} {count}" for data, count in images.items())
    lines = [
        "# Recipes: what a search should start with",
        "",
        *textwrap.wrap(
            f"Mean validation accuracy over {args.seeds} seeds, each with a different validation part (total number of "
            f"images: {image_counts}); the test parts were not evaluated. {args.backbone} at {args.image_size} px, "
            f"{length}. Regret: distance to the best recipe of the strategy, in points, mean over the data "
            f"sets. A diverged run counts as 0.",
            WIDTH,
        ),
        "",
        f"    {command}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPU cores, one thread a run.",
    ]
    for strategy, accuracies in by_strategy.items():
        regrets = {name: fmean(by_data.values()) for name, by_data in recipe_regrets(accuracies).items()}
        rows = [
            (f"`{name}`", *(f"{accuracies[name][data]:.1%}" for data in images), f"{100 * regrets[name]:.1f}")
            for name in sorted(regrets, key=regrets.__getitem__)
        ]
        selected = {data: lowest_regret_recipe(accuracies, without=data) for data in images}
        lines += ["", f"## {strategy}", "", *markdown_table(("recipe", *images, "regret"), rows), ""]
        lines += textwrap.wrap(
            "Selected without the data set itself: "
            + "; ".join(f"{data} `{name}` {accuracies[name][data]:.1%}" for data, name in selected.items())
            + ".",
            WIDTH,
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
