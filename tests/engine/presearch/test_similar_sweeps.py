"""Which stored sweep a new one resembles, why it is new, and how the old one is continued."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.presearch import similar_sweeps
from sweeps.engine.presearch.similar_sweeps import describe_differences, describe_similar_sweep
from sweeps.engine.storage.store import Store
from xfer.storage.object_store import as_path

PLAN: dict[str, Any] = {
    "experiment": "folder",
    "name": "folder-colours-aaaaaa",
    "question": "Which?",
    "data": {
        "source": "folder",
        "folder": "colours",
        "pack": "77aa",
        "classes": ["blue", "green", "red"],
        "images": [12, 12, 12],
        "train": 24,
        "val": 6,
        "test": 6,
        "split": "stratified",
        "redraws": True,
        "notes": [],
    },
    "backbones": [{"name": "test_efficientnet", "args": {}, "weights": "9f", "file": "w.safetensors"}],
    "image_size": 32,
    "space": {"strategy": "naive, clip", "naive": {"learning_rate": "1e-4 to 1e-2, log"}},
    "trials": 7,
    "epochs": 3,
    "seed": 0,
    "provenance": {
        "command": "python -m sweeps.folder --data colours --tracking-uri http://bob:secret@host",
        "created": "2026-03-01T10:00:00+00:00",
    },
}


def changed(name: str = "folder-colours-bbbbbb", **changes: Any) -> dict[str, Any]:
    """The plan with other values; keys of `data` are given as data_KEY."""
    plan = copy.deepcopy(PLAN) | {"name": name}
    for key, value in changes.items():
        where, key = (plan["data"], key.removeprefix("data_")) if key.startswith("data_") else (plan, key)
        where[key] = value
    return plan


def store_plan(storage: Path, plan: dict[str, Any], trials: int = 0) -> Store:
    store = Store(storage / plan["name"])
    store.put_plan(plan)
    for number in range(trials):
        (store.folder / "trials" / f"{number:04d}").mkdir(parents=True)
    return store


def lines(storage: Path, plan: dict[str, Any]) -> tuple[str, ...]:
    return describe_similar_sweep(plan, Store(storage / plan["name"]))


# --- differences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_pack": "88", "data_images": [12, 12, 13], "data_train": 25}, ["13 images of red instead of 12"]),
        ({"data_pack": "88", "data_images": [12, 1, 12], "data_train": 13}, ["1 image of green instead of 12"]),
        (
            {"data_pack": "88", "data_images": [11, 12, 20]},
            ["20 images of red instead of 12", "11 images of blue instead of 12"],
        ),
        (
            {"data_pack": "88", "data_classes": ["blue", "green", "pink", "red"], "data_images": [12, 12, 5, 12]},
            ["class pink added"],
        ),
        ({"data_pack": "88", "data_classes": ["red"], "data_images": [12]}, ["classes blue, green removed"]),
        ({"data_pack": "88"}, ["some images, labels or parts (the number of images of each class is the same)"]),
        (
            {"data_pack": "88", "data_train": 20, "data_val": 8, "data_test": 8},
            ["parts: 24/6/6 -> 20/8/8 (train/val/test)"],
        ),
        ({"data_split": "as given"}, ["parts: stratified -> as given"]),
        ({"data_source": "table"}, ["layout of the data: folder -> table"]),
    ],
    ids=str,
)
def test_changes_of_the_data_are_put_in_words(changes: dict[str, Any], words: list[str]) -> None:
    differences = describe_differences(PLAN, changed(**changes))
    assert list(differences.data) == words
    assert differences.settings == ()


def test_another_image_size_is_not_taken_for_other_data() -> None:
    differences = describe_differences(PLAN, changed(image_size=64, data_pack="88"))
    assert (differences.data, differences.settings) == ((), ("image_size: 32 -> 64",))


def test_settings_come_before_the_parts_of_the_space_that_they_change() -> None:
    differences = describe_differences(PLAN, changed(epochs=5, space={"naive": {"freeze": "1 to 4"}}))
    assert differences.settings[0] == "epochs: 3 -> 5"
    assert all(setting.startswith("space.") for setting in differences.settings[1:])


def test_plans_without_numbers_by_class_are_compared_by_their_total() -> None:
    old = copy.deepcopy(PLAN)
    del old["data"]["images"]
    assert describe_differences(old, changed(data_pack="88", data_train=25)).data == ("37 images instead of 36",)


# --- the most similar sweep -------------------------------------------------------------------------------------------


def test_one_more_photo_names_the_old_sweep_its_age_its_trials_and_the_class(tmp_path: Path) -> None:
    store_plan(tmp_path, PLAN, trials=7)
    assert lines(tmp_path, changed(data_pack="88", data_images=[12, 12, 13], data_train=25)) == (
        "folder-colours-bbbbbb is a new sweep, because trials are only compared under one plan. It resembles "
        "folder-colours-aaaaaa, started 2026-03-01 10:00 UTC with 7 trials so far. Different: 13 images of red instead "
        "of 12.",
        "To continue that one instead, restore its data and give --name folder-colours-aaaaaa",
    )


def test_a_renamed_folder_is_continued_with_the_old_name(tmp_path: Path) -> None:
    store_plan(tmp_path, PLAN, trials=1)
    assert lines(tmp_path, changed("folder-colors-aaaaaa", data_folder="colors")) == (
        "folder-colors-aaaaaa is a new sweep with the plan of folder-colours-aaaaaa, started 2026-03-01 10:00 UTC with "
        "1 trial so far: only the names differ.",
        "To continue that one instead, add --name folder-colours-aaaaaa",
    )


def test_another_flag_is_continued_with_the_old_command_without_its_password(tmp_path: Path) -> None:
    store_plan(tmp_path, PLAN)
    first, second = lines(tmp_path, changed(image_size=64, data_pack="88"))
    assert first.endswith("Different: image_size: 32 -> 64.")
    assert second == (
        "To continue that one instead, repeat its command: python -m sweeps.folder --data colours --tracking-uri "
        "http://host"
    )


def test_the_sweep_with_the_fewest_differences_is_named_and_the_newest_of_equals(tmp_path: Path) -> None:
    store_plan(tmp_path, changed("far", epochs=9, seed=3))
    store_plan(tmp_path, changed("old", seed=4))
    newer = changed("new", seed=5)
    newer["provenance"]["created"] = "2026-03-02T10:00:00+00:00"
    store_plan(tmp_path, newer)
    assert "It resembles new, started 2026-03-02 10:00 UTC" in lines(tmp_path, changed("mine"))[0]


def test_sweeps_of_other_experiments_or_other_data_are_not_named(tmp_path: Path) -> None:
    store_plan(tmp_path, changed("cars", experiment="stanford_cars"))
    store_plan(tmp_path, changed("dogs", data_folder="dogs", data_pack="99", data_classes=["a", "b", "c"]))
    assert lines(tmp_path, changed()) == ()


def test_what_is_no_sweep_and_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    for name in ("packs", "features", "empty", "damaged", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "damaged" / "plan.json").write_text('{"trials": 3', encoding="utf-8")
    Store(tmp_path / "foreign").put_plan({"trials": 3})
    assert lines(tmp_path, changed()) == ()
    assert (tmp_path / "damaged" / "plan.json").exists()
    assert lines(tmp_path / "missing", changed()) == ()


def test_long_lists_are_cut(tmp_path: Path) -> None:
    store_plan(tmp_path, PLAN)
    first, _ = lines(tmp_path, changed(epochs=5, seed=1, image_size=64, trials=9, sampler="x" * 200, scheduler="none"))
    assert "; and 2 more." in first
    assert len(first) < 600


def test_the_number_of_plans_read_from_an_object_store_is_limited(
    bucket: str, monkeypatch: pytest.MonkeyPatch, count_reads: Callable[[], int]
) -> None:
    storage = as_path(f"{bucket}/runs")
    for number in range(5):
        Store(storage / f"other-{number}").put_plan(changed(f"other-{number}", experiment="cars"))
    Store(storage / PLAN["name"]).put_plan(PLAN)
    monkeypatch.setattr(similar_sweeps, "MAX_PLANS", 2)
    found = describe_similar_sweep(changed(data_folder="colours"), Store(storage / "folder-colours-bbbbbb"))
    assert "folder-colours-aaaaaa" in found[0]  # names that begin alike come first
    assert count_reads() == 2


@pytest.fixture
def count_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts the objects that are read."""
    from sweeps.engine.storage import json_objects

    reads: list[Path] = []
    read = json_objects.read

    def counted(path: Path) -> dict[str, Any]:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(json_objects, "read", counted)
    return lambda: len(reads)
