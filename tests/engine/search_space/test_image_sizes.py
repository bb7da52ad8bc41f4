"""Several image sizes in one sweep: how they are written, and where a plan, a space and a prepared sweep have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.engine.options import apply_options, parse_args
from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import default_name, describe_plan, plan_differences
from sweeps.engine.planning.prepare import add_strategies, prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.planning.screening import initial_head_recipe
from sweeps.engine.resources.memory_probe import candidate_recipes
from sweeps.engine.samplers.ask_tell import available_trials
from sweeps.engine.search_space.overrides import space_for
from tests.conftest import SIZE
from tests.engine.random_configs import random_configs
from xfer.data.split import split_pack

PAGE = Plan("folder", "Which?")
SIZES = {"image_size": "32,48"}


def plan_of(*flags: object, page: Plan = PAGE) -> Plan:
    return apply_options(*parse_args(page, list(map(str, flags))))


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_first_size_is_the_one_to_begin_with_unless_image_size_names_another() -> None:
    plan = plan_of("--vary", "image_size=96, 128,160,96")
    assert (plan.image_size, plan.edits) == (96, {"image_size": "96,128,160"})
    plan = plan_of("--vary", "image_size=96,128,160", "--image-size", 128)
    assert (plan.image_size, plan.edits) == (128, {"image_size": "128,96,160"})


@pytest.mark.parametrize("flag", ["--fix", "--vary"])
def test_a_single_size_is_that_of_the_plan(flag: str) -> None:
    assert plan_of(flag, "image_size=96") == plan_of("--image-size", 96)


def test_smoke_scales_the_sizes_down() -> None:
    plan = plan_of("--vary", "image_size=96,128,160", "--image-size", 160, "--smoke")
    assert (plan.image_size, plan.edits) == (64, {"image_size": "64,40,48"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--vary", "image_size=96..160"), r"image_size=96\.\.160: every size takes a pack of its own, so list them"),
        (("--vary", "image_size=96,big"), r"image_size=96,big: must be integers separated by commas, got 'big'"),
        (("--vary", "image_size=96,12.5"), r"must be integers separated by commas, got '12.5'"),
        (("--vary", "image_size=4,96"), r"image_size=4: must be between 8 and 2048"),
        (("--vary", "image_size=96,128", "--image-size", 64), r"image_size=96,128 lacks 64, the image size of this"),
    ],
)
def test_other_lists_are_refused(flags: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(*flags)


# --- the space -------------------------------------------------------------------------------------------------------


def test_the_axis_exists_only_if_sizes_compete() -> None:
    assert "image_size" not in space_for(["a"], 8).axes
    space = space_for(["a"], 8, edits=SIZES)
    assert [*space.axes][:3] == ["backbone", "image_size", "strategy"]
    assert (space.image_sizes, space.described()["image_size"]) == ((32, 48), "32, 48")
    assert {config["image_size"] for config, _ in random_configs(space)} == {32, 48}
    assert all("image_size" not in config for config, _ in random_configs(space_for(["a"], 8), 20))


def test_the_first_recipe_is_tried_in_every_size_and_the_others_in_the_first() -> None:
    space = space_for(["a", "b"], 8, edits={"image_size": "32,48,64"})
    first = [(params["strategy"], params["backbone"], params["image_size"]) for params in space.known_good()]
    assert first[:4] == [("clip", "a", 32), ("clip", "b", 32), ("clip", "a", 48), ("clip", "a", 64)]
    assert {(backbone, size) for _, backbone, size in first[4:]} == {("a", 32)}


def test_a_grid_has_every_combination_in_every_size() -> None:
    edits = dict.fromkeys(("learning_rate", "weight_decay"), "0.001") | {"optimizer": "sgd", "batch_size": "16"}
    grids = [
        available_trials(space_for(["a"], 8, ["naive"], {**edits, **sizes}), "grid", 10_000) for sizes in ({}, SIZES)
    ]
    assert grids[1] == 2 * grids[0] > 0


# --- a prepared sweep ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resized(one_thread: None, make_plan: Callable[..., Plan], storage: Path) -> Prepared:
    return prepare(make_plan(edits=SIZES), storage)


def test_every_size_has_a_pack_with_the_same_split(resized: Prepared) -> None:
    assert [pack.image_size for pack in resized.packs] == [32, 48]
    assert (resized.image_size, resized.pack.image_size) == (32, 32)
    splits = [split_pack(pack, resized.plan.seed) for pack in resized.packs]
    for part in ("train", "val", "test"):
        assert splits[0].of(part).tolist() == splits[1].of(part).tolist() == resized.split.of(part).tolist()


def test_a_recipe_names_the_pack_of_its_size(resized: Prepared) -> None:
    recipes = [resized.recipe(resized.space.configured({"image_size": size})) for size in (32, 48)]
    assert [(recipe.image_size, recipe.data) for recipe in recipes] == [
        (pack.image_size, pack.hash) for pack in resized.packs
    ]
    assert [resized.pack_of(recipe.as_dict()).image_size for recipe in recipes] == [32, 48]
    assert recipes[0].key != recipes[1].key
    assert initial_head_recipe(resized, resized.backbones[0].name).image_size == 32


def test_the_memory_of_every_size_is_probed(resized: Prepared, prepared: Prepared) -> None:
    sizes = [recipe.image_size for recipe in candidate_recipes(resized)]
    assert sizes.count(32) == sizes.count(48) == len(candidate_recipes(prepared))


def test_strategies_are_added_in_every_size(resized: Prepared) -> None:
    wider = add_strategies(resized, ["layer_decay"])
    assert "layer_decay" in wider.space.strategies()
    assert wider.space.image_sizes == (32, 48)


def test_a_plan_of_one_size_is_the_same_however_it_is_written(
    make_plan: Callable[..., Plan], prepared: Prepared, storage: Path
) -> None:
    written = prepare(make_plan(edits={"image_size": str(SIZE)}), storage)
    assert describe_plan(written) == describe_plan(prepared)
    assert "image_size" not in describe_plan(written)["space"]
    assert default_name(written) == default_name(prepared)


def test_another_list_of_sizes_is_another_plan(
    make_plan: Callable[..., Plan], prepared: Prepared, resized: Prepared, storage: Path
) -> None:
    plan = describe_plan(resized)
    assert (plan["image_size"], plan["space"]["image_size"]) == (32, "32, 48")
    assert plan["data"]["other_packs"] == [resized.packs[1].hash]
    other = prepare(make_plan(edits={"image_size": "32,40"}), storage)
    for before in (prepared, other):
        changes = [change.partition(":")[0] for change in plan_differences(describe_plan(before), plan)]
        assert changes == ["data.other_packs", "space.image_size"]
        assert default_name(before) != default_name(resized)


def test_a_size_that_a_network_cannot_take_is_refused_before_images_are_read(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan(
        backbones=("test_vit",), weights={}, strategies=("scratch",), edits={"image_size": "32,10"}, image_size=32
    )
    with pytest.raises(ValueError, match=r"test_vit cannot take images of 10 px"):
        prepare(plan, tmp_path)
    assert not (tmp_path / "packs").exists()
