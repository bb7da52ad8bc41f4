"""Original layout of Stanford Cars, with and without test labels."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from xfer.data.layouts import read_source
from xfer.data.pack import build_pack
from xfer.data.split import split_pack
from xfer.data.stanford_cars import stanford_cars

NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"]
FIELDS = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]


def annotations(path, rows, key="annotations"):
    """Write a struct array of one row as in the devkit: boxes and class as numbers, the file name as text."""
    table = np.zeros((1, len(rows)), dtype=[(name, object) for name in FIELDS])
    for index, (name, label) in enumerate(rows):
        table[0, index] = (np.uint8(1), np.uint8(1), np.uint8(9), np.uint8(9), np.uint8(label), name)
    savemat(path, {key: table})


def devkit(root, train, test=None, labels_in="."):
    (root / "devkit").mkdir(parents=True)
    names = np.empty((1, len(NAMES)), dtype=object)
    names[0] = NAMES
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    annotations(root / "devkit" / "cars_train_annos.mat", train)
    photos(root / "cars_train", train)
    if test is not None:
        annotations(root / labels_in / "cars_test_annos_withlabels.mat", test)
        photos(root / "cars_test", test)
    return root


def photos(folder, rows):
    folder.mkdir()
    for name, label in rows:
        Image.new("RGB", (8, 8), (label * 60, len(name), int(name[:5]) % 256)).save(folder / name)


TRAIN = [(f"{number:05d}.jpg", 1 + number % 3) for number in range(1, 31)]
TEST = [(f"{number:05d}.jpg", 1 + number % 3) for number in range(1, 7)]


@pytest.mark.parametrize("labels_in", [".", "devkit"])
def test_with_test_labels_the_official_parts_are_kept(tmp_path, labels_in):
    source = stanford_cars(devkit(tmp_path / "cars", TRAIN, TEST, labels_in))
    assert source.classes == tuple(NAMES)
    assert [
        (example.image.path.name, example.label + 1) for example in source.examples if example.part == "train"
    ] == TRAIN
    assert [
        (example.image.path.name, example.label + 1) for example in source.examples if example.part == "test"
    ] == TEST
    assert {example.image.path.parent.name for example in source.examples if example.part == "test"} == {"cars_test"}
    assert source.notes == ()


@pytest.mark.parametrize("absent", ["labels", "photos", "both"])
def test_without_test_labels_or_photos_there_are_no_parts_and_a_note_says_so(tmp_path, absent):
    root = devkit(tmp_path / "cars", TRAIN, None if absent == "both" else TEST)
    if absent == "labels":
        (root / "cars_test_annos_withlabels.mat").unlink()
    if absent == "photos":
        (root / "cars_test").rename(tmp_path / "away")
    source = stanford_cars(root)
    assert [(example.image.path.name, example.label + 1, example.part) for example in source.examples] == [
        (*row, None) for row in TRAIN
    ]
    assert "held out" in source.notes[0]
    split = split_pack(build_pack(source, 8, tmp_path / "packs"))
    assert len(split.test) > 0
    assert "stratified" in split.description


def test_the_subfolder_of_torchvisions_layout_is_entered(tmp_path):
    devkit(tmp_path / "stanford_cars", TRAIN, TEST)
    assert len(stanford_cars(tmp_path).examples) == len(TRAIN) + len(TEST)


def test_missing_photos_and_classes_without_photos_are_left_out(tmp_path):
    root = devkit(tmp_path / "cars", TRAIN, TEST)
    for name, label in TRAIN + TEST:
        if label == 2:
            for part in ("cars_train", "cars_test"):
                (root / part / name).unlink(missing_ok=True)
    source = stanford_cars(root)
    assert source.classes == (NAMES[0], NAMES[2])
    assert {example.label for example in source.examples} == {0, 1}
    assert len(source.examples) == 24


def test_a_photo_name_cannot_lead_out_of_its_folder(tmp_path):
    root = devkit(tmp_path / "cars", TRAIN)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    annotations(root / "devkit" / "cars_train_annos.mat", [*TRAIN, ("../../secret.jpg", 1), ("/etc/passwd", 1)])
    assert {example.image.path.parent for example in stanford_cars(root).examples} == {root.resolve() / "cars_train"}


# What is refused


@pytest.mark.parametrize("name", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train"])
def test_a_missing_file_is_named_and_the_layout_is_shown(tmp_path, name):
    root = devkit(tmp_path / "cars", TRAIN)
    (root / name).rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"lacks {re.escape(name)}") as caught:
        stanford_cars(root)
    for line in ("cars_train/00001.jpg", "cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat"):
        assert line in str(caught.value)


def test_all_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"lacks devkit/cars_meta\.mat, devkit/cars_train_annos\.mat, cars_train"):
        stanford_cars(tmp_path)


@pytest.mark.parametrize("label", [0, 4, 196])
def test_an_unknown_class_number_is_named(tmp_path, label):
    root = devkit(tmp_path / "cars", TRAIN)
    annotations(root / "devkit" / "cars_train_annos.mat", [*TRAIN, ("00031.jpg", label)])
    with pytest.raises(ValueError, match=rf"cars_train_annos\.mat names class {label}, but cars_meta\.mat has 3 cl"):
        stanford_cars(root)


@pytest.mark.parametrize("content", [b"", b"not a MATLAB file", b"MATLAB 5.0 MAT-file" + b" " * 200])
@pytest.mark.parametrize("name", ["cars_meta.mat", "cars_train_annos.mat"])
def test_a_damaged_devkit_file_is_named(tmp_path, name, content):
    root = devkit(tmp_path / "cars", TRAIN)
    (root / "devkit" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a MATLAB file with the variable `"):
        stanford_cars(root)


def test_a_devkit_file_with_other_content_is_named(tmp_path):
    root = devkit(tmp_path / "cars", TRAIN)
    annotations(root / "devkit" / "cars_train_annos.mat", TRAIN, key="something_else")
    with pytest.raises(ValueError, match=r"cars_train_annos\.mat is not a MATLAB file with the variable `annotations`"):
        stanford_cars(root)
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": np.arange(5)})
    with pytest.raises(ValueError, match=r"cars_train_annos\.mat lacks the fields `fname` and `class`"):
        stanford_cars(root)


def test_a_folder_without_photos_is_refused(tmp_path):
    root = devkit(tmp_path / "cars", TRAIN)
    for path in (root / "cars_train").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="holds no"):
        stanford_cars(root)


# Real photos


def test_the_mini_set_has_its_official_parts(shared_data):
    source = read_source(shared_data / "stanford_cars_mini")
    assert len(source.classes) == 8
    counts = [sum(example.part == part for example in source.examples) for part in ("train", "test")]
    assert counts == [254, 81]
    assert source.notes == ()


def test_the_full_set_without_test_labels_has_no_parts(shared_data):
    source = stanford_cars(shared_data / "stanford_cars")
    assert len(source.classes) == 196
    assert len(source.examples) == 8144
    assert {example.part for example in source.examples} == {None}
    assert "held out" in source.notes[0]


@pytest.mark.slow
def test_all_photos_of_the_mini_set_are_packed(shared_data, tmp_path):
    pack = build_pack(stanford_cars(shared_data / "stanford_cars_mini"), 32, tmp_path)
    assert len(pack.labels) == 335
    assert pack.skipped == ()
    split = split_pack(pack)
    assert (len(split.test), len(split.train) + len(split.val)) == (81, 254)
