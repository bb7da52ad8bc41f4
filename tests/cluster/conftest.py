"""Fixtures of the cluster scenarios: photos, weights, and the result of the same sweep without disturbances."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab.laboratory import Laboratory, missing_requirements
from tests.cluster.scenarios import SWEEP_FLAGS
from tests.sweep_commands import build_once, only_sweep, run

PHOTOS_PER_CLASS = 20


@pytest.fixture(scope="session")
def can_have_a_laboratory() -> None:
    """Skip the test, with the reason, on a machine that cannot run the laboratory."""
    if why := missing_requirements():
        pytest.skip(why)


@pytest.fixture(scope="module")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder for the files of a module's laboratory."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(can_have_a_laboratory: None, lab_folder: Path) -> Iterator[Laboratory]:
    """A simulated cloud without machines, and the user's machine outside it."""
    with Laboratory(lab_folder) as laboratory:
        yield laboratory


@pytest.fixture(scope="session")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few real photos of ants and bees."""
    folder = tmp_path_factory.mktemp("photos") / "insects"
    for kind in ("ants", "bees"):
        (folder / kind).mkdir(parents=True)
        for photo in sorted((shared_data / "hymenoptera" / "train" / kind).glob("*.jpg"))[:PHOTOS_PER_CLASS]:
            shutil.copy(photo, folder / kind)
    return folder


@pytest.fixture(scope="session")
def pretrained(shared_data: Path) -> Path:
    """The pretrained weights of the sweep's network."""
    return shared_data / "weights" / "mobilenetv2_100.safetensors"


@pytest.fixture(scope="session")
def undisturbed(photos: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same sweep, run on this machine only and without disturbances."""

    def make(folder: Path) -> None:
        folders = ["--storage", folder / "runs", "--reports", folder / "reports"]
        result = run("folder", [*SWEEP_FLAGS, "--data", photos, "--weights", pretrained, *folders], folder / "logs")
        assert result.status == 0, result.out + result.err

    return only_sweep(build_once(tmp_path_factory, "undisturbed-cluster", make) / "runs").folder
