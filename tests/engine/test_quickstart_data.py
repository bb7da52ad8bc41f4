"""The quickstart data are deterministic and written once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeps.engine import quickstart_data
from sweeps.engine.quickstart_data import (
    FONTS,
    IMAGES_PER_GLYPH,
    LEFT_OUT,
    TRAINING_IMAGES,
    VALIDATION_IMAGES,
    draw_letter,
    place,
    pretrained_weights,
    write_digits,
    write_letters,
)


def content(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("storage") / "digits")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("storage") / "letters")


def test_the_digits_are_the_same_every_time(digits: Path, tmp_path: Path) -> None:
    assert content(write_digits(tmp_path / "again")) == content(digits)


def test_every_scan_is_in_one_part_or_left_out(digits: Path) -> None:
    scans = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)  # as scikit-learn documents them
    files = Counter(path.parent.relative_to(digits).as_posix() for path in digits.rglob("*.png"))
    for digit, count in enumerate(scans):
        assert files.pop(f"train/{digit}") == TRAINING_IMAGES
        assert files.pop(f"val/{digit}") == VALIDATION_IMAGES
        assert files.pop(f"test/{digit}") == count - TRAINING_IMAGES - VALIDATION_IMAGES - LEFT_OUT
    assert not files


def test_no_two_digits_are_equal(digits: Path) -> None:
    assert len(set(content(digits).values())) == 1797 - 10 * LEFT_OUT


def test_letters_have_a_folder_per_class(letters: Path) -> None:
    files = Counter(path.parent.name for path in letters.rglob("*.png"))
    assert files == dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZ", len(FONTS) * IMAGES_PER_GLYPH)


@pytest.mark.parametrize("font", FONTS)
def test_every_font_draws_letters_of_full_size(font: str) -> None:
    drawn = [draw_letter(letter, font) for letter in "IQW"]
    for glyph in drawn:
        assert glyph.shape == (8, 8)
        assert 0.3 < glyph.max() <= 1
        assert max(glyph.any(axis=0).sum(), glyph.any(axis=1).sum()) >= 6
    assert len({glyph.tobytes() for glyph in drawn}) == 3


def test_placing_moves_a_glyph_without_losing_ink() -> None:
    rng = np.random.default_rng(0)
    glyph = np.zeros((8, 8))
    glyph[3:5, 3:5] = 1
    images = [np.asarray(place(glyph, rng), dtype=float) for _ in range(50)]
    centres = [np.argwhere(image > 0).mean(axis=0) for image in images]
    assert all(image.shape == (28, 28) for image in images)
    assert all(image.max() > 200 for image in images)
    assert np.std(centres, axis=0).min() > 1.5


def test_images_are_written_once(digits: Path, letters: Path) -> None:
    for folder, write in ((digits, write_digits), (letters, write_letters)):
        path = next(folder.rglob("*.png"))
        os.utime(path, (1, 1))
        assert write(folder) == folder
        assert path.stat().st_mtime == 1


def test_an_interrupted_write_is_completed(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "cut" / "train" / "5").mkdir(parents=True)
    (tmp_path / "cut" / "train" / "5" / "000.png").write_bytes(b"half")
    assert content(write_digits(tmp_path / "cut")) == content(digits)


def test_the_digits_load_as_an_image_folder_without_notes(digits: Path) -> None:
    from xfer.data.image_folder import folder

    source = folder(digits)
    assert source.classes == tuple("0123456789")
    assert {example.part for example in source.examples} == {"train", "val", "test"}
    assert len(source.examples) == len(content(digits))  # no other files, which would be reported as skipped


def test_the_images_are_too_small_to_look_for_near_copies(digits: Path) -> None:
    from xfer.data.copies import MIN_SIDE

    with Image.open(next(digits.rglob("*.png"))) as image:
        assert max(image.size) < MIN_SIDE


def test_the_weights_are_trained_once(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xfer.models.backbones import build

    monkeypatch.setattr(quickstart_data, "PRETRAINING_EPOCHS", 1)
    monkeypatch.setattr(quickstart_data, "IMAGES_PER_GLYPH", 1)
    file = pretrained_weights(tmp_path, "test_efficientnet", 16)
    assert file.name == "test_efficientnet-letters-16px.safetensors"
    build("test_efficientnet", 10, 16, file)
    os.utime(file, (1, 1))
    assert pretrained_weights(tmp_path, "test_efficientnet", 16) == file
    assert file.stat().st_mtime == 1
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.slow
@pytest.mark.nightly
def test_the_pretrained_network_recognizes_letters(one_thread: None, tmp_path: Path) -> None:
    import safetensors.torch
    import timm
    import torch

    from xfer.data.image_folder import folder
    from xfer.data.pack import build_pack
    from xfer.data.split import split_pack
    from xfer.models.backbones import Preprocessor, input_statistics

    file = pretrained_weights(tmp_path, "test_resnet", 32)
    model = timm.create_model("test_resnet", num_classes=26)
    model.load_state_dict(safetensors.torch.load_file(file))
    model.eval()
    pack = build_pack(folder(tmp_path / "letters"), 32, tmp_path / "packs")
    held_out = split_pack(pack).test
    images = torch.from_numpy(pack.images[held_out]).permute(0, 3, 1, 2)
    with torch.no_grad():
        predicted = model(Preprocessor(input_statistics(model), torch.device("cpu"))(images)).argmax(1)
    assert (predicted == torch.from_numpy(pack.labels[held_out])).float().mean() > 0.9
