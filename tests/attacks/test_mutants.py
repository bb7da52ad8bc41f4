"""Attacks 3 to 5 and fault 7: thousands of damaged files of every format that is read.

A mutant has flipped bits, missing, repeated, inserted or exchanged parts, or extreme values. Reading it may fail with a
message or give a result. It never ends the process, takes much time or memory, or raises an unexpected error.
What is stored with a checksum gives the original or nothing, never something else. The mutants of a file are read in
processes of their own, so that one that crashes is noticed and named.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from sweeps.engine.storage.store import Store, Trial
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch
from xfer.data.images import read_image
from xfer.data.layouts import read_source
from xfer.records import as_dict
from xfer.training import checkpoints

pytestmark = pytest.mark.slow

FEW, MANY = range(40), range(700)
"""Mutants of each file in the check run, and in `make nightly`: 10,600 in all."""
FEW_SLOW, MANY_SLOW = range(128, 132), range(100, 200)
"""The same for files that are read in processes of their own. Number 130 ends the process of scipy's reader."""
SLOW = ("mat",)
SECONDS = 20
"""Seconds that reading one mutant may take."""
MEMORY_BYTES = 3 * 2**30
"""Address space that reading may add."""
EXTREMES = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\xff" * 8)


def mutate(content: bytes, chance: random.Random) -> bytes:
    """One damaged version of a file."""
    data, size = bytearray(content), len(content)
    at, end = sorted((chance.randrange(size + 1), chance.randrange(size + 1)))
    kind = chance.randrange(7)
    if kind == 0:
        for _ in range(chance.choice((1, 2, 8, 64))):
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : min(end, at + 64)]
    elif kind == 3:
        data[at:at] = data[at:end]
    elif kind == 4:
        data[at:at] = chance.randbytes(chance.choice((1, 4, 100)))
    elif kind == 5:
        extreme = chance.choice(EXTREMES)
        data[at : at + len(extreme)] = extreme
    else:
        data = data[end:] + data[at:end] + data[:at]
    return bytes(data)


@dataclass(frozen=True)
class Target:
    """A file that is damaged, and what reads it."""

    file: Path
    read: Callable[[], Any]
    """Returns what it has read as plain data, or raises a ValueError."""
    is_checked: bool = False
    """Whether only the original or None may be read."""


def image_of(kind: str, **options: Any) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        file = folder / f"photo.{kind}"
        Image.fromarray(pixels).save(file, kind, **options)
        return Target(file, lambda: read_image(file, 16).shape)

    return make


def deep_tiff(folder: Path) -> Target:
    file = folder / "photo.tif"
    Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24) * 100).save(file)
    return Target(file, lambda: read_image(file, 16).shape)


def images_below(place: str) -> list[Any]:
    """Read a data set, and its first images."""
    source = read_source(place)
    return [example.image.read(16).shape for example in source.examples[:3]]


def table(folder: Path) -> Target:
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
    file = folder / "labels.csv"
    file.write_text("file,label\n" + "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(6)))
    return Target(file, lambda: images_below(str(file)))


def cars(folder: Path) -> Target:
    for number in range(6):
        (folder / "cars_train").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / "cars_train" / f"{number}.jpg")
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})
    kinds = [("fname", object), ("class", np.uint8)]
    rows = np.array([(f"{number}.jpg", 1 + number % 2) for number in range(6)], dtype=kinds)
    file = folder / "devkit" / "cars_train_annos.mat"
    savemat(file, {"annotations": rows})
    return Target(file, lambda: images_below(str(folder)))


def bitmaps(folder: Path) -> Target:
    rows = np.random.default_rng(0).integers(0, 256, (6, 784), dtype=np.uint8)
    for name in ("cat", "dog"):
        np.save(folder / f"{name}.npy", rows)
    file = folder / "cat.npy"
    return Target(file, lambda: images_below(str(folder)))


def strokes(folder: Path) -> Target:
    for shift, name in enumerate(("cat", "dog")):
        drawings = [{"drawing": [[[0, 100 + row, 200], [shift, 50, 255]]], "recognized": True} for row in range(6)]
        (folder / f"{name}.ndjson").write_text("".join(json.dumps(drawing) + "\n" for drawing in drawings))
    file = folder / "cat.ndjson"
    return Target(file, lambda: images_below(str(folder)))


def checkpoint(folder: Path) -> Target:
    file = checkpoints.save(folder, 3, {"epochs": [{"val_accuracy": 0.5}], "weights": torch.arange(12.0)})

    def read() -> Any:
        state = checkpoints.load(folder)
        return None if state is None else json.dumps({**state, "weights": state["weights"].tolist()})

    return Target(file, read, is_checked=True)


def stored(name: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        store = Store(folder / "colours")
        store.put_plan(a_plan())
        store.add_trial(Trial("0000", "search", {"optimizer": "adam"}, a_recipe()))
        store.add_epoch("0000", an_epoch(1, 0.4))
        store.add_record(a_record("0000", (0.4, 0.6)))
        store.decide("finals", {"at": "2026-01-01T00:00:00+00:00", "finalists": ["0000"]})
        readers: dict[str, Callable[[], Any]] = {
            "plan.json": store.plan,
            "trials/0000/config.json": lambda: next((dict(t.recipe) for t in store.trials()), None),
            "trials/0000/epochs/0001.json": lambda: next((as_dict(epoch) for epoch in store.epochs("0000")), None),
            "trials/0000/record.json": lambda: (record := store.record("0000")) and as_dict(record),
            "finals/0001.json": lambda: next(iter(store.decisions("finals")), None),
        }
        return Target(store.folder / name, readers[name], is_checked=True)

    return make


TARGETS: dict[str, Callable[[Path], Target]] = {
    "jpeg": image_of("jpeg"),
    "png": image_of("png"),
    "webp": image_of("webp"),
    "gif": image_of("gif"),
    "tiff": image_of("tiff", compression="tiff_lzw"),
    "deep tiff": deep_tiff,
    "csv": table,
    "mat": cars,
    "npy": bitmaps,
    "ndjson": strokes,
    "checkpoint": checkpoint,
    **{name: stored(name) for name in ("plan.json", "trials/0000/config.json", "trials/0000/epochs/0001.json")},
    **{name: stored(name) for name in ("trials/0000/record.json", "finals/0001.json")},
}


def read_mutants(make: Callable[[Path], Target], folder: Path, numbers: range, note: Path) -> None:
    """Read mutants in this process; the note holds the number of the one that is being read."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    folder.mkdir()
    target = make(folder)
    original, content = target.read(), target.file.read_bytes()
    saved = folder.with_name(f"{folder.name}-saved")
    shutil.copytree(folder, saved)
    for number in numbers:
        note.write_text(str(number))
        target.file.write_bytes(mutate(content, random.Random(number)))
        signal.alarm(SECONDS)
        try:
            result = target.read()
        except ValueError:
            result = None
        signal.alarm(0)
        if target.is_checked:
            assert result in (None, original), f"mutant {number} is read as {result}"
            shutil.rmtree(folder)  # a damaged object was renamed
            shutil.copytree(saved, folder)


def check(name: str, folder: Path, numbers: range) -> None:
    """Read mutants in a process of its own, and fail with the number of the one that was not survived."""
    folder.mkdir()
    note, log = folder.parent / "number", folder.parent / "log"
    process = os.fork()
    if process == 0:
        status = 1
        try:
            sys.stderr = log.open("w")  # decoders complain
            read_mutants(TARGETS[name], folder / "data", numbers, note)
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(process, 0)
    reason = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else log.read_text()[-3000:]
    assert status == 0, f"mutant {note.read_text() if note.exists() else '-'} of {name}: {reason}"


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_end_in_a_message_or_a_result(name: str, tmp_path: Path) -> None:
    check(name, tmp_path / "few", FEW_SLOW if name in SLOW else FEW)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_ten_thousand_damaged_files_end_in_a_message_or_a_result(name: str, tmp_path: Path) -> None:
    check(name, tmp_path / "many", MANY_SLOW if name in SLOW else MANY)
