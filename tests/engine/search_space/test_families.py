"""Families: what the default search tries depends on each network, unless the user sets it."""

from __future__ import annotations

import pytest

from sweeps.engine.search_space.overrides import space_for
from tests.engine.random_configs import random_configs
from xfer.hyperparameters import OPTIMIZERS, Range
from xfer.models.families import FAMILIES

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
        assert not any(name.partition(".")[0] in FAMILIES and name != "backbone" for name in params)


def test_a_recipe_is_found_again_from_its_parameters_in_every_family() -> None:
    space = space_for(NETWORKS, 8, ["naive", "layer_decay", "linear_probe"])
    for config, params in random_configs(space, 200):
        assert space.configured(params) == config
