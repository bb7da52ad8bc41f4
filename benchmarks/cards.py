"""What does each entry of each table of choices achieve, everything else being equal?

    python -m benchmarks.cards --data ../shared/data/simpsons --backbone mobilenetv2_100 \
        --weights ../shared/data/weights/mobilenetv2_100.safetensors --image-size 96 --write

Each entry is tried in the same recipe, `clip` with SGD and no augmentation, on three seeds with different validation
parts; the test part is not evaluated. A strategy runs with its known good recipe, because strategies need different
learning rates. Entries that the backbone does not support run on small networks, pretrained on the digits 0 to 4 and
transferred to 5 to 9. Entries of `balance` need classes of unequal size: benchmarks/imbalance.py measures them.

The table is written to benchmarks/CARDS.md and, with `--write`, a paragraph `Measured:` into each entry's docstring.
Runs are stored in the storage folder, so the same command resumes after an interruption. Nothing is tuned here, and
three seeds separate only differences of several points.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import platform
import re
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.digits import source_weights, write_target
from benchmarks.variants import VariantResult, build_variants, known_good, prepare_data, run_variants
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.search_space.distributions import Config
from xfer.choices import default_parameters
from xfer.recipe import CHOICE_TABLES

SEEDS = (1, 2, 3)
ALL_ENTRIES = {kind: ",".join(table) for kind, table in CHOICE_TABLES.items()}
"""A search space with every entry. The first entry of a table is its default, so nothing is augmented."""
OUTPUT_FILE = Path(__file__).with_name("CARDS.md")
WIDTH = 112
IMBALANCED_TABLE = "balance"
"""Table whose entries do nothing for classes of equal size. `benchmarks.imbalance` measures it."""
BENCHMARKED_ENTRIES: Mapping[str, tuple[str, ...]] = {
    "strategy": (
        *("scratch", "small_cnn", "linear_probe", "freeze_then_unfreeze", "freeze_until_converged", "naive", "clip"),
        *("freeze_first", "train_last", "early_cut", "drop_early"),
    ),
    "optimizer": ("sgd", "adam", "radam", "ranger"),
    "schedule": ("onecycle", "cosine", "step"),
    "augmentation": ("none", "flip", "randaugment", "autoaugment", "random_resized_crop", "cutout"),
    "mixing": ("none", "cutmix"),
    "loss": ("cross_entropy", "label_smoothing"),
    "balance": ("none", "class_weights", "balanced_sampler", "logit_adjustment"),
    "embedding_loss": ("none", "contrastive", "triplet"),
    "head": ("linear",),
    "activation": ("keep", "mish", "silu", "leaky_relu"),
    "batch_norm": ("with_weights", "frozen", "always"),
    "colour": ("rgb", "grey"),
}
"""Entries named by the sources of this project. Each has a number on its card and runs first."""

BASE_RECIPE: Config = {"strategy": "clip", "clip_norm": 1.0, "optimizer": "sgd"}
"""The recipe in which every entry except a strategy is tried. It does not follow the known good recipes."""
BASE_RECIPE_BY_ENTRY: Mapping[tuple[str, str], Config] = {
    ("batch_norm", "always"): {"strategy": "linear_probe", "optimizer": "adam", "batch_size": 32}
}
"""The recipe of entries that have no effect in `BASE_RECIPE`."""

SMALL_NETWORK_RECIPES: Mapping[str, Mapping[str, Config]] = {
    "test_resnet": {"linear_probe": {}, "drop_early": {"stage": 2}},
    "test_vit": {"linear_probe": {}, "drop_early": {"stage": 1}, "clip": {}, "lora": {}},
}
"""Strategies tried on each small network; those that every network supports serve as comparison."""


def main() -> None:
    """Run what is missing, then write the table and, with `--write`, the docstrings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images, as for a sweep")
    parser.add_argument("--backbone", required=True, help="timm name")
    parser.add_argument("--weights", required=True, help="FILE")
    parser.add_argument("--image-size", type=int, required=True, help="in pixels")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--storage", type=Path, default=Path("runs/cards"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="also update each entry's docstring")
    args = parser.parse_args()

    def prepare_network(data: str, backbone: str, weights: str, image_size: int) -> Prepared:
        return prepare_data(data, backbone, weights, image_size, args.epochs, args.storage)

    variants = list(
        build_variants(
            prepare_network(args.data, args.backbone, args.weights, args.image_size), _entries(), ALL_ENTRIES
        )
    )
    folder = str(write_target(args.storage / "digits-5-9"))
    for name, strategies in SMALL_NETWORK_RECIPES.items():
        small = prepare_network(folder, name, str(source_weights(args.storage, name, 32)), 32)
        small_entries = (("strategy", {**known_good(strategy), **params}) for strategy, params in strategies.items())
        variants += build_variants(small, small_entries, ALL_ENTRIES)
    variants.sort(key=lambda variant: variant.entry not in BENCHMARKED_ENTRIES[variant.kind])
    results = run_variants(variants, SEEDS, args.storage / "records", args.workers)
    tables = list(CHOICE_TABLES)
    results.sort(key=lambda result: (result.variant.setting != variants[0].setting, tables.index(result.variant.kind)))
    imbalanced = imbalanced_section(OUTPUT_FILE.read_text(encoding="utf-8"))
    OUTPUT_FILE.write_text(f"{_page(results, args)}\n{imbalanced}".rstrip("\n") + "\n", encoding="utf-8")
    if args.write:
        _write_docstrings(results)


def _entries() -> Iterator[tuple[str, Config]]:
    """Every entry except those of `balance`: strategies with their known good recipe, the others in `BASE_RECIPE`."""
    for name in CHOICE_TABLES["strategy"]:
        yield "strategy", known_good(name)
    for kind, table in CHOICE_TABLES.items():
        if kind not in ("strategy", IMBALANCED_TABLE):
            for name, entry in table.items():
                yield (
                    kind,
                    {**BASE_RECIPE_BY_ENTRY.get((kind, name), BASE_RECIPE), kind: name, **default_parameters(entry)},
                )


def _page(results: list[VariantResult], args: argparse.Namespace) -> str:
    """Format CARDS.md: the tables with their command, date and machine."""
    command = (
        f"python -m benchmarks.cards --data {args.data} --backbone {args.backbone} --weights {args.weights} "
        f"--image-size {args.image_size} --epochs {args.epochs}"
    )
    rows = [
        "# Cards: every entry of every table, everything else being equal",
        "",
        *textwrap.wrap(
            f"Validation accuracy, mean and standard deviation over {len(SEEDS)} seeds, each with a different "
            f"validation part; the test parts were not evaluated. {args.epochs} epochs. A strategy runs with its known "
            f"good recipe, every other entry in `clip` with SGD (batch norm `always` in `linear_probe`, because it "
            f"changes nothing if everything is trained), without augmentation unless that is the entry. Learning rates "
            f"and recipes are those of sweeps/engine/search_space/known_good.py on the date below. Nothing was tuned "
            f"for these runs, so an entry that needs another rate or more epochs looks worse here than it is. "
            f"Differences below about five points are noise.",
            WIDTH,
        ),
        "",
        f"    {command}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPU cores, one thread a run.",
    ]
    for setting in dict.fromkeys(result.variant.setting for result in results):
        rows += ["", f"## {setting}", "", "| table | entry | accuracy | images | parameters moved |"]
        rows += ["| --- | --- | --- | --- | --- |"]
        rows += [_row(result) for result in results if result.variant.setting == setting]
    return "\n".join(rows) + "\n"


def imbalanced_section(page: str) -> str:
    """Return the section of CARDS.md that `benchmarks.imbalance` writes, the last one; empty if there is none."""
    found = re.search(r"^## imbalanced .*\Z", page, re.MULTILINE | re.DOTALL)
    return found.group() if found else ""


def _row(result: VariantResult) -> str:
    variant = result.variant
    if variant.recipe is None:
        return f"| {variant.kind} | `{variant.entry}` | refused: {variant.refusal} | | |"
    choice, trainable = getattr(variant.recipe, variant.kind), result.records[0].trainable_parameters
    params = ", ".join(f"{name}={value:g}" for name, value in choice.values)
    name = f"{choice.name}({params})" if params else choice.name
    return f"| {variant.kind} | `{name}` | {result.accuracy} | {result.images} | {trainable:,} |"


def _write_docstrings(results: list[VariantResult]) -> None:
    """Write the measured accuracies into the docstrings, replacing earlier ones."""
    accuracies: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.variant.recipe is None:
            continue
        values = accuracies.setdefault((result.variant.kind, result.variant.entry), [])
        values.append(f"{result.accuracy} on {result.variant.setting}")
    for (kind, entry), values in accuracies.items():
        text = f"Measured: {'; '.join(values)} ({len(SEEDS)} seeds; benchmarks/CARDS.md)."
        write_measured_paragraph(CHOICE_TABLES[kind][entry], text)


def write_measured_paragraph(entry: Any, text: str) -> None:
    """Write a paragraph `Measured: ...` into the docstring of a function, in its source file."""
    path = Path(inspect.getfile(entry))
    source = path.read_text()
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == entry.__name__)
    assert isinstance(function, ast.FunctionDef)
    old = function.body[0]
    assert old.end_lineno is not None
    docstring = with_measured_paragraph(entry.__doc__, text)
    path.write_text(_replace_docstring(source, old.lineno - 1, old.end_lineno, docstring))


def with_measured_paragraph(docstring: str, text: str) -> str:
    r"""Insert a paragraph `Measured: ...` after the prose of a docstring and before its sections.

    >>> docstring = "Does it.\n\n    Measured: old.\n\n    Raises:\n        E: why.\n    "
    >>> print(with_measured_paragraph(docstring, "Measured: new."))
    Does it.
    <BLANKLINE>
    Measured: new.
    <BLANKLINE>
    Raises:
        E: why.
    """
    paragraphs = [part for part in inspect.cleandoc(docstring).split("\n\n") if not part.startswith("Measured:")]
    sections = [
        index for index, part in enumerate(paragraphs) if part.startswith(("Args:", "Returns:", "Raises:", ">>>"))
    ]
    paragraphs.insert(min(sections, default=len(paragraphs)), textwrap.fill(text, WIDTH))
    return "\n\n".join(paragraphs)


def _replace_docstring(source: str, start: int, end: int, docstring: str) -> str:
    lines = source.splitlines(keepends=True)
    raw = "r" if lines[start].lstrip().startswith("r") else ""
    body = textwrap.indent(f'{raw}"""{docstring}\n"""\n', "    ")
    return "".join([*lines[:start], body, *lines[end:]])


if __name__ == "__main__":
    main()
