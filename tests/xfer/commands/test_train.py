"""python -m xfer train: one recipe from the command line, which resumes where it stopped."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.xfer.cli_runner import Flags, make_command_runner
from xfer.__main__ import parser
from xfer.commands import shared, train
from xfer.commands.train import parse_choice
from xfer.data.images import read_image
from xfer.data.split import split_pack
from xfer.hyperparameters import DEFAULT_EPOCHS
from xfer.lengths import MIN_STEPS
from xfer.models import backbones
from xfer.recipe import CHOICE_TABLES, recipe_from_dict
from xfer.records import evaluation_from_dict, record_from_dict
from xfer.run import Run
from xfer.training.export import load_classifier

TIMINGS = ("seconds", "images_per_second", "cpu_percent", "memory_mb", "peak_memory_mb", "gpu_percent")
SHORT = ("--batch-size", 8, "--epochs", 2)


@pytest.fixture
def xfer(capsys):
    return make_command_runner(capsys)


@pytest.fixture
def flags(image_folder, weights, tmp_path):
    return Flags(image_folder, weights, tmp_path / "runs")


def read_json(path):
    return json.loads(path.read_text())


def reproducible_part(path):
    """A record without fields that depend on the clock or the machine."""
    plain = read_json(path)
    epochs = [{name: value for name, value in epoch.items() if name not in TIMINGS} for epoch in plain.pop("epochs")]
    return {name: value for name, value in plain.items() if name not in ("seconds", "resumed_at")}, epochs


class InterruptedRun(Run):
    """A Run that is interrupted by Ctrl-C after its first epoch."""

    def __iter__(self):
        yield next(super().__iter__())
        raise KeyboardInterrupt


# What is trained, and what is left


def test_a_run_writes_recipe_checkpoints_record_and_model(xfer, flags, tmp_path):
    ended = xfer("train", *flags(*SHORT, "--out", tmp_path / "out"))
    assert (ended.status, ended.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("checkpoints", "model", "recipe.json", "record.json")
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "model").iterdir()) == ["model.json", "model.safetensors"]
    assert [path.name for path in flags.storage.iterdir()] == ["packs"]
    record = record_from_dict(read_json(tmp_path / "out" / "record.json"))
    assert (record.status, len(record.epochs), record.resumed_at, record.test) == ("finished", 2, (), None)
    assert recipe_from_dict(read_json(tmp_path / "out" / "recipe.json")).id == record.id
    lines = ended.out.splitlines()
    assert lines[0] == (
        "clip (full fine-tuning, gradients clipped) on test_efficientnet: 3 classes, 24 training, 6 validation and 6 "
        "test images of 32 px"
    )
    assert [line[:14] for line in lines[1:3]] == ["epoch   1 of 2", "epoch   2 of 2"]
    right = sum(record.val.correct)
    last = record.epochs[-1]
    assert lines[3] == (
        f"weights kept: {record.kept}, the best in validation accuracy (last {last.raw_val_accuracy:.1%}, averaged "
        f"{last.averaged_val_accuracy:.1%}, start {record.start_accuracy:.1%})"
    )
    assert lines[4].startswith(f"validation accuracy {right / 6:.1%} ({right} of 6), balanced ")
    assert lines[5].endswith(f"python -m xfer predict --model {tmp_path / 'out' / 'model'} IMAGE ...")


def test_images_are_evaluated_and_predicted_in_the_size_of_evaluation(xfer, flags, image_folder, tmp_path):
    command = ("train", *flags(*SHORT, "--eval-size", 48, "--out", tmp_path / "out"))
    ended = xfer(*command)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[0].endswith("6 validation and 6 test images of 32 px, evaluated at 48 px")
    assert len([*(flags.storage / "packs").iterdir()]) == 2
    assert read_json(tmp_path / "out" / "recipe.json")["eval_size"] == 48
    model = tmp_path / "out" / "model"
    assert read_json(model / "model.json")["image_size"] == load_classifier(model).image_size == 48
    photo = image_folder / "red" / "01.png"
    (line,) = xfer("predict", "--model", model, "--json", photo).out.splitlines()
    probabilities = load_classifier(model).probabilities(read_image(photo, 48)[None])[0]
    for name, probability in json.loads(line)["classes"].items():
        assert probability == pytest.approx(probabilities[("blue", "green", "red").index(name)])
    assert "training is already complete" in xfer(*command).out
    other = xfer(*command[:-4], *command[-2:])
    assert other.status != 0
    assert "eval_size differ" in other.err


def test_without_out_a_run_has_its_own_folder_in_the_storage(xfer, flags):
    assert xfer("train", *flags("--epochs", 1)).status == 0
    (folder,) = (path for path in flags.storage.iterdir() if path.name != "packs")
    assert folder.name == f"clip-{read_json(folder / 'record.json')['id'][:8]}"


def test_the_defaults_are_the_initial_recipe_of_every_search(xfer, flags, tmp_path):
    assert xfer("train", *flags("--epochs", 1, "--out", tmp_path / "out")).status == 0
    recipe = recipe_from_dict(read_json(tmp_path / "out" / "recipe.json"))
    assert {kind: getattr(recipe, kind).name for kind in CHOICE_TABLES} == train.TRAIN_DEFAULTS
    assert (recipe.learning_rate, recipe.clip_norm, recipe.batch_size) == (0.01, 1.0, 16)


EVERY_KIND = {
    "strategy": "train_last:blocks=2",
    "optimizer": "adam",
    "schedule": "step:drop_every=0.5,drop_to=0.2",
    "augmentation": "cutout:cutout_size=0.4",
    "mixing": "mixup:alpha=1",
    "loss": "label_smoothing:smoothing=0.2",
    "balance": "logit_adjustment:tau=0.5",
    "head": "mlp:hidden=8",
    "activation": "mish",
    "batch_norm": "frozen",
    "colour": "grey",
}
TERM = {"embedding_loss": "contrastive:weight=0.5", "mixing": "none"}


@pytest.mark.parametrize("options", [EVERY_KIND, TERM], ids=["all but the term", "the term"])
def test_every_kind_of_choice_is_trained_as_given(xfer, flags, tmp_path, options):
    choices = [part for kind, text in options.items() for part in (f"--{kind.replace('_', '-')}", text)]
    numbers = ("--learning-rate", 0.001, "--body-rate", 0.5, "--images-per-class", 4, "--seed", 3, "--split-seed", 2)
    ended = xfer("train", *flags("--epochs", 1, *numbers, *choices, "--out", tmp_path / "out"))
    assert (ended.status, ended.err) == (0, "")
    recipe = recipe_from_dict(read_json(tmp_path / "out" / "record.json")["recipe"])
    for kind, text in options.items():
        assert getattr(recipe, kind) == parse_choice(kind, text)
    assert (recipe.learning_rate, recipe.body_rate, recipe.images_per_class) == (0.001, 0.5, 4)
    assert (recipe.seed, recipe.split_seed, recipe.draw) == (3, 2, 0)
    assert "12 training" in ended.out


def test_the_cases_above_cover_all_kinds_of_choice():
    assert {*EVERY_KIND, *TERM} == set(CHOICE_TABLES)


def test_a_closed_form_head_takes_one_epoch_and_other_values_are_refused(xfer, flags, tmp_path):
    ended = xfer("train", *flags("--strategy", "ridge_probe:penalty=10", "--out", tmp_path / "out"))
    assert (ended.status, ended.err) == (0, "")
    record = record_from_dict(read_json(tmp_path / "out" / "record.json"))
    assert (record.status, len(record.epochs), record.recipe["strategy"]["penalty"]) == ("finished", 1, 10.0)
    ended = xfer("train", *flags("--strategy", "ridge_probe", "--epochs", 3, "--out", tmp_path / "other"))
    assert (ended.status, "takes no gradient steps: leave epochs at 1, got 3" in ended.err) == (2, True)


def test_a_choice_gets_all_its_parameters_and_integers_are_converted_to_floats():
    assert str(parse_choice("schedule", "step:drop_to=0.5")) == "step(drop_every=0.6666666666666666, drop_to=0.5)"
    assert parse_choice("mixing", "mixup:alpha=1") == parse_choice("mixing", "mixup:alpha=1.0")
    assert str(parse_choice("mixing", " mixup : alpha = 2.5 ")) == "mixup(alpha=2.5)"


def test_a_network_from_random_weights_needs_no_weights_file(xfer, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "fetch_weights", lambda name: pytest.fail("the hub was used"))
    about = ("--data", image_folder, "--storage", tmp_path, "--epochs", 1)
    small = xfer("train", *about, "--strategy", "small_cnn")
    assert (small.status, small.err) == (0, "")
    assert small.out.startswith("small_cnn (training a small CNN from random weights) on basic_cnn: 3 classes, ")
    assert "images of 64 px" in small.out.splitlines()[0]  # the default size of the trained network
    scratch = xfer("train", *about, "--strategy", "scratch", "--backbone", "basic_cnn", "--image-size", 32)
    assert (scratch.status, scratch.err) == (0, "")


def test_without_a_file_weights_come_from_the_hub(xfer, image_folder, weights, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(backbones, "fetch_weights", lambda name: fetched.append(name) or weights)
    about = ("--backbone", "test_efficientnet", "--image-size", 32, "--epochs", 1, "--strategy", "linear_probe")
    assert xfer("train", "--data", image_folder, "--storage", tmp_path, *about).status == 0
    assert fetched == ["test_efficientnet"]


def test_flags_that_a_strategy_ignores_are_noted(xfer, flags):
    ended = xfer("train", *flags("--epochs", 1, "--strategy", "small_cnn"))
    assert ended.status == 0
    assert ended.err.splitlines() == [
        "note: strategy small_cnn starts from random weights: --weights is ignored",
        "note: strategy small_cnn uses basic_cnn: --backbone and --backbone-args are ignored",
    ]


def test_unreadable_images_are_noted(xfer, flags, image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "images")
    (tmp_path / "images" / "red" / "torn.jpg").write_bytes(b"no image")
    ended = xfer("train", *replace(flags, images=tmp_path / "images")("--epochs", 1))
    assert ended.status == 0
    assert ended.err.startswith("note: images skipped because they cannot be read: 1; the first: red/torn.jpg: ")


# Going on


def test_an_interrupted_run_resumes_and_ends_with_the_same_result(xfer, flags, tmp_path, monkeypatch):
    once = xfer("train", *flags(*SHORT, "--out", tmp_path / "once"))
    with monkeypatch.context() as patched:
        patched.setattr(train, "Run", InterruptedRun)
        stopped = xfer("train", *flags(*SHORT, "--out", tmp_path / "twice"))
    assert stopped.status == 130
    assert stopped.err == "stopped after 1 of 2 epochs: run the same command to resume\ninterrupted\n"
    assert not (tmp_path / "twice" / "record.json").exists()
    again = xfer("train", *flags(*SHORT, "--out", tmp_path / "twice"))
    assert again.out.splitlines()[1] == "resuming after epoch 1"
    assert [line[:9] for line in again.out.splitlines() if line.startswith("epoch")] == ["epoch   2"]
    assert again.out.splitlines()[3] == once.out.splitlines()[3]
    assert reproducible_part(tmp_path / "twice" / "record.json") == reproducible_part(tmp_path / "once" / "record.json")
    assert read_json(tmp_path / "twice" / "record.json")["resumed_at"] == [1]
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("once", "twice")]
    assert models[0] == models[1]


def test_repeating_a_finished_run_trains_nothing_and_writes_the_same(xfer, flags, tmp_path):
    arguments = ("train", *flags("--epochs", 1, "--out", tmp_path / "out"))
    first = xfer(*arguments)
    record = (tmp_path / "out" / "record.json").read_bytes()
    (tmp_path / "out" / "record.json").unlink()
    again = xfer(*arguments)
    assert again.out.splitlines()[1] == "training is already complete"
    assert again.out.splitlines()[2:] == first.out.splitlines()[2:]
    assert (tmp_path / "out" / "record.json").read_bytes() == record


def test_a_folder_holds_only_one_recipe(xfer, flags, tmp_path):
    assert xfer("train", *flags("--epochs", 1, "--out", tmp_path)).status == 0
    record = (tmp_path / "record.json").read_bytes()
    ended = xfer("train", *flags("--epochs", 1, "--seed", 1, "--draw", 2, "--out", tmp_path))
    assert ended.status == 2
    assert ended.err == (f"error: {tmp_path} holds a run of another recipe (draw, seed differ): use another --out\n")
    assert (tmp_path / "record.json").read_bytes() == record


# The test part


def test_the_test_part_is_evaluated_only_on_request(xfer, flags, tmp_path):
    arguments = ("train", *flags("--epochs", 1, "--out", tmp_path))
    closed = xfer(*arguments)
    assert "test accuracy" not in closed.out
    assert not (tmp_path / "test.json").exists()
    opened = xfer(*arguments, "--test")
    evaluation = evaluation_from_dict(read_json(tmp_path / "test.json"))
    assert (evaluation.part, len(evaluation.images)) == ("test", 6)
    assert f"\ntest accuracy {evaluation.accuracy:.1%} ({sum(evaluation.correct)} of 6), balanced " in opened.out


def test_the_test_part_does_not_affect_training(xfer, flags, tmp_path, monkeypatch):
    arguments = ("train", *flags("--epochs", 1))
    xfer(*arguments, "--out", tmp_path / "as it is")
    build = shared.build_pack

    def without_test(*options):
        pack = build(*options)
        images = np.array(pack.images)
        images[split_pack(pack).test] = 0
        return replace(pack, images=images)

    monkeypatch.setattr(shared, "build_pack", without_test)
    xfer(*arguments, "--out", tmp_path / "without")
    assert reproducible_part(tmp_path / "without" / "record.json") == reproducible_part(
        tmp_path / "as it is" / "record.json"
    )
    assert xfer(*arguments, "--out", tmp_path / "without", "--test").status == 0
    assert read_json(tmp_path / "without" / "test.json")["correct"] in (
        "110000",
        "001100",
        "000011",
    )  # all images are equal


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "niave"), r"unknown strategy 'niave': did you mean naive?"),
        (
            ("--strategy", "train_last:block=2"),
            "unknown parameter of strategy train_last 'block': did you mean blocks",
        ),
        (("--strategy", "train_last:name=2"), "unknown parameter of strategy train_last 'name'. Known: blocks"),
        (("--strategy", "train_last:blocks"), "--strategy: expected NAME=VALUE[,NAME=VALUE], got blocks"),
        (("--strategy", "train_last:blocks=1,blocks=2"), "a name is given twice"),
        (
            ("--strategy", "train_last:blocks=two"),
            "train_last:blocks=two: blocks must be an integer like 3, got two",
        ),
        (("--strategy", "train_last:blocks=1.5"), "blocks must be an integer like 3, got 1.5"),
        (("--strategy", "train_last:blocks=0"), "blocks must be at least 1, got 0"),
        (("--mixing", "mixup:alpha=none"), "alpha must be a value like 0.2, got None"),
        (("--augmentation", "flipp"), "unknown augmentation 'flipp': did you mean flip?"),
        (("--optimizer", "adam"), "--optimizer adam needs --learning-rate"),
        (("--learning-rate", "1e9"), "learning_rate must be between 1e-09 and 100, got 1000000000.0"),
        (
            ("--clip-value", "0.5"),
            "strategy clip already clips the gradient norm at 1; use --strategy naive",
        ),
        (
            ("--strategy", "lora"),
            "lora(rank=8) adapts linear layers, but this network has none with more than",
        ),
        (
            ("--strategy", "early_cut:stage=5"),
            "early_cut(stage=5): this network has 5 stages, so stage must be from 1 to 4",
        ),
        (("--strategy", "freeze_then_unfreeze", "--epochs", "2"), "would never unfreeze in 2 epochs"),
        (("--backbone", "efficientnet_b00"), "unknown backbone 'efficientnet_b00': did you mean efficientnet_b0"),
        (("--weights", "/no/such/file"), "no such weights file: /no/such/file"),
        (("--data", "/no/such/folder"), "there is no folder /no/such/folder"),
        (("--classes", "red,blu"), "unknown class of colours 'blu': did you mean blue?"),
        (("--backbone-args", "pad_type"), "--backbone-args: expected NAME=VALUE[,NAME=VALUE], got pad_type"),
        (("--backbone-args", "no_such=1"), "test_efficientnet cannot be built with these arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_invalid_argument_is_explained_before_any_image_is_read(xfer, flags, arguments, message):
    ended = xfer("train", *flags(*arguments))
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert not flags.storage.exists()


def test_a_custom_network_has_no_pretrained_weights(xfer, image_folder, tmp_path):
    ended = xfer("train", "--data", image_folder, "--storage", tmp_path / "runs", "--backbone", "basic_cnn")
    assert ended.status == 2
    assert "basic_cnn is not a pretrained network: use strategy scratch, or another backbone" in ended.err


def test_weights_of_another_network_are_refused(xfer, flags, weights_of):
    ended = xfer("train", *flags("--weights", weights_of("test_resnet")))
    assert ended.status == 2
    assert "does not fit test_efficientnet" in ended.err


def test_a_diverging_run_is_reported_and_recorded(xfer, flags, tmp_path):
    arguments = ("--strategy", "naive", "--learning-rate", 100, "--epochs", 3, "--out", tmp_path)
    ended = xfer("train", *flags(*arguments))
    assert ended.status == 1
    assert ended.err.startswith("error: the ")
    assert "Try a lower --learning-rate" in ended.err
    record = record_from_dict(read_json(tmp_path / "record.json"))
    assert record.status == "failed"
    assert record.error in ended.err
    assert not (tmp_path / "model").exists()


def test_a_deprecated_name_of_a_backbone_is_replaced_with_a_note(capsys):
    args = parser().parse_args(["train", "--data", "photos", "--backbone", "xception"])
    assert args.backbone == "legacy_xception"
    assert capsys.readouterr().err == "note: backbone xception is timm's legacy_xception; that name is used.\n"


def test_without_epochs_a_run_is_as_long_as_the_fewest_steps_take(xfer, flags, tmp_path):
    ended = xfer("train", *flags("--strategy", "linear_probe", "--batch-size", 8, "--out", tmp_path / "out"))
    assert ended.status == 0
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    images = int(re.search(r"(\d+) training", ended.out)[1])
    assert recipe["epochs"] == max(DEFAULT_EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / 8)))


def test_steps_are_rounded_up_to_whole_epochs(xfer, flags, tmp_path):
    ended = xfer("train", *flags("--strategy", "linear_probe", "--batch-size", 8, "--steps", 7, "--out", tmp_path))
    images = int(re.search(r"(\d+) training", ended.out)[1])
    assert json.loads((tmp_path / "recipe.json").read_text())["epochs"] == math.ceil(7 / math.ceil(images / 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 2, "--steps", 9), "--epochs 2 and --steps 9 both set the length of a run: leave out one of them"),
        (("--strategy", "ridge_probe", "--steps", 9), "takes no gradient steps: leave out --steps 9"),
    ],
)
def test_a_length_that_makes_no_sense_is_refused(xfer, flags, arguments, message):
    ended = xfer("train", *flags(*arguments))
    assert (ended.status, message in ended.err) == (2, True)
