"""python -m xfer predict and advise: what a trained network makes of photos, and what to try before there is one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.xfer.cli_runner import Flags, make_command_runner
from xfer import hashing
from xfer.__main__ import main
from xfer.commands import shared
from xfer.data.pack import load_pack
from xfer.data.split import split_pack
from xfer.models import backbones
from xfer.records import record_from_dict


@pytest.fixture
def xfer(capsys):
    return make_command_runner(capsys)


@pytest.fixture(scope="module")
def flags(image_folder, weights, tmp_path_factory):
    return Flags(image_folder, weights, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def out(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *flags("--epochs", 2, "--batch-size", 8, "--out", folder)]) == 0
    return folder


def asked_for_json(ended):
    assert ended.status == 0
    return [json.loads(line) for line in ended.out.splitlines()]


# Predict


def test_a_photo_gets_its_likeliest_classes(xfer, out, image_folder):
    photo = image_folder / "red" / "01.png"
    (found,) = asked_for_json(xfer("predict", "--model", out / "model", "--json", photo))
    assert found["image"] == str(photo)
    shares = found["classes"]
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)  # all three classes of three
    ended = xfer("predict", "--model", out / "model", photo)
    assert ended.out == f"{photo}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()) + "\n"
    assert ended.err == ""


@pytest.mark.parametrize("top", [1, 2, 9])
def test_as_many_classes_are_named_as_were_asked_for_or_there_are(xfer, out, image_folder, top):
    photo = image_folder / "red" / "01.png"
    (all_,) = asked_for_json(xfer("predict", "--model", out / "model", "--json", photo))
    (found,) = asked_for_json(xfer("predict", "--model", out / "model", "--json", "--top", top, photo))
    assert list(found["classes"]) == list(all_["classes"])[:top]


def test_it_is_right_where_the_evaluation_says_that_it_was(xfer, out, flags, image_folder):
    record = record_from_dict(json.loads((out / "record.json").read_text()))
    (pack,) = map(load_pack, (flags.storage / "packs").iterdir())
    files = {hashing.sha256_file(path): path for path in image_folder.rglob("*.*")}
    photos = [files[pack.digests[place]] for place in record.val.images]
    found = asked_for_json(xfer("predict", "--model", out / "model", "--json", "--top", 1, *photos))
    assert [each["image"] for each in found] == [str(photo) for photo in photos]
    right = tuple(photo.parent.name in each["classes"] for photo, each in zip(photos, found, strict=True))
    assert right == record.val.correct


def test_a_folder_stands_for_the_photos_in_it_and_what_is_none_is_named_and_skipped(xfer, out, image_folder, tmp_path):
    (tmp_path / "deeper").mkdir()
    shutil.copy(image_folder / "red" / "01.png", tmp_path / "deeper" / "b.PNG")
    shutil.copy(image_folder / "blue" / "00.jpg", tmp_path / "a.jpg")
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("none of our business")
    ended = xfer("predict", "--model", out / "model", tmp_path)
    assert ended.status == 0
    assert [line.partition(": ")[0] for line in ended.out.splitlines()] == [
        *(str(tmp_path / "a.jpg"), str(tmp_path / "deeper" / "b.PNG"))
    ]
    assert ended.err.startswith(f"skipped: {tmp_path / 'torn.jpg'}: UnidentifiedImageError")
    assert ended.err.count("\n") == 1
    found = asked_for_json(xfer("predict", "--model", out / "model", "--json", tmp_path))
    assert [sorted(each) for each in found] == [["classes", "image"], ["classes", "image"], ["error", "image"]]


def test_predict_refuses_what_it_cannot_ask_or_be_asked(xfer, out, image_folder, tmp_path):
    photo, model = image_folder / "red" / "01.png", out / "model"
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        (("--model", tmp_path, photo), f"{tmp_path} holds no model.json: give the folder `model` of a run"),
        (("--model", tmp_path / "none", photo), "holds no model.json"),
        (("--model", model, tmp_path / "none.jpg"), f"there is no photo {tmp_path / 'none.jpg'}"),
        (("--model", model, tmp_path / "empty"), f"there is no photo in {tmp_path / 'empty'}"),
        (("--model", model, torn), "none of the 1 photos can be read"),
        (("--model", model, "--top", 0, photo), "--top 0: at least 1 class must be named"),
    ):
        ended = xfer("predict", *arguments)
        assert (ended.status, ended.out) == (2, "")
        assert f"error: {said}" in ended.err or said in ended.err


@pytest.mark.parametrize("harm", ["card", "older", "weights"])
def test_a_damaged_model_is_said_to_be_one(xfer, out, image_folder, tmp_path, harm):
    model = tmp_path / "model"
    shutil.copytree(out / "model", model)
    if harm == "weights":
        (model / "model.safetensors").write_bytes(b"torn")
    else:
        (model / "model.json").write_text({"card": "{", "older": "{}"}[harm])
    ended = xfer("predict", "--model", model, image_folder)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"error: the model in {model} cannot be loaded; it is damaged, or was written by")


# Advise


def test_advice_says_how_many_how_alike_how_measured_and_what_to_try(xfer, flags):
    ended = xfer("advise", *flags())
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("24 training images of 3 classes (8 a class)\n")
    assert "\nThe data set is small: fewer than 1,000 training images.\n" in ended.out
    assert re.search(r"^It is (similar to|different from) what the network has learned", ended.out, re.MULTILINE)
    assert [line.split()[:2] for line in ended.out.splitlines() if " features   probe " in line] == [
        *(["stage", str(number)] for number in range(1, 5)),
        ["late", "256"],
    ]
    assert "\nTry in this order:\n  1. " in ended.out


def test_advice_comes_as_json_too_and_a_table_of_images_is_advised_on_like_a_folder(xfer, flags, tmp_path):
    found, text = json.loads(xfer("advise", *flags("--json")).out), xfer("advise", *flags()).out
    assert (found["size"], found["measured"]["images"]) == ("small", 24)
    assert f"\nIt is {found['likeness']} " in text
    assert f"\n  1. {found['recommended'][0]['strategy']['name']}" in text
    shutil.copytree(flags.images, tmp_path / "colours")
    photos = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.*"))]
    rows = [f"{path},{path.parent.name}" for path in photos]
    (tmp_path / "images.csv").write_text("\n".join(["path,label", *rows]))
    again = json.loads(xfer("advise", *replace(flags, images=tmp_path / "images.csv")("--json")).out)
    assert again | {"seconds": 0} == found | {"seconds": 0}


def test_advice_comes_from_the_training_part_alone(xfer, flags, monkeypatch):
    asked = ("advise", *flags("--json", "--split-seed", 5))
    whole, build = json.loads(xfer(*asked).out), shared.build_pack

    def training_part(*arguments):
        pack = build(*arguments)
        images, train = np.zeros_like(pack.images), split_pack(pack, 5).train
        images[train] = pack.images[train]
        return replace(pack, images=images)

    monkeypatch.setattr(shared, "build_pack", training_part)
    assert json.loads(xfer(*asked).out)["measured"] == whole["measured"]


def test_advice_is_refused_where_nothing_can_be_measured(xfer, flags, monkeypatch):
    build = backbones.build

    def without_stages(*arguments, **named):
        model = build(*arguments, **named)
        model.feature_info = None
        return model

    monkeypatch.setattr(backbones, "build", without_stages)
    ended = xfer("advise", *flags())
    assert (ended.status, ended.out) == (2, "")
    assert "error: timm does not say where the stages of EfficientNet end" in ended.err
