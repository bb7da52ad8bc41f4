"""Builders of small synthetic records: a sweep is a few calls of `a_record`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pytest

from sweeps.reporting.results import Results
from xfer.records import Epoch, Evaluation, Part, Record, Status

CURVE = (0.5, 0.7, 0.9)


def an_evaluation(part: Part, correct: int, images: int = 100, first: int = 0) -> Evaluation:
    """An evaluation of `images` images, numbered from `first`, of which the first `correct` are correct."""
    hits = tuple(i < correct for i in range(images))
    return Evaluation(part, loss=0.3, images=tuple(range(first, first + images)), correct=hits)


def a_recipe(strategy: str = "naive", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A recipe as plain data."""
    choice: dict[str, Any] = {"name": strategy}
    if strategy == "freeze_then_unfreeze":
        choice["freeze_epochs"] = 2
    recipe = {
        "data": "d" * 64,
        "classes": 2,
        "image_size": 128,
        "backbone": "mobilenetv2_100",
        "backbone_args": {},
        "weights": "w" * 64,
        "strategy": choice,
        "clip_norm": None,
        "optimizer": {"name": "adam"},
        "schedule": {"name": "onecycle"},
        "augmentation": {"name": "flip"},
        "mixing": {"name": "none"},
        "loss": {"name": "cross_entropy"},
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "epochs": 6,
        "seed": seed,
        "draw": seed,
    }
    return recipe | changes


def a_record(
    trial: str,
    curve: Sequence[float] = CURVE,
    status: Status = "finished",
    *,
    seconds: float = 10.0,
    test: Evaluation | None = None,
    error: str | None = None,
    images: int = 100,
    **recipe: Any,
) -> Record:
    """A run with these validation accuracies after its epochs; a final run if named like one (`0007-s1`)."""
    name, _, seed = trial.partition("-s")
    phase: Literal["search", "final"] = "final" if seed else "search"
    epochs = tuple(
        Epoch(i, 0.6, 0.6, 0.6, accuracy, 1e-3, 1.0, seconds / len(curve), 50.0)
        for i, accuracy in enumerate(curve, start=1)
    )
    val = an_evaluation("val", round(curve[-1] * images), images) if status == "finished" else None
    recipe_data = a_recipe(seed=int(seed or 0), **recipe)
    return Record(
        trial, phase, f"key-{name}", f"id-{trial}", recipe_data, status, epochs, 1000, 10, seconds, val, test, error
    )


def some_finals(trial: str, accuracy: float, test: float | None = None, seeds: int = 3, **recipe: Any) -> list[Record]:
    """Final runs of a trial that differ only in their seeds; with `test`, they have been evaluated on the test set."""
    evaluation = None if test is None else an_evaluation("test", round(test * 100), first=1000)
    return [a_record(f"{trial}-s{seed}", (0.5, accuracy), test=evaluation, **recipe) for seed in range(1, seeds + 1)]


def a_plan(**changes: Any) -> dict[str, Any]:
    """Content of plan.json."""
    plan = {
        "experiment": "folder",
        "name": "folder-hymenoptera-3fa2c1",
        "question": "Which way of transferring a pretrained network serves my images best?",
        "data": {
            "source": "folder",
            "folder": "hymenoptera",
            "pack": "0123456789abcdef" * 4,
            "classes": ["ants", "bees"],
            "train": 195,
            "val": 49,
            "test": 153,
            "split": "train and val were given: val is the test set, validation is a stratified sample of train.",
            "notes": ["1 file could not be read and was skipped: train/bees/broken.jpg."],
            "redraws": True,
        },
        "backbones": [
            {"name": "mobilenetv2_100", "args": {}, "weights": "a" * 64, "file": "mobilenetv2_100.safetensors"}
        ],
        "image_size": 128,
        "space": {"optimizer": "sgd, adam, radam, ranger", "learning_rate[sgd]": "0.001..0.1 log"},
        "trials": 16,
        "epochs": 6,
        "sampler": "tpe",
        "scheduler": "asha",
        "finalists": 3,
        "seeds": 3,
        "seed": 0,
        "provenance": {
            "command": "python -m sweeps.folder --data hymenoptera --trials 16 --epochs 6",
            "commit": "abc1234",
            "versions": {"torch": "2.15.0", "timm": "1.0.20"},
            "machine": {"cpus": 2, "gpus": [], "platform": "Linux-6.1-x86_64"},
            "created": "2025-11-20T12:00:00+00:00",
        },
    }
    return plan | changes


def results_of(records: Iterable[Record], *openings: Sequence[str], **plan: Any) -> Results:
    """Results of these records; each opening of the test set lists the finalists in their fixed order."""
    opened = [{"at": f"2025-11-2{i}T12:00:00+00:00", "finalists": list(names)} for i, names in enumerate(openings)]
    return Results(a_plan(**plan), list(records), opened)


@pytest.fixture
def opened() -> Results:
    """A finished sweep: two finalists, the second better on the test set, and other trials of every status."""
    return results_of(
        [
            a_record("0000", (0.5, 0.8), strategy="scratch"),
            a_record("0001", (0.5, 0.7), "pruned", strategy="linear_probe"),
            a_record("0002", (0.6, 0.95), strategy="freeze_then_unfreeze"),
            a_record("0003", (), "failed", strategy="naive", error="loss is NaN at step 12"),
            a_record("0004", (0.6, 0.97), strategy="naive", clip_norm=1.0),
            *some_finals("0004", 0.93, 0.92, strategy="naive", clip_norm=1.0),
            *some_finals("0002", 0.94, 0.90, strategy="freeze_then_unfreeze"),
        ],
        ["0002", "0004"],
    )
