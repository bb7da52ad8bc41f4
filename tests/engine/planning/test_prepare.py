"""Prepare: errors are found before the first trial, with messages that say what to do."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import default_name, describe_plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import RESPLIT_BELOW, Prepared
from tests.conftest import BACKBONE, SIZE
from tests.engine.conftest import write_noise_images
from xfer.data.image_folder import folder
from xfer.data.inspection import inspect_source
from xfer.hyperparameters import Categorical
from xfer.methods.strategies import STRATEGIES
from xfer.training import networks


class Harmful:
    """An object whose unpickling runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "tpee"}, r"unknown sampler 'tpee': did you mean tpe\? Known: tpe, random, gp, grid"),
        ({"scheduler": "ash"}, r"unknown scheduler 'ash': did you mean asha\? Known: asha, median, none, one"),
        (
            {"scheduler": "one_epoch_top_k", "trials": 24, "finalists": 4},
            r"lets the best 3 of 24 trials continue, but --finalists is 4: use at least --trials 25",
        ),
        ({"source": "folders"}, r"unknown source 'folders': did you mean folder\?"),
        ({"backbones": ("efficientnet_b00",), "weights": {}}, r"unknown backbone .* did you mean efficientnet_b0"),
        ({"backbones": (BACKBONE, "resnet18.nope")}, r"unknown backbone 'resnet18.nope'.*Known: resnet18\."),
        ({"strategies": ("niave",)}, r"unknown strategy 'niave': did you mean naive"),
        ({"edits": {"optimizer": "adan"}}, r"unknown optimizer 'adan': did you mean adam"),
        ({"weights": {BACKBONE: "/no/such/file"}}, r"there is no weights file /no/such/file"),
        ({"data": "/no/such/folder"}, r"there is no folder /no/such/folder"),
        (
            {"data": "/no/such/folder", "edits": {"optimiser": "sgd"}},
            r"unknown axis 'optimiser'",
        ),
        (
            {"classes": ("red", "gren")},
            r"unknown class of colours 'gren': did you mean green\? Known: blue, green, red",
        ),
        ({"classes": ("4",)}, r"colours has 3 classes: cannot select 4"),
        (
            {"strategies": ("lora",)},
            r"strategy lora cannot be tried. test_efficientnet: lora\(rank=\d+\) adapts linear",
        ),
        (
            {"arms": ({"strategy": "naive", "batch_size": 48},)},
            r"an arm has batch_size=48, which lies outside the search space",
        ),
        ({"backbone_args": {"no_such_argument": 1}}, r"efficientnet cannot be built with these arg.*no_such_argument"),
        ({"backbone_args": {"no_such_argument": 1}, "strategies": ("scratch",)}, r"cannot be built with these arg"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_unknown_names_and_files_are_refused_with_the_known_ones(
    make_plan: Callable[..., Plan], storage: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(make_plan(**changes), storage)


def no_images(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "bees")


def empty_class(folder: Path) -> None:
    (folder / "wasps").mkdir()


def nothing_readable(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")


def one_class_unreadable(folder: Path) -> None:
    for path in (folder / "bees").iterdir():
        path.write_bytes(path.read_bytes()[:30])


def too_few(folder: Path) -> None:
    for path in folder.rglob("[1-9].png"):
        path.unlink()


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_images, r"images holds no images in class folders. Expected .*/<class>/\*.jpg"),
        (one_class, r"images holds one class only \(ants\): there is nothing to tell apart"),
        (empty_class, r"no training images for wasps. Add some, or leave the class out"),
        (nothing_readable, r"none of the 16 images of images can be read; the first: ants/\d.png: UnidentifiedImage"),
        (one_class_unreadable, r"no training image of class 'bees' can be read; the first .*: bees/\d.png"),
        (too_few, r"2 images are too few to be divided"),
        (a_file_instead, r"images is a file; give the folder that holds the images"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(
    make_plan: Callable[..., Plan],
    two_classes: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    spoil(two_classes)
    with pytest.raises(ValueError, match=message):
        prepare(make_plan(data=str(two_classes)), tmp_path / "storage")
    assert list((tmp_path / "storage").rglob("*.tmp")) == []


def test_weights_of_another_network_are_refused(
    make_plan: Callable[..., Plan], storage: Path, weights_of: Callable[[str], Path]
) -> None:
    other = weights_of("test_resnet")
    with pytest.raises(ValueError, match=r"test_resnet.safetensors does not fit test_efficientnet: .*--backbone-args"):
        prepare(make_plan(weights={BACKBONE: str(other)}), storage)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x04N."])
def test_files_that_hold_no_weights_are_refused(
    make_plan: Callable[..., Plan], storage: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pt is neither a safetensors file nor a plain state dict"):
        prepare(make_plan(weights={BACKBONE: str(tmp_path / "w.pt")}), storage)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "safetensors"])
def test_weights_that_contain_code_are_refused_without_running_it(
    make_plan: Callable[..., Plan], storage: Path, tmp_path: Path, suffix: str, zipped: bool
) -> None:
    import torch

    mark, file = tmp_path / "it ran", tmp_path / f"w.{suffix}"
    if zipped:
        torch.save({"conv_stem.weight": Harmful(mark)}, file)
    else:
        file.write_bytes(pickle.dumps({"conv_stem.weight": Harmful(mark)}))
    with pytest.raises(ValueError, match="without running code from it"):
        prepare(make_plan(weights={BACKBONE: str(file)}), storage)
    assert not mark.exists()


def test_an_image_size_that_a_network_cannot_take_is_refused(make_plan: Callable[..., Plan], storage: Path) -> None:
    with pytest.raises(ValueError, match="test_vit cannot take images of 10 px"):
        prepare(make_plan(backbones=("test_vit",), weights={}, strategies=("scratch",), image_size=10), storage)


# --- what is prepared ------------------------------------------------------------------------------------------------


def test_unreadable_images_are_counted_and_named(
    make_plan: Callable[..., Plan], two_classes: Path, tmp_path: Path
) -> None:
    (two_classes / "ants" / "zero.jpg").write_bytes(b"")
    (two_classes / "bees" / "torn.png").write_bytes((two_classes / "bees" / "1.png").read_bytes()[:40])
    _, note = prepare(make_plan(data=str(two_classes)), tmp_path).notes
    assert note.startswith("2 unreadable images were skipped: ")
    assert "ants/zero.jpg: " in note
    assert "bees/torn.png: " in note


def test_only_the_first_five_unreadable_images_are_named(
    make_plan: Callable[..., Plan], two_classes: Path, tmp_path: Path
) -> None:
    for number in range(7):
        (two_classes / "ants" / f"bad{number}.jpg").write_bytes(bytes([number]))
    _, note = prepare(make_plan(data=str(two_classes)), tmp_path).notes
    assert note.startswith("7 unreadable images were skipped: ")
    assert len(re.findall(r"(?<!/)ants/bad\d.jpg: ", note)) == 5
    assert note.endswith("; and 2 more.")


def test_copies_across_parts_are_counted_as_inspect_does(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    for seed, (part, name) in enumerate((p, n) for p in ("train", "val", "test") for n in ("ants", "bees")):
        write_noise_images(tmp_path / "images" / part / name, 6, seed)
    for name in ("0.png", "1.png"):
        shutil.copy(tmp_path / "images/train/ants" / name, tmp_path / "images/test/ants" / f"copy-{name}")
    Image.open(tmp_path / "images/val/bees/0.png").save(tmp_path / "images/test/ants/copy.bmp")
    prepared = prepare(make_plan(data=str(tmp_path / "images")), tmp_path / "storage")
    _, line, *warnings = prepared.notes
    inspection = inspect_source(folder(tmp_path / "images"))
    assert line == "copies: 3 exact, 0 near"
    assert warnings == inspection.warnings
    assert [warning[:60] for warning in warnings] == [
        "WARNING: 2 of 15 test images are copies of train images, wit",
        "WARNING: 1 of 15 test images are copies of val images, with ",
        "WARNING: 1 picture is filed under several classes: val/bees/",
    ]
    assert prepared.split.description == "training, validation and test part are as given"
    again = prepare(make_plan(data=str(tmp_path / "images")), tmp_path / "storage")
    assert describe_plan(again) == describe_plan(prepared)


def test_the_split_description_names_copies_that_are_drawn_together(
    make_plan: Callable[..., Plan], two_classes: Path, tmp_path: Path
) -> None:
    Image.open(two_classes / "ants" / "0.png").save(two_classes / "bees" / "copy.bmp")
    prepared = prepare(make_plan(data=str(two_classes)), tmp_path)
    assert describe_plan(prepared)["data"]["split"] == (
        "70 / 15 / 15, stratified by class; copies of a picture are in one part (2 images in 1 group)"
    )
    assert prepared.notes[1] == "copies: 1 exact, 0 near"


def test_the_only_note_on_clean_data_is_where_the_files_went(prepared: Prepared) -> None:
    assert prepared.notes == ("files: 36 seen = 36 used + 0 skipped",)


def test_the_prepared_sweep_matches_the_plan(prepared: Prepared, weights: Path) -> None:
    assert prepared.image_size == SIZE
    assert prepared.pack.classes == ("blue", "green", "red")
    (backbone,) = prepared.backbones
    assert backbone.file == weights.resolve()
    assert len(backbone.sha256) == 64
    assert prepared.plan.trials == 24


def test_another_name_of_a_backbone_is_replaced_by_that_of_timm_with_a_note(
    make_plan: Callable[..., Plan], storage: Path, weights: Path
) -> None:
    name = "timm/test_efficientnet"
    prepared = prepare(
        make_plan(backbones=(name,), weights={name: str(weights)}, arms=({"strategy": "clip"},)), storage
    )
    assert prepared.plan.backbones == (prepared.backbones[0].name,) == ("test_efficientnet",)
    assert f"backbone {name} is timm's test_efficientnet; that name is used." in prepared.notes


def test_arms_determine_the_number_of_trials(make_plan: Callable[..., Plan], storage: Path) -> None:
    assert prepare(make_plan(arms=({"strategy": "naive"}, {"strategy": "clip"})), storage).plan.trials == 2


def test_scratch_alone_needs_no_weights(make_plan: Callable[..., Plan], storage: Path) -> None:
    prepared = prepare(make_plan(weights={}, strategies=("scratch",)), storage)
    assert (prepared.backbones[0].file, prepared.backbones[0].sha256) == (None, "")


def test_stochastic_depth_given_as_an_argument_of_the_network_is_not_searched(
    make_plan: Callable[..., Plan], storage: Path
) -> None:
    about: dict[str, Any] = {"backbones": ("test_vit",), "weights": {}, "strategies": ("scratch",)}
    searched = prepare(make_plan(**about), storage).space.axes["drop_path"]
    fixed = prepare(make_plan(**about, backbone_args={"drop_path_rate": 0.1}), storage).space.axes["drop_path"]
    assert (searched, fixed) == (Categorical((0.0, 0.1)), Categorical((0.0,)))


@pytest.fixture(scope="session")
def all_strategies(one_thread: None, make_plan: Callable[..., Plan], storage: Path) -> Prepared:
    """All strategies but lora, which needs linear layers; with an argument that not every network takes."""
    able = tuple(name for name in STRATEGIES if name != "lora")
    return prepare(make_plan(strategies=able, backbone_args={"drop_path_rate": 0.1}), storage)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "lora"])
def test_a_recipe_names_its_weights_unless_they_are_random(all_strategies: Prepared, strategy: str) -> None:
    params = next(good for good in all_strategies.space.known_good() if good["strategy"] == strategy)
    recipe = all_strategies.recipe(all_strategies.space.configured(params))
    random = strategy in ("scratch", "small_cnn")
    assert recipe.weights == ("" if random else all_strategies.backbones[0].sha256)
    assert (recipe.data, recipe.classes, recipe.image_size) == (all_strategies.pack.hash, 3, SIZE)
    epochs = 1 if strategy in ("ridge_probe", "logistic_probe") else 4
    assert (recipe.epochs, recipe.seed, recipe.split_seed, recipe.draw) == (epochs, 0, 0, 0)
    networks.check_network(recipe)


def test_a_strategy_with_a_network_of_its_own_takes_neither_weights_nor_arguments(all_strategies: Prepared) -> None:
    space = all_strategies.space
    configs = {str(config["strategy"]): config for config in map(space.configured, space.known_good())}
    small, scratch = (all_strategies.recipe(configs[name]) for name in ("small_cnn", "scratch"))
    assert (small.backbone, small.weights, small.backbone_args) == ("basic_cnn", "", ())
    assert (scratch.backbone, scratch.backbone_args) == (BACKBONE, (("drop_path_rate", 0.1),))


def test_a_subset_of_classes_can_be_selected(make_plan: Callable[..., Plan], storage: Path) -> None:
    named = prepare(make_plan(classes=("red", "blue")), storage)
    assert named.pack.classes == ("blue", "red")
    assert describe_plan(named)["data"]["classes"] == ["blue", "red"]
    assert named.notes == (
        "files: 36 seen = 24 used + 12 skipped (12 class not selected)",
        "2 of 3 classes were selected; images of other classes are left out.",
    )
    counted = prepare(make_plan(classes=("2",)), storage)
    assert describe_plan(counted)["data"]["classes"] == ["blue", "green"]
    assert default_name(counted) != default_name(named)


def test_a_recipe_takes_the_seed_and_the_backbone_arguments_of_the_plan(
    make_plan: Callable[..., Plan], storage: Path
) -> None:
    prepared = prepare(make_plan(seed=5, backbone_args={"drop_rate": 0.2}), storage)
    recipe = prepared.recipe(prepared.space.configured(prepared.space.known_good()[0]))
    assert (recipe.seed, recipe.split_seed, recipe.backbone_args) == (5, 5, (("drop_rate", 0.2),))


@pytest.mark.parametrize(
    ("images", "can_redraw", "redraws"), [(1_999, True, True), (2_000, True, False), (100, False, False)]
)
def test_finalists_draw_new_validation_parts_if_images_are_few_and_the_data_come_without_a_split(
    prepared: Prepared, images: int, can_redraw: bool, redraws: bool
) -> None:
    split = dataclasses.replace(prepared.split, train=np.arange(images), can_redraw=can_redraw)
    assert dataclasses.replace(prepared, split=split).redraws is redraws
    assert RESPLIT_BELOW == 2_000


def test_the_plan_counts_the_training_images_that_are_left_by_images_per_class(
    make_plan: Callable[..., Plan], storage: Path
) -> None:
    everything, few = prepare(make_plan(), storage), prepare(make_plan(edits={"images_per_class": "3"}), storage)
    several = prepare(make_plan(edits={"images_per_class": "3,5"}), storage)
    assert len(few.split.train) == describe_plan(few)["data"]["train"] == 3 * len(few.pack.classes)
    assert (few.split.val.tolist(), few.split.test.tolist()) == (
        everything.split.val.tolist(),
        everything.split.test.tolist(),
    )
    assert len(several.split.train) == len(everything.split.train)


def test_a_grid_has_one_trial_per_combination_and_a_note_about_it(
    make_plan: Callable[..., Plan], storage: Path
) -> None:
    edits = {"optimizer": "sgd,adam", "learning_rate": "0.01", "weight_decay": "1e-4", "batch_size": "4"}
    edits |= {"schedule": "cosine", "augmentation": "none", "mixing": "none", "loss": "cross_entropy"}
    edits["batch_norm"] = "with_weights"
    plan = make_plan(sampler="grid", strategies=("naive",), edits={**edits, "clip_norm": "none,1"}, trials=24)
    prepared = prepare(plan, storage)
    assert prepared.plan.trials == describe_plan(prepared)["trials"] == 4
    assert prepared.notes[-1] == "--sampler grid: 4 combinations, the known good ones among them, are all there are."
    prepared = prepare(dataclasses.replace(plan, trials=3), storage)
    assert prepared.plan.trials == 3
    assert prepared.notes[-1] == "--sampler grid: there are more combinations than the 3 that --trials allows."
