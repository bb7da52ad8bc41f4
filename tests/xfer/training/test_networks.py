"""Building and checking a recipe's network: which choices a network supports, and clear errors for the others."""

from __future__ import annotations

import random
import re
import sys

import numpy as np
import pytest
import torch

from xfer.measure.cost import count_parameters
from xfer.methods.strategies import STRATEGIES
from xfer.models import backbones
from xfer.models.params import named_params
from xfer.recipe import CHOICE_TABLES
from xfer.training.networks import build_network, check_architecture, check_network

NETWORKS = ("test_resnet", "test_efficientnet", "test_vit")
ARCHITECTURE_CHOICES = [
    (kind, name) for kind in ("strategy", "head", "activation", "batch_norm", "colour") for name in CHOICE_TABLES[kind]
]


@pytest.fixture(autouse=True)
def empty_cache():
    check_architecture.cache_clear()


# Network and check agree


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "name"), ARCHITECTURE_CHOICES)
def test_the_check_and_the_network_raise_the_same_error(make_recipe, weights_of, network, kind, name):
    recipe = make_recipe(**{"backbone": network, "epochs": 9, kind: name})
    file = weights_of(network) if recipe.weights else None

    def run_network():
        assert build_network(recipe, file)(torch.rand(2, 1 if name == "grey_stem" else 3, 32, 32)).shape == (2, 3)

    messages = [error_message(run_network), error_message(lambda: check_network(recipe))]
    assert messages[0] == messages[1]
    assert (messages[0] is None) == is_supported(network, name)


def error_message(action):
    """The message of a ValueError without torch's own; None if nothing is raised."""
    try:
        action()
    except ValueError as error:
        return str(error).partition(" (")[0]
    return None


def is_supported(network, name):
    """Whether a network supports a strategy; other choices are always supported here."""
    return name not in {"test_vit": ()}.get(network, ("lora", "drop_early"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_a_file_a_network_has_random_weights_of_the_same_shapes(make_recipe, weights_of, strategy):
    recipe = make_recipe(backbone="test_vit", strategy=strategy, epochs=9)
    weights = weights_of("test_vit") if recipe.weights else None
    pretrained, random_weights = build_network(recipe, weights).state_dict(), build_network(recipe, None).state_dict()
    assert {name: tensor.shape for name, tensor in pretrained.items()} == {
        name: tensor.shape for name, tensor in random_weights.items()
    }
    assert torch.equal(pretrained[stem := next(iter(pretrained))], random_weights[stem]) is False


def test_architecture_choices_compose(make_recipe, weights_of):
    recipe = make_recipe(
        backbone="test_vit", strategy="lora", head="cosine", activation="mish", colour="grey_stem", batch_norm="frozen"
    )
    check_network(recipe)
    model = build_network(recipe, weights_of("test_vit"))
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    kinds = {param.kind for param in named_params(model).values()}
    assert "adapter" in kinds
    assert type(model.get_classifier()).__name__ == "CosineClassifier"


# The check has no side effects


def test_the_check_changes_no_random_state_and_no_torch_settings(make_recipe):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for changes in ({"strategy": "scratch"}, {"head": "mlp"}, {"strategy": "small_cnn"}, {"colour": "grey_stem"}):
        check_network(make_recipe(**changes))
    for network in NETWORKS:
        check_network(make_recipe(backbone=network))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.zeros(1).device == torch.device("cpu")
    assert torch.is_grad_enabled()


def test_a_check_needs_no_memory_for_the_weights(make_recipe, monkeypatch):
    built = []
    build = backbones.build
    monkeypatch.setattr(backbones, "build", lambda *args: built.append(build(*args)) or built[0])
    check_network(make_recipe(backbone="vgg11", weights="w", head="mlp"))
    (model,) = built
    assert count_parameters(model) > 10**8
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_strategies_that_keep_the_network_share_its_check(make_recipe, monkeypatch):
    built = []
    build = backbones.build
    monkeypatch.setattr(backbones, "build", lambda *args: built.append(args) or build(*args))
    for strategy in ("naive", "clip", "linear_probe", "train_last", "lp_ft", "logistic_probe"):
        check_network(make_recipe(strategy=strategy, image_size=48))
    assert len(built) == 1
    check_network(make_recipe(strategy={"name": "early_cut", "stage": 1}, image_size=48))
    assert len(built) == 2


def test_each_architecture_is_checked_once(make_recipe):
    for changes in ({}, {"learning_rate": 0.5}, {"weight_decay": 0.1}, {"seed": 7}, {"draw": 3}):
        check_network(make_recipe(**changes))
    assert check_architecture.cache_info().misses == 1
    check_network(make_recipe(head="mlp"))
    assert check_architecture.cache_info().misses == 2


# Unsupported recipes

UNSUPPORTED = {
    "a stage that does not exist": (
        {"strategy": {"name": "early_cut", "stage": 9}},
        r"early_cut(stage=9): this network has 5 stages, so stage must be from 1 to 4; for a classifier on the last",
    ),
    "the last stage": (
        {"backbone": "test_vit", "strategy": {"name": "early_cut", "stage": 6}},
        "early_cut(stage=6): this network has 6 stages, so stage must be from 1 to 5",
    ),
    "a negative stage": (
        {"strategy": {"name": "early_cut", "stage": 0}},
        "early_cut(stage=0): this network has 5 stages",
    ),
    "adapters for linear layers in a convolutional network": (
        {"backbone": "test_resnet", "strategy": "lora"},
        "lora(rank=8) adapts linear layers, but this network has none",
    ),
    "adapters as wide as the layers": (
        {"backbone": "test_vit", "strategy": {"name": "lora", "rank": 64}},
        "lora(rank=64) adapts linear layers, but this network has none with more than 64 channels",
    ),
    "late stages that expect the output of the early ones": (
        {"backbone": "test_efficientnet", "strategy": {"name": "drop_early", "stage": 3}},
        "drop_early(stage=3): the stages above do not accept the stem's output",
    ),
    "a network without its stem": (
        {"backbone": "test_resnet", "strategy": "drop_early"},
        "drop_early(stage=1): that stage is part of this network's stem, which cannot be removed",
    ),
    "nothing above the last stage": (
        {"backbone": "test_vit", "strategy": {"name": "drop_early", "stage": 6}},
        "drop_early(stage=6): this network has 6 stages, so stage must be from 1 to 5",
    ),
    "more frozen blocks than the network has": (
        {"backbone": "test_vit", "strategy": {"name": "freeze_first", "blocks": 50}},
        "freezes the first 50 blocks, but this network has 7 below its head: use at most 6, or strategy linear_probe",
    ),
    "more trained blocks than the network has": (
        {"backbone": "test_vit", "strategy": {"name": "train_last", "blocks": 7}},
        "trains the last 7 blocks, but this network has 7 below its head: use at most 6, or strategy naive",
    ),
    "a quarter of too few blocks": (
        {"backbone": "test_vit", "backbone_args": {"depth": 1}, "strategy": "surgical"},
        "surgical trains a quarter of the blocks and needs a network with at least 4",
    ),
    "images that cannot be divided into patches": (
        {"backbone": "test_vit", "image_size": 40},
        "test_vit cannot take images of 40 px: Input height (40) should be divisible by patch size (16).",
    ),
    "images smaller than a patch": (
        {"backbone": "vit_tiny_patch16_224", "image_size": 8},
        "cannot take images of 8 px",
    ),
    "images of another size than the backbone arguments say": (
        {"backbone": "vit_tiny_patch16_224", "backbone_args": {"img_size": 64}},
        "vit_tiny_patch16_224 cannot take images of 32 px: Input height (32) doesn't match model (64).",
    ),
    "images that shrink to nothing": (
        {"backbone": "densenet121", "image_size": 16},
        "densenet121 cannot take images of 16 px",
    ),
    "arguments that the network does not take": (
        {"backbone_args": {"no_such_argument": 1}},
        "test_efficientnet cannot be built with these arguments",
    ),
    "arguments that our own network does not take": (
        {"strategy": "small_cnn", "backbone_args": {"pad_type": "same"}},
        "basic_cnn cannot be built with these arguments",
    ),
    "two heads": (
        {"backbone": "deit_tiny_distilled_patch16_224"},
        "deit_tiny_distilled_patch16_224 cannot be trained here, because timm does not say which layer is its head",
    ),
    "blocks without names": (
        {"backbone": "poolformer_s12"},
        "poolformer_s12 cannot be trained here, because timm does not say which layer is its head, or which "
        "parameters form a block: use another backbone",
    ),
    "stages without names": (
        {"backbone": "basic_cnn", "strategy": "early_cut"},
        "timm does not define the stages of BasicCNN, so it cannot be cut",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_an_unsupported_recipe_is_an_error_with_the_reason(make_recipe, case):
    changes, message = UNSUPPORTED[case]
    recipe = make_recipe(weights="" if changes.get("strategy") == "small_cnn" else "w", **changes)
    for _ in range(2):  # errors are not cached
        with pytest.raises(ValueError, match=re.escape(message)):
            check_network(recipe)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_network_can_be_truncated_after_every_stage_but_the_last(make_recipe, stage):
    check_network(make_recipe(strategy={"name": "early_cut", "stage": stage}))


@pytest.mark.parametrize("backbone", ["resnetv2_18", "crossvit_9_240", "repvit_m1"])
def test_a_truncated_network_gets_its_own_head_with_any_backbone(make_recipe, backbone):
    check_network(
        make_recipe(backbone=backbone, strategy={"name": "early_cut", "stage": 1}, weights="w", image_size=240)
    )


def test_a_missing_library_is_reported_before_training(make_recipe, monkeypatch):
    for name in ("pytorch_metric_learning", "pytorch_metric_learning.distances"):
        monkeypatch.setitem(sys.modules, name, None)
    check_architecture.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'xfer\[metric\]'"):
        check_network(make_recipe(embedding_loss="arcface"))


def test_stochastic_depth_rises_with_the_block_up_to_the_rate_of_the_recipe(make_recipe):
    from timm.layers import DropPath

    def rates(drop_path):
        model = build_network(
            make_recipe(backbone="test_vit", weights="", strategy="scratch", drop_path=drop_path), None
        )
        return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]

    assert rates(0.0) == []
    skipped = rates(0.2)
    assert skipped == sorted(skipped)
    assert skipped[-1] == pytest.approx(0.2)


def test_stochastic_depth_is_refused_for_a_network_that_has_none(make_recipe):
    with pytest.raises(ValueError, match=r"ghostnet_050 has no stochastic depth: leave drop_path at 0"):
        check_network(make_recipe(backbone="ghostnet_050", drop_path=0.1))
