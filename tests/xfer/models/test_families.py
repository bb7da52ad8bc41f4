"""Families of networks: recognized by their layers, in step with the panel and the tables."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xfer.hyperparameters import OPTIMIZERS, PARAMETERS, Categorical
from xfer.models.families import DECOUPLED_DECAY, FAMILIES, UNKNOWN_BLOCKS, NetworkTraits, network_traits
from xfer.models.panel import PANEL

SMALL_PANEL = [name for name, network in PANEL.items() if network.size == "small"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, PANEL[name].family) for name in SMALL_PANEL),
        ("test_resnet", "batch_norm"),
        ("vgg11", "batch_norm"),  # no normalization at all
        ("resnetv2_50x1_bit", "batch_norm"),  # group norm
        ("mobilevit_s", "batch_norm"),  # mostly convolutions
        ("deit_tiny_patch16_224", "vit"),
        ("swin_tiny_patch4_window7_224", "vit"),
        ("beit_base_patch16_224", "vit"),
        ("convit_tiny", "vit"),
        ("test_convnext", "convnext"),
        ("mixer_s16_224", "convnext"),
    ],
)
def test_a_network_is_recognized_by_its_layers(name: str, family: str) -> None:
    assert network_traits(name).family == family


def test_traits_say_what_the_default_search_depends_on() -> None:
    assert network_traits("test_vit") == NetworkTraits("vit", 7, has_batch_norm=False, has_drop_path=True)
    assert not network_traits("test_vit").is_deep
    assert network_traits("mobilenetv2_100").is_deep
    assert not network_traits("resnetv2_50x1_bit").has_batch_norm
    assert not network_traits("vgg11").has_drop_path


def test_a_network_that_timm_does_not_know_gets_the_default_traits() -> None:
    assert network_traits("no_such_network") == NetworkTraits()
    assert NetworkTraits().blocks == UNKNOWN_BLOCKS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_names_what_exists(name: str) -> None:
    family = FAMILIES[name]  # type: ignore[index]
    assert family.layers
    assert family.reason
    assert family.source
    assert {*family.optimizers, *family.learning_rates, *DECOUPLED_DECAY} <= set(OPTIMIZERS)
    for parameter, distribution in family.parameters.items():
        searched = PARAMETERS[parameter].search
        assert not isinstance(distribution, Categorical)
        assert not isinstance(searched, Categorical)
        assert searched is not None
        assert searched.low <= distribution.low < distribution.high <= searched.high


def test_the_table_is_read_without_torch_and_timm() -> None:
    code = "import xfer.models.families, sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not {"torch", "timm", "numpy"} & set(result.stdout.split())
