"""Families: what the default search tries depends on each network, unless the user sets it."""

from __future__ import annotations

import pytest

from sweeps.engine.search_space.explain import explain_defaults
from sweeps.engine.search_space.known_good import rank_known_good
from sweeps.engine.search_space.overrides import space_for
from tests.engine.random_configs import random_configs, recipe_of
from xfer.hyperparameters import OPTIMIZERS, Range
from xfer.lengths import RunLength
from xfer.models.families import FAMILIES, network_traits

RESNET, VIT, CONVNEXT = "test_resnet", "test_vit", "test_convnext"
NETWORKS = [RESNET, VIT, CONVNEXT]
FAMILY = {RESNET: "batch_norm", VIT: "vit", CONVNEXT: "convnext"}


@pytest.mark.parametrize("backbones", [[RESNET], [VIT], [CONVNEXT], NETWORKS], ids=str)
def test_optimizers_rates_and_decay_are_those_of_the_networks_family(backbones: list[str]) -> None:
    seen: dict[str, set[object]] = {}
    space = space_for(backbones, 8, ["naive", "linear_probe", "scratch"])
    for config, params in random_configs(space, 300):
        name, optimizer, rate = str(config["backbone"]), str(config["optimizer"]), config["learning_rate"]
        family = FAMILIES[FAMILY[name]]  # type: ignore[index]
        seen.setdefault(name, set()).add(optimizer)
        expected = {
            "naive": family.learning_rates.get(optimizer, OPTIMIZERS[optimizer].learning_rates),
            "linear_probe": OPTIMIZERS[optimizer].head_learning_rates,
            "scratch": OPTIMIZERS[optimizer].learning_rates,
        }[str(config["strategy"])]
        assert expected.low <= rate <= expected.high  # type: ignore[operator]
        decay = Range(1e-6, 1e-2, log=True)
        if config["strategy"] == "naive" and optimizer == "adamw" and family.weight_decay:
            decay = family.weight_decay
        assert decay.low <= config["weight_decay"] <= decay.high  # type: ignore[operator]
        assert len([key for key in params if key.endswith("learning_rate")]) == 1
    assert seen == {name: set(FAMILIES[FAMILY[name]].optimizers) for name in backbones}  # type: ignore[index]


def test_stochastic_depth_is_searched_where_the_network_has_it_and_more_than_the_head_moves() -> None:
    rates: dict[tuple[str, object], set[object]] = {}
    for config, _ in random_configs(space_for([*NETWORKS, "vgg11"], 8, ["naive", "linear_probe"]), 400):
        rates.setdefault((str(config["backbone"]), config["strategy"]), set()).add(config["drop_path"])
    assert {name: values for (name, strategy), values in rates.items() if strategy == "naive"} == {
        RESNET: {0.0},
        VIT: {0.0, 0.1},
        CONVNEXT: {0.0, 0.1, 0.2},
        "vgg11": {0.0},
    }
    assert all(values == {0.0} for (_, strategy), values in rates.items() if strategy == "linear_probe")


def test_layer_decay_and_warm_up_have_the_ranges_of_the_family() -> None:
    space = space_for(NETWORKS, 8, ["layer_decay"], {"schedule": "cosine_warmup"})
    for config, params in random_configs(space, 200):
        own = FAMILIES[FAMILY[str(config["backbone"])]].parameters  # type: ignore[index]
        for name, range_ in own.items():
            assert isinstance(range_, Range)
            assert range_.low <= config[name] <= range_.high  # type: ignore[operator]
            assert f"{FAMILY[str(config['backbone'])]}.{name}" in params
    assert {"vit.decay", "convnext.warmup", "vit.weight_decay"} <= set(space.described())


EDITS = {
    "optimizer": "ranger",
    "learning_rate": "0.02",
    "weight_decay": "1e-3",
    "drop_path": "0.3",
    "decay": "0.5",
    "warmup": "0.4",
}


def test_what_the_user_sets_holds_for_every_family() -> None:
    space = space_for(NETWORKS, 8, ["layer_decay"], {**EDITS, "schedule": "cosine_warmup"})
    for config, params in random_configs(space, 60):
        assert {name: str(config[name]) for name in EDITS} == {**EDITS, "weight_decay": "0.001"}
        assert not any("." in name and name.partition(".")[0] in FAMILIES for name in params)


def test_a_recipe_is_found_again_from_its_parameters_in_every_family() -> None:
    space = space_for(NETWORKS, 8, ["naive", "layer_decay", "linear_probe"])
    for config, params in random_configs(space, 200):
        assert space.configured(params) == config


def strategies_of(*backbones: str, edits: dict[str, str] | None = None) -> dict[str, set[object]]:
    """The strategies that are drawn on each network."""
    seen: dict[str, set[object]] = {}
    for config, _ in random_configs(space_for(backbones, 8, edits=edits), 600):
        seen.setdefault(str(config["backbone"]), set()).add(config["strategy"])
    return seen


def test_layer_decay_is_for_deep_networks_and_a_frozen_stem_for_transformers() -> None:
    general = {"clip", "lp_ft", "freeze_then_unfreeze", "naive", "linear_probe", "logistic_probe", "scratch"}
    deep_vit = "vit_tiny_patch16_224"
    assert strategies_of(RESNET, VIT, CONVNEXT, deep_vit) == {
        RESNET: general,
        VIT: general | {"freeze_first"},
        CONVNEXT: general | {"layer_decay"},
        deep_vit: general | {"layer_decay", "freeze_first"},
    }
    assert strategies_of(RESNET)[RESNET] == general
    assert strategies_of(RESNET, edits={"strategy": "layer_decay,freeze_first"})[RESNET] == {
        "layer_decay",
        "freeze_first",
    }


def test_layer_decay_takes_adamw_and_a_frozen_stem_sgd_unless_the_optimizer_is_set() -> None:
    space = space_for([VIT], 8, ["layer_decay", "freeze_first"])
    assert {(config["strategy"], config["optimizer"]) for config, _ in random_configs(space, 40)} == {
        ("layer_decay", "adamw"),
        ("freeze_first", "sgd"),
    }
    edited = space_for([VIT], 8, ["layer_decay", "freeze_first"], {"optimizer": "adam"})
    assert {config["optimizer"] for config, _ in random_configs(edited, 40)} == {"adam"}


def test_batch_norm_is_frozen_only_in_small_batches_of_batch_norm_networks() -> None:
    seen: dict[tuple[object, ...], set[object]] = {}
    for config, _ in random_configs(space_for([RESNET, VIT, "resnetv2_50x1_bit"], 8), 1_500):
        key = (config["backbone"], config["batch_size"], config["strategy"] in ("naive", "clip"))
        seen.setdefault(key, set()).add(config["batch_norm"])
    free = {key: values for key, values in seen.items() if "frozen" in values}
    assert {key[:2] for key in free} == {(RESNET, 16)}
    assert free[RESNET, 16, True] == {"with_weights", "frozen"}
    edited = space_for([RESNET], 8, ["naive"], {"batch_norm": "frozen", "batch_size": "64"})
    assert {config["batch_norm"] for config, _ in random_configs(edited, 10)} == {"frozen"}


@pytest.mark.parametrize(
    ("images", "edits", "mixings"),
    [
        (19_999, {}, {"none"}),
        (20_000, {}, {"none", "cutmix"}),
        (20_000, {"images_per_class": "100"}, {"none"}),
        (20_000, {"images_per_class": "100,none"}, {"none", "cutmix"}),
        (200, {"mixing": "none,mixup"}, {"none", "mixup"}),
    ],
)
def test_mixing_competes_from_twenty_thousand_images_on_or_if_it_is_asked_for(
    images: int, edits: dict[str, str], mixings: set[str]
) -> None:
    space = space_for([RESNET], RunLength(class_sizes=(images // 2, images - images // 2)), ["naive"], edits)
    assert {config["mixing"] for config, _ in random_configs(space, 60)} == mixings


def test_strategies_of_the_default_search_that_a_network_cannot_do_are_left_out() -> None:
    def check(backbone: str, strategy: str, values: object) -> None:
        if strategy in ("lp_ft", "logistic_probe"):
            raise ValueError("there are no embeddings")

    space = space_for([RESNET], 8, is_compatible=check)
    assert "naive" in space.strategies()
    assert not {"lp_ft", "logistic_probe"} & set(space.strategies())
    with pytest.raises(ValueError, match=r"strategy lp_ft cannot be tried\. test_resnet: there are no embeddings"):
        space_for([RESNET], 8, ["lp_ft", "naive"], is_compatible=check)


DEEP_VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", [VIT, CONVNEXT, DEEP_VIT])
def test_the_recipes_of_a_family_have_the_values_they_name_and_train(name: str) -> None:
    space = space_for([name], 8)
    family = network_traits(name).family
    recipes = rank_known_good(space.strategies(), family=family)
    configs = [space.configured(params) for params in space.known_good()]
    for recipe, config in zip(recipes, configs, strict=True):
        rate = recipe.get(f"{config['optimizer']}.learning_rate")
        assert rate is None or config["learning_rate"] == rate
        named = {key: value for key, value in recipe.items() if not key.endswith(".learning_rate")}
        assert {key: config[key] for key in named} == named
        recipe_of(config, 8)
    assert {str(config["strategy"]) for config in configs} == set(space.strategies())


def test_a_rate_that_no_recipe_names_is_the_middle_of_the_familys_range() -> None:
    space = space_for([VIT], 8, ["l2_sp"])
    assert space.control()["learning_rate"] == pytest.approx((1e-5 * 5e-4) ** 0.5)


def test_each_network_begins_with_the_recipe_of_its_family() -> None:
    configs = [space.configured(params) for space in [space_for(NETWORKS, 8)] for params in space.known_good()]
    assert [(config["backbone"], config["strategy"], config["optimizer"]) for config in configs[:3]] == [
        (RESNET, "clip", "ranger"),
        (VIT, "clip", "adamw"),
        (CONVNEXT, "clip", "adamw"),
    ]
    assert (configs[0]["batch_norm"], configs[1]["batch_norm"]) == ("frozen", "with_weights")
    others = {config["strategy"]: config for config in configs[3:]}
    assert (others["freeze_first"]["backbone"], others["freeze_first"]["optimizer"]) == (VIT, "sgd")
    assert (others["layer_decay"]["backbone"], others["layer_decay"]["learning_rate"]) == (CONVNEXT, 1e-4)


@pytest.mark.parametrize(("name", "strategy"), [(RESNET, "clip"), (VIT, "clip"), ("a", "clip")])
def test_the_control_is_the_first_known_good_recipe_whatever_is_advised(name: str, strategy: str) -> None:
    space = space_for([name], 8)
    control = space.control()
    assert control == space.configured(space.known_good()[0])
    assert control["strategy"] == strategy
    advised = [space.configured(params) for params in space.known_good(advised={"linear_probe": {}})]
    assert advised[0]["strategy"] == "linear_probe"
    assert control in advised
    assert space.control([{"strategy": "naive"}])["strategy"] == "naive"


def test_sentences_say_what_is_left_of_the_default_search_and_why() -> None:
    photos = RunLength(class_sizes=(100, 95))
    network, batch_norm, mixing = explain_defaults(space_for([RESNET], photos))
    assert "ranges of family batch_norm" in network
    assert "layer_decay is left out, because it has fewer than 10 blocks" in network
    assert "batches of at most 16 images" in batch_norm
    assert "below 20,000 training images" in mixing
    (vit,) = explain_defaults(space_for([VIT], 8))
    assert "tries adamw, sgd" in vit
    assert "freeze_first" not in vit
    edits = {"mixing": "none", "batch_norm": "frozen", "optimizer": "sgd"}
    (edited,) = explain_defaults(space_for([RESNET], photos, ["naive"], edits))
    assert "left out" not in edited
    assert "tries" not in edited
