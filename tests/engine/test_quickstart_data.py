"""The quickstart data are deterministic and written once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sweeps.engine import quickstart_data
from sweeps.engine.quickstart_data import (
    SOURCE_CLASSES,
    TARGET_CLASSES,
    TRAINING_IMAGES,
    pretrained_weights,
    write_digits,
)


def content(folder: Path) -> dict[str, str]:
    paths = sorted(folder.rglob("*.png"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def split_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "5-9", TARGET_CLASSES, TRAINING_IMAGES)


def test_the_digits_are_the_same_every_time(split_digits: Path, tmp_path: Path) -> None:
    again = write_digits(tmp_path / "again", TARGET_CLASSES, TRAINING_IMAGES)
    assert content(again) == content(split_digits)


def test_each_class_has_30_training_images_and_the_others_are_for_testing(split_digits: Path) -> None:
    scans = {5: 182, 6: 181, 7: 179, 8: 174, 9: 180}  # as scikit-learn documents them
    for digit, count in scans.items():
        assert len(list((split_digits / "train" / str(digit)).iterdir())) == TRAINING_IMAGES
        assert len(list((split_digits / "test" / str(digit)).iterdir())) == count - TRAINING_IMAGES
    assert len(content(split_digits)) == sum(scans.values())


def test_training_and_test_set_share_no_more_than_chance_duplicates(split_digits: Path) -> None:
    digests = content(split_digits)
    train, test = (
        {digest for name, digest in digests.items() if name.startswith(split)} for split in ("train", "test")
    )
    assert len(train & test) <= 2


def test_without_a_split_there_is_one_folder_per_class(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "0-4", SOURCE_CLASSES)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3", "4"]
    assert len(content(folder)) == 178 + 182 + 177 + 183 + 181


def test_digits_are_written_once(split_digits: Path) -> None:
    path = next(split_digits.rglob("*.png"))
    os.utime(path, (1, 1))
    assert write_digits(split_digits, TARGET_CLASSES, TRAINING_IMAGES) == split_digits
    assert path.stat().st_mtime == 1


def test_an_interrupted_write_is_completed(split_digits: Path, tmp_path: Path) -> None:
    (tmp_path / "cut" / "train" / "5").mkdir(parents=True)
    (tmp_path / "cut" / "train" / "5" / "000.png").write_bytes(b"half")
    assert content(write_digits(tmp_path / "cut", TARGET_CLASSES, TRAINING_IMAGES)) == content(split_digits)


def test_the_digits_load_as_an_image_folder(split_digits: Path) -> None:
    from xfer.data.image_folder import folder

    source = folder(split_digits)
    assert source.classes == ("5", "6", "7", "8", "9")
    assert {example.part for example in source.examples} == {"train", "test"}


def test_the_weights_are_trained_once(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xfer.models.backbones import build

    monkeypatch.setattr(quickstart_data, "PRETRAINING_EPOCHS", 1)
    file = pretrained_weights(tmp_path, "test_efficientnet", 16)
    assert file.name == "test_efficientnet-digits-0-4-16px.safetensors"
    build("test_efficientnet", 5, 16, file)
    os.utime(file, (1, 1))
    assert pretrained_weights(tmp_path, "test_efficientnet", 16) == file
    assert file.stat().st_mtime == 1
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.slow
def test_the_pretrained_network_recognises_its_digits(one_thread: None, tmp_path: Path) -> None:
    import safetensors.torch
    import timm
    import torch

    from xfer.data.image_folder import folder
    from xfer.data.pack import build_pack
    from xfer.data.split import split_pack
    from xfer.models.backbones import Preprocessor, input_statistics

    file = pretrained_weights(tmp_path, "test_resnet", 32)
    model = timm.create_model("test_resnet", num_classes=5)
    model.load_state_dict(safetensors.torch.load_file(file))
    model.eval()
    pack = build_pack(folder(tmp_path / "digits-0-4"), 32, tmp_path / "packs")
    held_out = split_pack(pack).test
    images = torch.from_numpy(pack.images[held_out]).permute(0, 3, 1, 2)
    with torch.no_grad():
        predicted = model(Preprocessor(input_statistics(model), torch.device("cpu"))(images)).argmax(1)
    assert (predicted == torch.from_numpy(pack.labels[held_out])).float().mean() > 0.9
