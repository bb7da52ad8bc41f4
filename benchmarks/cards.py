"""What does each entry of each table do, all else being equal?

    python -m benchmarks.cards --data ../shared/data/simpsons --backbone mobilenetv2_100 \
        --weights ../shared/data/weights/mobilenetv2_100.safetensors --image-size 96 --write

Each entry takes its turn in one recipe, `clip` with SGD and no augmentation, on three seeds, each with a validation
part of its own; the test part stays closed. A strategy brings its known good recipe, for strategies want other rates.
What the backbone cannot do is tried on small networks that have learned the digits 0 to 4 and are shown 5 to 9.

The table goes to benchmarks/CARDS.md and, with `--write`, a line `Measured:` into each entry's docstring. Runs are kept
in the storage folder: the same command goes on where it was stopped. Nothing is tuned here, and three seeds tell apart
only what differs by several points.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import platform
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.variants import VariantResult, build_variants, known_good, prepare_data, run_variants
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.quickstart_data import TARGET_CLASSES, TRAINING_IMAGES, pretrained_weights, write_digits
from sweeps.engine.search_space.distributions import Config
from xfer.choices import default_parameters
from xfer.recipe import CHOICE_TABLES

SEEDS = (1, 2, 3)
ALL_ENTRIES = {kind: ",".join(table) for kind, table in CHOICE_TABLES.items()}
"""Any entry may be asked for; where none is, the first counts, so that nothing is augmented."""
OUTPUT_FILE = Path(__file__).with_name("CARDS.md")
WIDTH = 112
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
    "embedding_loss": ("none", "contrastive", "triplet"),
    "head": ("linear",),
    "activation": ("keep", "mish", "silu", "leaky_relu"),
    "batch_norm": ("with_weights", "frozen", "always"),
    "colour": ("rgb", "grey"),
}
"""What the sources of this project name. Each of these has a number on its card, and is run first."""

BASE_RECIPE: Config = {"strategy": "clip", "clip_norm": 1.0, "optimizer": "sgd"}
"""What every entry but a strategy takes its turn in: the same whatever searches begin with."""
BASE_RECIPE_BY_ENTRY: Mapping[tuple[str, str], Config] = {
    ("batch_norm", "always"): {"strategy": "linear_probe", "optimizer": "adam", "batch_size": 32}
}
"""What an entry takes its turn in that would change nothing there."""

SMALL_NETWORK_RECIPES: Mapping[str, Mapping[str, Config]] = {
    "test_resnet": {"linear_probe": {}, "drop_early": {"stage": 2}},
    "test_vit": {"linear_probe": {}, "drop_early": {"stage": 1}, "clip": {}, "lora": {}},
}
"""Which strategies are tried on which small network, the ones that others do not refuse for comparison."""


def main() -> None:
    """Run what has not been run, then write the table and, where asked, the docstrings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images, as for a sweep")
    parser.add_argument("--backbone", required=True, help="timm's name")
    parser.add_argument("--weights", required=True, help="FILE")
    parser.add_argument("--image-size", type=int, required=True, help="in pixels")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--storage", type=Path, default=Path("runs/cards"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="also put a line into each entry's docstring")
    asked = parser.parse_args()

    def known(data: str, backbone: str, weights: str, image_size: int) -> Prepared:
        return prepare_data(data, backbone, weights, image_size, asked.epochs, asked.storage)

    entries = list(
        build_variants(known(asked.data, asked.backbone, asked.weights, asked.image_size), _wishes(), ALL_ENTRIES)
    )
    folder = str(write_digits(asked.storage / "digits-5-9", TARGET_CLASSES, TRAINING_IMAGES))
    for name, strategies in SMALL_NETWORK_RECIPES.items():
        small = known(folder, name, str(pretrained_weights(asked.storage, name, 32)), 32)
        wishes = (("strategy", {**known_good(each), **own}) for each, own in strategies.items())
        entries += build_variants(small, wishes, ALL_ENTRIES)
    entries.sort(key=lambda arm: arm.entry not in BENCHMARKED_ENTRIES[arm.kind])
    results = run_variants(entries, SEEDS, asked.storage / "records", asked.workers)
    results.sort(key=lambda result: (result.arm.where != entries[0].where, list(CHOICE_TABLES).index(result.arm.kind)))
    OUTPUT_FILE.write_text(_page(results, asked))
    if asked.write:
        _write(results)


def _wishes() -> Iterator[tuple[str, Config]]:
    """Every entry of every table: a strategy with its known good recipe, all else in `BASE_RECIPE`."""
    for name in CHOICE_TABLES["strategy"]:
        yield "strategy", known_good(name)
    for kind, table in CHOICE_TABLES.items():
        if kind != "strategy":
            for name, entry in table.items():
                yield (
                    kind,
                    {**BASE_RECIPE_BY_ENTRY.get((kind, name), BASE_RECIPE), kind: name, **default_parameters(entry)},
                )


def _page(results: list[VariantResult], asked: argparse.Namespace) -> str:
    """The committed table, with the command, the date and the machine that made it."""
    command = (
        f"python -m benchmarks.cards --data {asked.data} --backbone {asked.backbone} --weights {asked.weights} "
        f"--image-size {asked.image_size} --epochs {asked.epochs}"
    )
    rows = [
        "# Cards: every entry of every table, all else being equal",
        "",
        *textwrap.wrap(
            f"Validation accuracy, mean and standard deviation over {len(SEEDS)} seeds, each with a validation part of "
            f"its own; the test parts stayed closed. {asked.epochs} epochs. A strategy is run with its known good "
            f"recipe, every other entry in `clip` with SGD (batch norm `always` in `linear_probe`, for where "
            f"everything is trained it changes nothing), without augmentation but where that is the entry. Rates and "
            f"recipes are those that sweeps/engine/search_space/known_good.py had on the day below; nothing was tuned for "
            f"these runs, so an entry that wants another rate or more epochs looks worse here than it is. Differences "
            f"below about five points are noise.",
            WIDTH,
        ),
        "",
        f"    {command}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPU cores, one thread a run.",
    ]
    for where in dict.fromkeys(result.arm.where for result in results):
        rows += ["", f"## {where}", "", "| table | entry | accuracy | images | parameters moved |"]
        rows += ["| --- | --- | --- | --- | --- |"]
        rows += [_row(result) for result in results if result.arm.where == where]
    return "\n".join(rows) + "\n"


def _row(result: VariantResult) -> str:
    arm = result.arm
    if arm.recipe is None:
        return f"| {arm.kind} | `{arm.entry}` | refused: {arm.refusal} | | |"
    choice, moved = getattr(arm.recipe, arm.kind), result.records[0].trainable_parameters
    own = ", ".join(f"{name}={value:g}" for name, value in choice.values)
    return (
        f"| {arm.kind} | `{choice.name}{f'({own})' if own else ''}` | {result.accuracy} | {result.images} | {moved:,} |"
    )


def _write(results: list[VariantResult]) -> None:
    """Put what was measured into the docstrings, in the place of what stood there."""
    said: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.arm.recipe is None:
            continue
        values = said.setdefault((result.arm.kind, result.arm.entry), [])
        values.append(f"{result.accuracy} on {result.arm.where}")
    for (kind, entry), values in said.items():
        text = f"Measured: {'; '.join(values)} ({len(SEEDS)} seeds; benchmarks/CARDS.md)."
        _write_line(CHOICE_TABLES[kind][entry], text)


def _write_line(entry: Any, text: str) -> None:
    path = Path(inspect.getfile(entry))
    source = path.read_text()
    found = next(node for node in ast.parse(source).body if getattr(node, "name", "") == entry.__name__)
    assert isinstance(found, ast.FunctionDef)
    node = found.body[0]
    assert node.end_lineno is not None
    path.write_text(_replaced(source, node.lineno - 1, node.end_lineno, with_measured_paragraph(entry.__doc__, text)))


def with_measured_paragraph(docstring: str, text: str) -> str:
    r"""A docstring with a paragraph that says what was measured, after its prose and before its sections.

    >>> print(with_measured_paragraph("Does it.\n\n    Measured: old.\n\n    Raises:\n        E: why.\n    ", "Measured: new."))
    Does it.
    <BLANKLINE>
    Measured: new.
    <BLANKLINE>
    Raises:
        E: why.
    """
    paragraphs = [part for part in inspect.cleandoc(docstring).split("\n\n") if not part.startswith("Measured:")]
    sections = [place for place, part in enumerate(paragraphs) if part.startswith(("Raises:", "Args:", ">>>"))]
    paragraphs.insert(min(sections, default=len(paragraphs)), textwrap.fill(text, WIDTH))
    return "\n\n".join(paragraphs)


def _replaced(source: str, start: int, end: int, docstring: str) -> str:
    lines = source.splitlines(keepends=True)
    raw = "r" if lines[start].lstrip().startswith("r") else ""
    body = textwrap.indent(f'{raw}"""{docstring}\n"""\n', "    ")
    return "".join([*lines[:start], body, *lines[end:]])


if __name__ == "__main__":
    main()
