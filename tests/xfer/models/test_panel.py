"""The panel of `--backbone auto`: a table of facts about networks, and which of them suit a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from xfer.models.panel import (
    MACHINES,
    PANEL,
    PANEL_IMAGE_SIZE,
    PanelSize,
    best_on_imagenet,
    markdown_table,
    panel_names,
)

DOCS = Path(__file__).parents[3] / "docs" / "backbones.md"
PERMISSIVE = ("apache-2.0", "mit")


def on_meta(name: str, image_size: int) -> torch.nn.Module:
    """Build a network without memory for its weights, and without a head."""
    size: dict[str, Any] = {"img_size": image_size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    with torch.device("meta"):
        network: torch.nn.Module = timm.create_model(name, num_classes=0, **size).eval().requires_grad_(False)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", PANEL)
def test_the_table_says_what_timm_and_torch_say(name: str) -> None:
    network, facts, config = on_meta(name, PANEL_IMAGE_SIZE), PANEL[name], timm.get_pretrained_cfg(name)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        network(torch.empty(1, 3, PANEL_IMAGE_SIZE, PANEL_IMAGE_SIZE))
    assert facts.parameters == pytest.approx(sum(value.numel() for value in network.parameters()) / 1e6, abs=0.006)
    assert facts.gflops == pytest.approx(counter.get_total_flops() / 1e9, rel=0.02)
    assert config.hf_hub_id == f"timm/{name}"
    assert (facts.license == "") == (config.license in PERMISSIVE)


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [64, 96, 160])
@pytest.mark.parametrize("name", panel_names("small"))
def test_the_networks_for_a_laptop_take_small_images(name: str, image_size: int) -> None:
    with torch.device("meta"):
        assert on_meta(name, image_size)(torch.empty(2, 3, image_size, image_size)).ndim == 2


@pytest.mark.parametrize("size", get_args(PanelSize))
def test_a_panel_has_six_networks_of_several_families_with_the_best_on_imagenet_first(size: PanelSize) -> None:
    names = panel_names(size)
    assert len(names) == 6
    assert {PANEL[name].family for name in names} == {"batch_norm", "convnext", "vit"}
    rated = [PANEL[name].top1 or 0.0 for name in names]
    assert rated == sorted(rated, reverse=True)
    assert best_on_imagenet(reversed(names)) == names[0]
    assert size in MACHINES


def test_an_accuracy_on_imagenet_is_given_with_its_image_size_and_every_network_with_reason_and_source() -> None:
    for facts in PANEL.values():
        assert (facts.top1 is None) == (facts.top1_size is None)
        assert facts.top1 is None or 0.7 < facts.top1 < 0.9
        assert facts.reason
        assert facts.source


def test_networks_without_an_accuracy_on_imagenet_are_not_the_best_on_it() -> None:
    assert best_on_imagenet(["test_resnet", "vit_small_patch16_dinov3.lvd1689m"]) is None


def test_the_table_of_the_docs_is_generated() -> None:
    assert markdown_table() in DOCS.read_text(encoding="utf-8")
