"""What does each entry of `balance` achieve on classes of unequal size, everything else being equal?

    python -m benchmarks.imbalance --data ../shared/data/simpsons --backbone mobilenetv2_100 \
        --weights ../shared/data/weights/mobilenetv2_100.safetensors --image-size 96 --write

It draws imbalanced training parts from DIR/train: class sizes fall by a factor of 10, and each seed assigns them to the
classes in another order. 16 other images of every class are the validation part. All entries run in the same recipe,
`clip` with SGD and no augmentation, and are compared by balanced accuracy.

The table becomes the last section of benchmarks/CARDS.md, and, with `--write`, a paragraph `Measured:` each entry's
docstring. Runs are stored in the storage folder, so the same command resumes after an interruption.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from benchmarks.cards import (
    ALL_ENTRIES,
    BASE_RECIPE,
    IMBALANCED_TABLE,
    OUTPUT_FILE,
    SEEDS,
    WIDTH,
    imbalanced_section,
    write_measured_paragraph,
)
from benchmarks.variants import VariantResult, build_variants, prepare_data, run_variants
from xfer.choices import default_parameters
from xfer.recipe import CHOICE_TABLES
from xfer.records import Record

IMBALANCE = 10.0
"""Largest divided by smallest class size of a training part."""
VAL_IMAGES_PER_CLASS = 16


@dataclass(frozen=True)
class EntryResult:
    """The runs of one entry, one per seed."""

    entry: str
    name: str
    """The entry with its parameters."""
    records: tuple[Record, ...]
    class_order: tuple[tuple[int, ...], ...]
    """Class labels of each seed's training part, the most frequent class first."""

    @property
    def balanced(self) -> list[float]:
        """Balanced validation accuracy of each seed."""
        evaluations = [record.val for record in self.records if record.val]
        return [found.balanced_accuracy for found in evaluations if found.balanced_accuracy is not None]

    def of_class(self, rank: int) -> list[float]:
        """Return each seed's validation accuracy in the class of this rank by frequency: 0 or, for the rarest, -1."""
        accuracies = []
        for record, order in zip(self.records, self.class_order, strict=True):
            assert record.val is not None
            rows = [row for row in record.val.confusion if row[0] == order[rank]]
            correct = sum(count for true, predicted, count in rows if true == predicted)
            accuracies.append(correct / sum(count for *_, count in rows))
        return accuracies


def main() -> None:
    """Run what is missing, then write the section of the page and, with `--write`, the docstrings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and val/CLASS of equal sizes")
    parser.add_argument("--backbone", required=True, help="timm name")
    parser.add_argument("--weights", required=True, help="FILE")
    parser.add_argument("--image-size", type=int, required=True, help="in pixels")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--storage", type=Path, default=Path("runs/cards"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="also update each entry's docstring")
    args = parser.parse_args()

    setting = f"imbalanced {args.data.name}, {args.backbone}"
    results = measure(args)
    page = OUTPUT_FILE.read_text(encoding="utf-8")
    page = page.removesuffix(imbalanced_section(page)).rstrip("\n")
    OUTPUT_FILE.write_text(f"{page}\n\n{format_section(setting, results, args)}", encoding="utf-8")
    if args.write:
        for result in results:
            text = (
                f"Measured: balanced accuracy {_spread(result.balanced)}, rarest class {_spread(result.of_class(-1))} "
                f"on {setting} ({len(SEEDS)} seeds; benchmarks/CARDS.md)."
            )
            write_measured_paragraph(CHOICE_TABLES[IMBALANCED_TABLE][result.entry], text)


def measure(args: argparse.Namespace) -> list[EntryResult]:
    """Run every entry of `balance` on every seed's training part."""
    entries = [
        (IMBALANCED_TABLE, {**BASE_RECIPE, IMBALANCED_TABLE: name, **default_parameters(entry)})
        for name, entry in CHOICE_TABLES[IMBALANCED_TABLE].items()
    ]
    runs: list[list[VariantResult]] = []
    orders: list[tuple[int, ...]] = []
    for seed in SEEDS:
        folder = write_imbalanced(args.data, args.storage / f"{args.data.name}-imbalanced-{seed}", seed)
        prepared = prepare_data(str(folder), args.backbone, args.weights, args.image_size, args.epochs, args.storage)
        counts = np.bincount(prepared.pack.labels[prepared.split.train])
        orders.append(tuple(np.argsort(-counts, kind="stable").tolist()))
        variants = build_variants(prepared, entries, ALL_ENTRIES)
        runs.append(run_variants(variants, (seed,), args.storage / "records", args.workers))
    results = []
    for by_seed in zip(*runs, strict=True):
        recipe = by_seed[0].variant.recipe
        assert recipe is not None
        records = tuple(record for result in by_seed for record in result.records)
        results.append(EntryResult(by_seed[0].variant.entry, str(recipe.balance), records, tuple(orders)))
    return results


def write_imbalanced(data: Path, folder: Path, seed: int) -> Path:
    """Write an imbalanced variant of a data set unless it is there already, and return its folder.

    The training part has class sizes that fall in equal ratios by a factor of `IMBALANCE`. The validation part has
    `VAL_IMAGES_PER_CLASS` other images of every class of DIR/train, and DIR/val becomes the test part.

    Args:
        data: DIR with train/CLASS and val/CLASS.
        folder: the variant's folder.
        seed: determines which images are drawn, and the order in which classes get their sizes.
    """
    if folder.exists():
        return folder
    rng = np.random.default_rng(seed)
    classes = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
    files = {name: sorted((data / "train" / name).iterdir()) for name in classes}
    sizes = class_sizes(min(map(len, files.values())) - VAL_IMAGES_PER_CLASS, len(classes))
    temporary = folder.with_name(f"{folder.name}.partial")
    for rank, name in enumerate(rng.permutation(classes).tolist()):
        order = [files[name][index] for index in rng.permutation(len(files[name])).tolist()]
        parts = {
            "val": order[:VAL_IMAGES_PER_CLASS],
            "train": order[VAL_IMAGES_PER_CLASS:][: sizes[rank]],
            "test": sorted((data / "val" / name).iterdir()),
        }
        for part, drawn in parts.items():
            (temporary / part / name).mkdir(parents=True, exist_ok=True)
            for file in drawn:
                shutil.copyfile(file, temporary / part / name / file.name)
    temporary.rename(folder)
    return folder


def class_sizes(largest: int, classes: int) -> list[int]:
    """Return class sizes that fall in equal ratios by a factor of `IMBALANCE`.

    >>> class_sizes(64, 6)
    [64, 40, 25, 16, 10, 6]
    """
    return [round(largest * IMBALANCE ** (-rank / (classes - 1))) for rank in range(classes)]


def format_section(setting: str, results: Sequence[EntryResult], args: argparse.Namespace) -> str:
    """Return the section of the page, with its command, date and machine."""
    recipe = results[0].records[0].recipe
    command = (
        f"python -m benchmarks.imbalance --data {args.data} --backbone {args.backbone} --weights {args.weights} "
        f"--image-size {args.image_size} --epochs {args.epochs}"
    )
    rows = [
        f"| {IMBALANCED_TABLE} | `{result.name}` | {_spread(result.balanced)} | {_spread(result.of_class(-1))} | "
        f"{_spread(result.of_class(0))} |"
        for result in results
    ]
    return "\n".join(
        [
            f"## {setting}",
            "",
            *textwrap.wrap(
                f"Training parts whose class sizes fall by a factor of {IMBALANCE:g}; {VAL_IMAGES_PER_CLASS} other "
                f"images of every class are the validation part. Mean and standard deviation over {len(SEEDS)} seeds, "
                f"each with its own images and its own order of the classes. `clip` with SGD, batch size "
                f"{recipe['batch_size']}, {recipe['epochs']} epochs; nothing was tuned. The accuracy in a class of one "
                f"seed rests on {VAL_IMAGES_PER_CLASS} images.",
                WIDTH,
            ),
            "",
            f"    {command}",
            "",
            f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPU cores, one thread a run.",
            "",
            "| table | entry | balanced accuracy | rarest class | most frequent class |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1%} ± {stdev(values):.1%}"


if __name__ == "__main__":
    main()
