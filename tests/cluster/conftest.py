"""What the scenarios share: photos and weights, the sweep that they play, and what it comes to when left in peace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab.laboratory import Laboratory, missing
from tests.sweeping import only_sweep, run

PHOTOS_PER_CLASS = 20

SWEEP = [
    *("--backbone", "mobilenetv2_100", "--image-size", "64", "--strategies", "naive", "--no-advise"),
    *("--vary", "learning_rate=1e-3,3e-3,1e-2", "--vary", "batch_size=8,16", "--fix", "optimizer=sgd"),
    *("--fix", "schedule=cosine", "--fix", "augmentation=flip", "--fix", "mixing=none", "--fix", "loss=cross_entropy"),
    *("--fix", "weight_decay=1e-4", "--fix", "clip_norm=1.0", "--sampler", "grid", "--scheduler", "none"),
    *("--trials", "6", "--epochs", "3", "--finalists", "1", "--seeds", "1", "--cpus-per-trial", "1", "--name", "ants"),
]
"""Six trials of three epochs, a few seconds each, and one final. What each comes to is settled before it starts."""
TRIALS = 6
FINALS = 1
EPOCHS = 3


@pytest.fixture(scope="session", autouse=True)
def _laboratory_can_be() -> None:
    if why := missing():
        pytest.skip(why)


@pytest.fixture(scope="module")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder for what a module's laboratory is made of."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(lab_folder: Path) -> Iterator[Laboratory]:
    """A cloud without machines, and a desk."""
    with Laboratory(lab_folder) as laboratory:
        yield laboratory


@pytest.fixture(scope="session")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real photos of ants and bees."""
    folder = tmp_path_factory.mktemp("photos") / "insects"
    for kind in ("ants", "bees"):
        (folder / kind).mkdir(parents=True)
        for photo in sorted((shared_data / "hymenoptera" / "train" / kind).glob("*.jpg"))[:PHOTOS_PER_CLASS]:
            shutil.copy(photo, folder / kind)
    return folder


@pytest.fixture(scope="session")
def pretrained(shared_data: Path) -> Path:
    """Real weights of the sweep's network."""
    return shared_data / "weights" / "mobilenetv2_100.safetensors"


@pytest.fixture(scope="session")
def undisturbed(photos: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same sweep, run on this machine alone and left in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    places = ["--storage", folder / "runs", "--reports", folder / "reports"]
    ended = run("folder", [*SWEEP, "--data", photos, "--weights", pretrained, *places], folder / "logs")
    assert ended.status == 0, ended.out + ended.err
    return only_sweep(folder / "runs").folder
