"""A sweep by hand: epochs, recipes, records and plan.json without any training.

Nothing here imports torch, Ray or Optuna, so that tests that need none of them stay quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import BACKBONE, SIZE
from xfer.records import Epoch, Evaluation, Part, Record, Status

if TYPE_CHECKING:
    from sweeps.engine.plan import Plan
    from sweeps.engine.planning.prepared import Prepared

EPOCHS = 4


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Torch on one thread, in this process and in those that are started from it: two cores are shared."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", "1")


def an_epoch(number: int, accuracy: float, seconds: float = 1.0) -> Epoch:
    return Epoch(number, 0.9, 0.4, 0.8, accuracy, 1e-3, 2.0, seconds, 50.0)


def an_evaluation(part: Part, correct: int, images: int = 10) -> Evaluation:
    """The first `correct` of `images` images right."""
    return Evaluation(part, 0.5, tuple(range(images)), tuple(place < correct for place in range(images)))


def a_recipe(strategy: str = "naive", **changes: Any) -> dict[str, Any]:
    """A recipe as plain data, one that `recipe_from_dict` takes."""
    choice: dict[str, Any] = {"name": strategy}
    if strategy == "freeze_then_unfreeze":
        choice["freeze_epochs"] = 2
    return {
        "data": "d" * 64,
        "classes": 3,
        "image_size": 32,
        "backbone": "test_efficientnet",
        "backbone_args": {},
        "weights": "" if strategy == "scratch" else "w" * 64,
        "strategy": choice,
        "clip_norm": 1.0 if strategy == "clip" else None,
        "optimizer": {"name": "adam"},
        "schedule": {"name": "onecycle"},
        "augmentation": {"name": "flip"},
        "mixing": {"name": "none"},
        "loss": {"name": "cross_entropy"},
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "epochs": EPOCHS,
        "split_seed": 0,
        "seed": 0,
        "draw": 0,
        **changes,
    }


def a_record(
    trial: str,
    curve: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    status: Status = "finished",
    *,
    key: str = "",
    error: str | None = None,
    test: Evaluation | None = None,
    seconds: float = 4.0,
    recipe: dict[str, Any] | None = None,
) -> Record:
    """A run with these validation accuracies after its epochs; a final run if the name says so (`0007-s1`)."""
    name, final, _ = trial.partition("-s")
    return Record(
        trial=trial,
        phase="final" if final else "search",
        key=key or f"key-{name}",
        id=f"id-{trial}",
        recipe=recipe or a_recipe(),
        status=status,
        epochs=tuple(an_epoch(number, accuracy) for number, accuracy in enumerate(curve, start=1)),
        parameters=1000,
        trainable_parameters=100,
        seconds=seconds,
        val=an_evaluation("val", round(10 * curve[-1])) if status == "finished" else None,
        test=test,
        error=error,
    )


def a_plan(**changes: Any) -> dict[str, Any]:
    """What plan.json says."""
    return {
        "experiment": "folder",
        "name": "folder-colours-3fa2c1",
        "question": "Which way of adapting a pretrained network serves these images best?",
        "data": {
            "source": "folder",
            "folder": "colours",
            "pack": "p" * 64,
            "classes": ["blue", "green", "red"],
            "train": 24,
            "val": 6,
            "test": 6,
            "split": "70 / 15 / 15, stratified by class",
            "redraws": True,
            "notes": [],
        },
        "backbones": [{"name": "test_efficientnet", "args": {}, "weights": "w" * 64, "file": "w.safetensors"}],
        "image_size": 32,
        "space": {"strategy": "clip, naive", "adam.learning_rate": "3e-05..0.01 log"},
        "arms": [],
        "trials": 4,
        "epochs": EPOCHS,
        "sampler": "tpe",
        "scheduler": "asha",
        "finalists": 1,
        "seeds": 2,
        "seed": 0,
        "provenance": {
            "command": "python -m sweeps.folder --data colours",
            "commit": "abc1234",
            "versions": {"torch": "2.15.0"},
            "machine": {"cpus": 2, "gpus": [], "platform": "Linux"},
            "created": "2026-03-01T10:00:00+00:00",
        },
        **changes,
    }


def write_noise_images(folder: Path, count: int, seed: int) -> None:
    """Small pictures of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """A folder with ants and bees, 8 pictures of each."""
    for seed, name in enumerate(("ants", "bees")):
        write_noise_images(tmp_path / "images" / name, 8, seed)
    return tmp_path / "images"


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for packs."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def make_plan(image_folder: Path, weights: Path) -> Callable[..., Plan]:
    """Plans over the tiny image folder and the tiny network."""
    from sweeps.engine.plan import Plan

    def plan(**changes: Any) -> Plan:
        about = {"data": str(image_folder), "backbones": (BACKBONE,), "weights": {BACKBONE: str(weights)}}
        return Plan(
            **{"experiment": "folder", "question": "Which?", **about, "image_size": SIZE, "epochs": EPOCHS, **changes}
        )

    return plan


@pytest.fixture(scope="session")
def prepared(one_thread: None, make_plan: Callable[..., Plan], storage: Path) -> Prepared:
    """The default plan, prepared."""
    from sweeps.engine.planning.prepare import prepare

    return prepare(make_plan(), storage)
