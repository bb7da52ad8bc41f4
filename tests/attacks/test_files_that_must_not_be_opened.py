"""Attacks 4, 5 and 6: links out of the data, pipes, devices, huge files and archives that expand are not opened."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from xfer.data import stanford_cars
from xfer.data.file_gate import NOT_FOUND, TOO_LARGE, check_mat_size
from xfer.data.file_tree import LINK_OUT, NOT_REGULAR
from xfer.data.layouts import read_source
from xfer.data.pack import build_pack

SECONDS = 120
"""Seconds after which a test that waits for a pipe, or hashes a huge file, fails."""


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    def give_up(number: int, frame: object) -> None:
        pytest.fail("it waits for a file that must not be opened")

    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


def write_photo(path: Path, shade: int) -> None:
    """Write a small photo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


def write_hostile_files(folder: Path, secret: Path) -> list[str]:
    """Write one file of each kind that must not be opened; return their names."""
    (folder / "link.jpg").symlink_to(secret)
    (folder / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(200 * 2**30)
    return ["link.jpg", "device.jpg", "pipe.jpg", "sparse.jpg"]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A photo outside of the data."""
    write_photo(tmp_path / "secret" / "photo.jpg", 200)
    return tmp_path / "secret" / "photo.jpg"


def cars(root: Path, secret: Path) -> str:
    """Stanford Cars with two photos per class and hostile ones."""
    for number in range(4):
        write_photo(root / "cars_train" / f"{number}.jpg", 10 * number)
    names = [f"{number}.jpg" for number in range(4)] + write_hostile_files(root / "cars_train", secret) + ["gone.jpg"]
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})
    kinds = [("fname", object), ("class", np.uint8)]
    rows = np.array([(name, 1 + number % 2) for number, name in enumerate(names)], dtype=kinds)
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    return str(root)


def image_folder_of_torchvision(root: Path, secret: Path) -> str:
    """Two classes, one of them with hostile files."""
    for number in range(4):
        write_photo(root / "ab"[number % 2] / f"{number}.jpg", 10 * number)
    write_hostile_files(root / "a", secret)
    (root / "a" / "folder.jpg").mkdir()
    return f"torchvision://ImageFolder?root={root}"


def plain_folder(root: Path, secret: Path) -> str:
    """The same as a folder of images."""
    image_folder_of_torchvision(root, secret)
    return str(root)


@pytest.mark.parametrize("layout", [cars, image_folder_of_torchvision, plain_folder])
def test_no_layout_opens_links_out_pipes_devices_or_huge_files(layout, tmp_path: Path, secret: Path) -> None:
    source = read_source(layout(tmp_path / "data", secret))
    assert sorted(example.image.name for example in source.examples) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    counts = {skip.reason: skip.count for skip in source.skipped}
    assert counts[LINK_OUT] == 2
    assert counts[NOT_REGULAR] == 1
    assert counts[TOO_LARGE] == 1
    if layout is cars:
        assert counts[NOT_FOUND] == 1
    assert len(build_pack(source, 8, tmp_path / "packs").labels) == 4


def test_labels_behind_a_link_out_or_a_pipe_are_not_read(tmp_path: Path, secret: Path) -> None:
    data = Path(cars(tmp_path / "data", secret))
    annotations = data / "devkit" / "cars_train_annos.mat"
    annotations.rename(tmp_path / "labels.mat")
    annotations.symlink_to(tmp_path / "labels.mat")
    with pytest.raises(ValueError, match=r"cars_train_annos.mat cannot be used: link out of the folder"):
        read_source(str(data))
    annotations.unlink()
    os.mkfifo(annotations)
    with pytest.raises(ValueError, match="cannot be used: not a regular file"):
        read_source(str(data))


def test_a_mat_file_that_expands_is_refused_before_it_does(tmp_path: Path, secret: Path) -> None:
    data = Path(cars(tmp_path / "data", secret))
    bomb = data / "devkit" / "cars_train_annos.mat"
    savemat(bomb, {"annotations": np.zeros(2 * stanford_cars.MAX_MAT_BYTES, np.uint8)}, do_compression=True)
    assert bomb.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"holds more than 67,108,864 bytes when decompressed"):
        read_source(str(data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * stanford_cars.MAX_MAT_BYTES / 1024


def test_several_elements_of_a_mat_file_count_together(tmp_path: Path) -> None:
    values = {name: np.zeros(600, np.uint8) for name in "abc"}
    savemat(tmp_path / "a.mat", values, do_compression=True)
    check_mat_size(tmp_path / "a.mat", 3000)
    with pytest.raises(ValueError, match="holds more than 1,500 bytes"):
        check_mat_size(tmp_path / "a.mat", 1500)
    savemat(tmp_path / "b.mat", values)
    with pytest.raises(ValueError, match="holds more than 1,500 bytes"):
        check_mat_size(tmp_path / "b.mat", 1500)
