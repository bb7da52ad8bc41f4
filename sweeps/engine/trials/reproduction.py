"""Train a stored run again from its recipe, and compare what comes out with what was stored."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from sweeps.engine.storage.store import Store
from xfer import hashing
from xfer.data.pack import Pack, fetch_pack
from xfer.devices.device import default_device
from xfer.measure.intervals import wilson_interval
from xfer.models.backbones import fetch_weights
from xfer.recipe import recipe_from_dict
from xfer.records import Evaluation, Record
from xfer.run import Run
from xfer.storage import local_cache

MEASURED_FIELDS = frozenset(
    ("seconds", "images_per_second", "cpu_percent", "memory_mb", "gpu_memory_mb", "gpu_percent", "peak_memory_mb")
)
"""Fields of an epoch that are measured on the machine and never equal."""

WEIGHTS_PATTERN = "**/*.safetensors"


@dataclass(frozen=True)
class Comparison:
    """A stored run next to the same recipe trained again."""

    differences: tuple[str, ...]
    """Where the two differ, in the order of the run; empty if they are equal bit for bit."""
    outside: tuple[str, ...]
    """Accuracies of the new run that lie outside the 95% interval of the stored one."""


def compare(stored: Record, again: Record) -> Comparison:
    """Compare a run with the same recipe trained again.

    Training amplifies rounding, so another processor, GPU or version of torch leads to other weights. Then the
    accuracies must lie within the 95% Wilson interval that the stored ones have from their number of images.

    Args:
        stored: record of the finished run, with its evaluation on the test set if it has one.
        again: record of the new run, evaluated on the same sets.
    """
    differences: list[str] = []
    if len(stored.epochs) != len(again.epochs):
        differences.append(f"number of epochs: {len(stored.epochs)} stored, {len(again.epochs)} now")
    for one, other in zip(stored.epochs, again.epochs, strict=False):
        names = [field.name for field in dataclasses.fields(one) if field.name not in MEASURED_FIELDS]
        unequal = [name for name in names if getattr(one, name) != getattr(other, name)]
        if unequal:
            name = unequal[0]
            differences.append(
                f"epoch {one.epoch}: {name} {getattr(one, name)} stored, {getattr(other, name)} now"
                + (f" (and {len(unequal) - 1} more)" if unequal[1:] else "")
            )
    outside: list[str] = []
    for title, then, now in _evaluations(stored, again):
        changed = sum(a != b for a, b in zip(then.correct, now.correct, strict=True))
        if changed or then.loss != now.loss:
            differences.append(
                f"{title} set: loss {then.loss:.6g} stored, {now.loss:.6g} now; {changed} of {len(then.correct)} "
                f"images right in one run and wrong in the other"
            )
        low, high = wilson_interval(then.accuracy, len(then.correct))
        if not low <= now.accuracy <= high:
            outside.append(
                f"{title} accuracy {100 * now.accuracy:.1f}% lies outside the 95% interval of the stored "
                f"{100 * then.accuracy:.1f}% ({100 * low:.1f} to {100 * high:.1f}, {len(then.correct)} images)"
            )
    return Comparison(tuple(differences), tuple(outside))


def _evaluations(stored: Record, again: Record) -> Iterator[tuple[str, Evaluation, Evaluation]]:
    for title, then, now in (("validation", stored.val, again.val), ("test", stored.test, again.test)):
        if then is not None and now is not None:
            yield title, then, now


def train_again(
    store: Store,
    stored: Record,
    weights: Path | None = None,
    threads: int = 1,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
) -> Record:
    """Train the recipe of a stored run in this process, without checkpoints or cached features.

    Nothing is written to the storage.

    Args:
        store: the sweep's.
        stored: record of the run.
        weights: file of the pretrained weights; by default it is looked for (`find_weights`).
        threads: number of torch threads; results are equal bit for bit only for the same number.
        on_epoch: called with the number of the epoch and of all epochs.

    Returns:
        The record of the new run, evaluated on the test set if the stored one was.

    Raises:
        ValueError: the prepared images or the weights are not at hand; the message says what is missing.
    """
    recipe = recipe_from_dict(stored.recipe)
    pack = _find_pack(store, recipe.data)
    file = find_weights(store, recipe.backbone, recipe.weights, weights) if recipe.weights else None
    noisy = any(epoch.val_noisy_accuracy is not None for epoch in stored.epochs)
    torch.set_num_threads(threads)
    run = Run(recipe, pack, file, default_device(), noisy=noisy)
    for epoch in run:
        on_epoch(epoch.epoch, recipe.epochs)
    record = run.record(stored.trial, stored.phase)
    return record if stored.test is None else dataclasses.replace(record, test=run.evaluate("test"))


def find_weights(store: Store, backbone: str, sha256: str, file: Path | None = None) -> Path:
    """Return the file of a recipe's weights.

    Args:
        store: the sweep's. Its storage has the weights of sweeps on clusters and of the quickstart.
        backbone: name of the network, for timm's own weights.
        sha256: of the file.
        file: where the user says that it is.

    Raises:
        ValueError: no file at hand has this content.
    """
    for candidate in _weights_candidates(store, backbone, file):
        if hashing.sha256_file(candidate) == sha256:
            return candidate
    given = "" if file is None else f"{file} has other content. "
    raise ValueError(
        f"the weights of {backbone} that the run began with (SHA-256 {sha256[:12]}...) are not at hand. {given}"
        f"Give the file of the sweep's command with --weights FILE"
    )


def _weights_candidates(store: Store, backbone: str, file: Path | None) -> Iterable[Path]:
    if file is not None:
        if not file.is_file():
            raise ValueError(f"--weights {file}: there is no such file")
        yield file
        return
    words = shlex.split((store.plan() or {}).get("provenance", {}).get("command", ""))
    named = [Path(word.rpartition("=")[2]) for flag, word in pairwise(words) if flag == "--weights"]
    yield from (path for path in named if path.is_file())
    for folder in ("weights", "quickstart"):
        yield from map(local_cache.fetch_file, sorted((store.folder.parent / folder).glob(WEIGHTS_PATTERN)))
    try:
        yield fetch_weights(backbone)
    except ValueError:  # without a network, or timm has no weights: the caller says what is missing
        return


def _find_pack(store: Store, data: str) -> Pack:
    folder = store.folder.parent / "packs" / data[:16]
    try:
        return fetch_pack(folder)
    except FileNotFoundError as error:
        raise ValueError(
            f"the prepared images of the run are not in {folder.parent}: repeat the sweep's command, which prepares "
            f"them again and trains nothing twice"
        ) from error
