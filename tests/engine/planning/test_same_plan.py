"""plan.json: what may change between two starts of a sweep, and the default name of a sweep."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import default_name, describe_plan, plan_differences
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from tests.conftest import BACKBONE
from tests.engine.conftest import write_noise_images

# --- changes of a plan -----------------------------------------------------------------------------------------------


def stored(prepared: Prepared, **changes: Any) -> dict[str, Any]:
    """Return the content of plan.json as it is read from disk."""
    plan: dict[str, Any] = json.loads(json.dumps({**describe_plan(prepared), "name": "n", "provenance": {}, **changes}))
    return plan


def names(changes: list[str]) -> list[str]:
    return [change.partition(":")[0] for change in changes]


def test_a_plan_does_not_differ_from_itself_under_another_name_and_provenance(prepared: Prepared) -> None:
    assert plan_differences(stored(prepared), stored(prepared)) == []
    assert (
        plan_differences(stored(prepared), {**describe_plan(prepared), "name": "other", "provenance": {"commit": "x"}})
        == []
    )


def test_more_trials_are_not_a_difference_but_fewer_are(prepared: Prepared) -> None:
    assert plan_differences(stored(prepared), stored(prepared, trials=25)) == []
    assert plan_differences(stored(prepared), stored(prepared, trials=23)) == [
        "trials: 24 -> 23 (more may be added, none taken away)"
    ]


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"epochs": 5}, ["epochs"]),
        ({"epochs": 2}, ["epochs", "space.freeze_then_unfreeze.freeze_epochs"]),
        ({"image_size": 40}, ["data.pack", "image_size"]),
        ({"objective": ("loss",)}, ["objective"]),
        ({"sampler": "random"}, ["sampler"]),
        ({"scheduler": "none"}, ["scheduler"]),
        ({"finalists": 1}, ["finalists"]),
        ({"seeds": 1}, ["seeds"]),
        ({"seed": 1}, ["seed"]),
        (
            {"strategies": ("naive", "clip")},  # without lp_ft, no head has to be chosen before the search
            ["space.freeze_then_unfreeze.freeze_epochs", "space.strategy", "screening.heads.logistic_probe"],
        ),
        (
            {"edits": {"learning_rate": "1e-4..1e-3", "optimizer": "sgd"}},
            ["space.adam.learning_rate", "space.optimizer"],
        ),
        ({"backbone_args": {"drop_rate": 0.1}}, ["backbones"]),
        ({"arms": ({"strategy": "naive"},)}, ["arms", "trials", "screening.heads.logistic_probe"]),
        (
            {"edits": {"colour": "grey", "images_per_class": "5"}},
            ["space.colour", "space.images_per_class", "data.train", "data.split"],
        ),
        ({"classes": ("red", "blue")}, ["data.classes", "data.pack", "data.train", "data.val", "data.test"]),
        ({"experiment": "cars"}, ["experiment"]),
        ({"question": "Another?"}, []),
        ({"margin": 0.02}, []),
    ],
    ids=str,
)
def test_changes_are_listed_by_name(
    prepared: Prepared, make_plan: Callable[..., Plan], storage: Path, changes: dict[str, Any], changed: list[str]
) -> None:
    differences = plan_differences(stored(prepared), stored(prepare(make_plan(**changes), storage)))
    assert set(changed) <= set(names(differences))
    assert all(name.startswith("space.") for name in set(names(differences)) - set(changed))
    assert bool(differences) == bool(changed)
    assert all(" -> " in line for line in differences)


@pytest.mark.parametrize("margin", [-0.01, 1, float("nan")])
def test_a_margin_outside_its_limits_is_refused(make_plan: Callable[..., Plan], margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin is {margin}; must be at least 0 and below 1"):
        make_plan(margin=margin)


def test_a_change_shows_both_values(prepared: Prepared, make_plan: Callable[..., Plan], storage: Path) -> None:
    assert plan_differences(stored(prepared), stored(prepare(make_plan(epochs=5), storage))) == ["epochs: 4 -> 5"]


def test_another_image_and_other_weights_are_differences(
    prepared: Prepared, make_plan: Callable[..., Plan], image_folder: Path, weights: Path, storage: Path, tmp_path: Path
) -> None:
    import safetensors.torch

    shutil.copytree(image_folder, tmp_path / image_folder.name)
    write_noise_images(tmp_path / image_folder.name / "red", 1, 99)
    differences = plan_differences(
        stored(prepared), stored(prepare(make_plan(data=str(tmp_path / image_folder.name)), storage))
    )
    assert {"data.pack", "data.train"} <= set(names(differences))
    tensors = safetensors.torch.load_file(weights)
    first = next(iter(tensors))
    tensors[first] = tensors[first] + 1
    safetensors.torch.save_file(tensors, tmp_path / weights.name)
    changed = prepare(make_plan(weights={BACKBONE: str(tmp_path / weights.name)}), storage)
    assert names(plan_differences(stored(prepared), stored(changed))) == ["backbones"]


def test_a_renamed_folder_and_a_renamed_weights_file_are_not_differences(
    prepared: Prepared, make_plan: Callable[..., Plan], image_folder: Path, weights: Path, storage: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "renamed")
    shutil.copy(weights, tmp_path / "w.safetensors")
    moved = make_plan(data=str(tmp_path / "renamed"), weights={BACKBONE: str(tmp_path / "w.safetensors")})
    assert plan_differences(stored(prepared), stored(prepare(moved, storage))) == []


def test_naming_all_classes_is_the_same_as_naming_none(
    prepared: Prepared, make_plan: Callable[..., Plan], storage: Path
) -> None:
    named = prepare(make_plan(classes=("red", "green", "blue")), storage)
    assert plan_differences(stored(prepared), stored(named)) == []
    assert default_name(named) == default_name(prepared)


def test_a_plan_names_the_control_the_families_and_what_is_left_of_the_default_search(prepared: Prepared) -> None:
    plan = describe_plan(prepared)
    first = prepared.space.configured(prepared.space.known_good()[0])
    assert plan["control"] == {"key": prepared.recipe(first).key, "settings": first}
    assert first["strategy"] == "clip"
    assert plan["families"] == {BACKBONE: "batch_norm"}
    assert any("Mixing images is left out" in sentence for sentence in plan["defaults"])
    other = {**stored(prepared), "control": {}, "families": {}, "defaults": []}
    assert plan_differences(other, stored(prepared)) == []  # written for readers


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_default_name_is_experiment_folder_and_six_digits(prepared: Prepared) -> None:
    experiment, folder, digits = default_name(prepared).split("-")
    assert (experiment, folder) == ("folder", "colours")
    assert len(digits) == 6
    assert set(digits) <= set("0123456789abcdef")


def test_folders_with_the_same_name_and_other_content_give_different_names(
    make_plan: Callable[..., Plan], prepared: Prepared, two_classes: Path, storage: Path, tmp_path: Path
) -> None:
    two_classes.rename(tmp_path / "colours")
    other = default_name(prepare(make_plan(data=str(tmp_path / "colours")), storage))
    assert other.startswith("folder-colours-")
    assert other != default_name(prepared)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"trials": 90}, True),
        ({"question": "Another?"}, True),
        ({"epochs": 5}, False),
        ({"seed": 1}, False),
        ({"objective": ("loss",)}, False),
    ],
    ids=str,
)
def test_the_default_name_depends_on_what_is_run(
    prepared: Prepared, make_plan: Callable[..., Plan], storage: Path, changes: dict[str, Any], same: bool
) -> None:
    assert (default_name(prepare(make_plan(**changes), storage)) == default_name(prepared)) is same


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("my cars!", "my_cars_"),
        ("=cmd|x", "_cmd_x"),
        ("x" * 90, "x" * 40),
        ("../..", "_____"),
        ("owner/name", "owner_name"),
        ("", "data"),
        ("蜜蜂", "蜜蜂"),
    ],
)
def test_the_name_of_a_data_set_becomes_a_plain_folder_name(prepared: Prepared, source: str, shown: str) -> None:
    name = default_name(dataclasses.replace(prepared, source=source))
    assert name.removeprefix("folder-")[:-7] == shown
    assert Path(name).name == name
