"""python -m xfer predict and advise: classifying photos, and advice before training."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.xfer.cli_runner import Flags, make_command_runner
from xfer import hashing
from xfer.__main__ import main
from xfer.commands import shared
from xfer.data.pack import load_pack
from xfer.data.split import split_pack
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.methods.descriptions import strategy_descriptions
from xfer.models import backbones
from xfer.recipe import closed_form_values, recipe_from_dict
from xfer.records import record_from_dict
from xfer.run import Run
from xfer.storage import object_store
from xfer.training.export import load_classifier


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


def parse_json_lines(ended):
    assert ended.status == 0
    return [json.loads(line) for line in ended.out.splitlines()]


# Predict


def test_a_photo_gets_its_most_likely_classes(xfer, out, image_folder):
    photo = image_folder / "red" / "01.png"
    (line,) = parse_json_lines(xfer("predict", "--model", out / "model", "--json", photo))
    assert line["image"] == str(photo)
    probabilities = line["classes"]
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)  # all three classes
    ended = xfer("predict", "--model", out / "model", photo)
    assert (
        ended.out
        == f"{photo}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in probabilities.items()) + "\n"
    )
    assert ended.err == ""


def test_a_model_may_be_in_an_object_store(xfer, out, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XFER_CACHE", str(tmp_path))
    remote = object_store.as_path("memory://bucket/runs/mine/model")
    for file in sorted((out / "model").iterdir()):
        object_store.write_bytes(remote / file.name, file.read_bytes())
    photo = image_folder / "red" / "01.png"
    here, there = (xfer("predict", "--model", model, photo) for model in (out / "model", remote))
    assert (there.status, there.out) == (0, here.out)
    missing = xfer("predict", "--model", "memory://bucket/runs/other/model", photo)
    assert missing.status == 2
    assert "there are no files at memory:" in missing.err


@pytest.mark.parametrize("top", [1, 2, 9])
def test_top_limits_the_number_of_classes(xfer, out, image_folder, top):
    photo = image_folder / "red" / "01.png"
    (unlimited,) = parse_json_lines(xfer("predict", "--model", out / "model", "--json", photo))
    (line,) = parse_json_lines(xfer("predict", "--model", out / "model", "--json", "--top", top, photo))
    assert list(line["classes"]) == list(unlimited["classes"])[:top]


def test_predictions_agree_with_the_evaluation(xfer, out, flags, image_folder):
    record = record_from_dict(json.loads((out / "record.json").read_text()))
    (pack,) = map(load_pack, (flags.storage / "packs").iterdir())
    files = {hashing.sha256_file(path): path for path in image_folder.rglob("*.*")}
    photos = [files[pack.digests[index]] for index in record.val.images]
    predictions = parse_json_lines(xfer("predict", "--model", out / "model", "--json", "--top", 1, *photos))
    assert [prediction["image"] for prediction in predictions] == [str(photo) for photo in photos]
    correct = tuple(
        photo.parent.name in prediction["classes"] for photo, prediction in zip(photos, predictions, strict=True)
    )
    assert correct == record.val.correct


def test_a_folder_stands_for_its_photos_and_unreadable_files_are_skipped_with_a_message(
    xfer, out, image_folder, tmp_path
):
    (tmp_path / "deeper").mkdir()
    shutil.copy(image_folder / "red" / "01.png", tmp_path / "deeper" / "b.PNG")
    shutil.copy(image_folder / "blue" / "00.jpg", tmp_path / "a.jpg")
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not an image")
    shutil.copy(image_folder / "blue" / "00.jpg", tmp_path / "c.jfif")
    (tmp_path / ".thumbnails").mkdir()
    shutil.copy(image_folder / "blue" / "00.jpg", tmp_path / ".thumbnails" / "a.jpg")
    ended = xfer("predict", "--model", out / "model", tmp_path)
    assert ended.status == 0
    assert [line.partition(": ")[0] for line in ended.out.splitlines()] == [
        *(str(tmp_path / "a.jpg"), str(tmp_path / "c.jfif"), str(tmp_path / "deeper" / "b.PNG"))
    ]
    listed, damaged = ended.err.splitlines()
    assert listed == f"skipped in {tmp_path}: 1 in the junk folder .thumbnails, 1 not an image"
    assert damaged.startswith(f"skipped: {tmp_path / 'torn.jpg'}: UnidentifiedImageError")
    lines = parse_json_lines(xfer("predict", "--model", out / "model", "--json", tmp_path))
    assert [sorted(line) for line in lines] == [*[["classes", "image"]] * 3, ["error", "image"]]


def test_predict_refuses_invalid_models_and_photos(xfer, out, image_folder, tmp_path):
    photo, model = image_folder / "red" / "01.png", out / "model"
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("--model", tmp_path, photo), f"{tmp_path} contains no model.json: give the folder `model` of a run"),
        (("--model", tmp_path / "none", photo), "contains no model.json"),
        (("--model", model, tmp_path / "none.jpg"), f"no such photo or folder: {tmp_path / 'none.jpg'}"),
        (("--model", model, tmp_path / "empty"), f"no photo found in {tmp_path / 'empty'}"),
        (("--model", model, torn), "none of the 1 photos can be read"),
        (("--model", model, "--top", 0, photo), "--top must be at least 1, got 0"),
    ):
        ended = xfer("predict", *arguments)
        assert (ended.status, ended.out) == (2, "")
        assert f"error: {message}" in ended.err or message in ended.err


@pytest.fixture(scope="module")
def deep(weights, tmp_path_factory):
    """A 12-bit data set with a dark and a bright class, and a network trained on it."""
    root, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(0)
    for name, level in (("dark", 300), ("bright", 2_400)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(12):
            values = rng.integers(level, level + 500, (40, 40)).astype(np.uint16)
            Image.fromarray(values).save(root / "images" / name / f"{number:02d}.png")
    flags = Flags(root / "images", weights, root / "runs")
    assert main(["train", *flags("--strategy", "linear_probe", "--epochs", 8, "--out", root / "out")]) == 0
    return root


def test_a_photo_of_more_than_8_bits_is_scaled_as_in_training(xfer, deep):
    (pack,) = map(load_pack, (deep / "runs" / "packs").iterdir())
    card = json.loads((deep / "out" / "model" / "model.json").read_text())
    assert card["value_ranges"] == {"integer": [0.0, 4_095.0]}
    classifier = load_classifier(deep / "out" / "model")
    assert classifier.value_ranges == pack.value_ranges == {"integer": (0.0, 4_095.0)}
    photo = deep / "images" / "dark" / "00.png"
    expected = classifier.probabilities(pack.images[[pack.digests.index(hashing.sha256_file(photo))]])[0]
    (line,) = parse_json_lines(xfer("predict", "--model", deep / "out" / "model", "--json", photo))
    for name, probability in line["classes"].items():
        assert probability == pytest.approx(expected[classifier.classes.index(name)], abs=1e-6)


def test_a_photo_with_missing_values_is_skipped_with_the_reason(xfer, deep, tmp_path):
    values = np.full((20, 20), 0.5, np.float32)
    Image.fromarray(values).save(tmp_path / "whole.tif")
    values[2, 2] = np.nan
    Image.fromarray(values).save(tmp_path / "torn.tif")
    ended = xfer("predict", "--model", deep / "out" / "model", tmp_path)
    assert ended.err == (
        f"skipped: {tmp_path / 'torn.tif'}: missing values: 1 of 400 values are NaN, infinite or nodata, such as nan\n"
    )
    assert ended.out.startswith(f"{tmp_path / 'whole.tif'}: ")


def test_a_model_of_an_earlier_version_has_no_value_ranges(out, tmp_path):
    shutil.copytree(out / "model", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert card.pop("value_ranges") == {}
    assert card.keys() >= {"sha256", "weights_sha256"}
    del card["sha256"], card["weights_sha256"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    assert load_classifier(tmp_path / "model").value_ranges == {}


@pytest.mark.parametrize("harm", ["card", "older", "weights"])
def test_a_damaged_model_is_reported_as_such(xfer, out, image_folder, tmp_path, harm):
    model = tmp_path / "model"
    shutil.copytree(out / "model", model)
    if harm == "weights":
        (model / "model.safetensors").write_bytes(b"torn")
    else:
        (model / "model.json").write_text({"card": "{", "older": "{}"}[harm])
    ended = xfer("predict", "--model", model, image_folder)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"error: cannot load the model in {model}: it is damaged or was written by")


# Advise


def test_advice_shows_size_similarity_measurements_and_recommendations(xfer, flags):
    ended = xfer("advise", *flags())
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("24 training images of 3 classes (8 per class)\n")
    assert "\nThe data set is small: fewer than 1,000 training images.\n" in ended.out
    assert re.search(r"^It is (similar to|different from) what the network was pretrained on", ended.out, re.MULTILINE)
    assert [line.split()[:2] for line in ended.out.splitlines() if " features   probe " in line] == [
        *(["stage", str(number)] for number in range(1, 5)),
        ["late", "256"],
    ]
    assert "\nTry in this order:\n  1. " in ended.out


def test_advice_is_available_as_json_and_the_same_for_a_csv_table_and_a_folder(xfer, flags, tmp_path):
    advice, text = json.loads(xfer("advise", *flags("--json")).out), xfer("advise", *flags()).out
    assert (advice["size"], advice["measured"]["images"]) == ("small", 24)
    assert f"\nIt is {advice['likeness']} " in text
    first = advice["recommended"][0]["strategy"]["name"]
    assert re.search(rf"\n  1\. {first}.*\n     {strategy_descriptions()[first]}\n     why: ", text)
    shutil.copytree(flags.images, tmp_path / "colours")
    photos = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.*"))]
    rows = [f"{path},{path.parent.name}" for path in photos]
    (tmp_path / "images.csv").write_text("\n".join(["path,label", *rows]))
    again = json.loads(xfer("advise", *replace(flags, images=tmp_path / "images.csv")("--json")).out)
    assert again | {"seconds": 0} == advice | {"seconds": 0}


def test_advice_ends_with_what_is_reached_without_training_on_the_validation_part(xfer, flags, image_text_network):
    zero_shot = ("--zero-shot", f"local-dir:{image_text_network}")
    rows = json.loads(xfer("advise", *flags("--json", *zero_shot)).out)["without_training"]
    assert [row["method"] for row in rows] == ["knn", "knn", "logistic_probe", "zero_shot", "zero_shot"]
    assert {(row["images"], row["train_images"]) for row in rows} == {(6, 24), (6, 0)}
    assert all(row["low"] < row["accuracy"] < row["high"] or row["accuracy"] in (0, 1) for row in rows)
    lines = xfer("advise", *flags(*zero_shot)).out.splitlines()[-6:]
    assert lines[0] == "Without training a network: 24 training images, 6 validation images, 95% interval"
    labels = ["kNN (k=5)", "kNN (k=20)", "logistic probe", "zero-shot (1 prompt)", "zero-shot (7 prompts)"]
    assert [line[2:26].strip() for line in lines[1:]] == labels
    expected = [f"{100 * row['accuracy']:.1f}% {100 * row['low']:.1f}% to {100 * row['high']:.1f}%" for row in rows]
    assert [" ".join(line[26:].split()) for line in lines[1:]] == expected


def test_the_features_of_the_advice_are_those_of_a_probe(xfer, flags, tmp_path):
    arguments = flags("--storage", tmp_path)
    xfer("advise", *arguments)
    files = sorted((tmp_path / "features").glob("*/features.npy"))
    assert len(files) == 1
    source = shared.read_source(str(flags.images))
    pack = shared.build_pack(source, 32, tmp_path / "packs")
    recipe = {
        **closed_form_values(),
        "strategy": {"name": "logistic_probe", "penalty": 10.0},
        "data": pack.hash,
        "classes": 3,
        "image_size": 32,
        "backbone": "test_efficientnet",
        "weights": shared.weights_hash(flags.weights),
    }
    list(Run(recipe_from_dict(recipe), pack, flags.weights, features=FeatureCache(tmp_path / "features")))
    assert sorted((tmp_path / "features").glob("*/features.npy")) == files


def test_advice_says_why_there_is_no_zero_shot_row(xfer, flags, image_text_network, tmp_path):
    for number, path in enumerate(sorted(flags.images.iterdir())):
        shutil.copytree(path, tmp_path / "codes" / f"n{number:08d}")
    images = replace(flags, images=tmp_path / "codes")
    ended = xfer("advise", *images("--zero-shot", f"local-dir:{image_text_network}"))
    assert ended.status == 0
    assert "note: zero-shot needs class names that are words, got 'n00000000', " in ended.err
    assert "zero-shot" not in ended.out
    refused = xfer("advise", *images("--zero-shot", "ViT-B-32"))
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("error: --zero-shot ViT-B-32: give NAME=FILE")


def test_advice_uses_only_the_training_part(xfer, flags, monkeypatch, tmp_path):
    arguments = ("advise", *flags("--json", "--split-seed", 5))
    expected, build = json.loads(xfer(*arguments).out), shared.build_pack
    arguments = (*arguments, "--storage", str(tmp_path))  # without the features of the first call

    def training_part(*options):
        pack = build(*options)
        images, train = np.zeros_like(pack.images), split_pack(pack, 5).train
        images[train] = pack.images[train]
        return replace(pack, images=images)

    monkeypatch.setattr(shared, "build_pack", training_part)
    assert json.loads(xfer(*arguments).out)["measured"] == expected["measured"]


def test_advice_is_refused_for_a_network_without_stages(xfer, flags, monkeypatch):
    build = backbones.build

    def without_stages(*arguments, **named):
        model = build(*arguments, **named)
        model.feature_info = None
        return model

    monkeypatch.setattr(backbones, "build", without_stages)
    ended = xfer("advise", *flags())
    assert (ended.status, ended.out) == (2, "")
    assert "error: timm does not define the stages of EfficientNet" in ended.err
