"""Depth and kind of parameters, the same for every family of networks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from xfer.methods.adapters import add_low_rank
from xfer.models.basic_cnn import BasicCNN
from xfer.models.params import NORMS, Param, named_params

FAMILIES = {
    "test_resnet": {},
    "test_efficientnet": {},
    "test_vit": {"img_size": 32},
    "test_convnext": {},
    "test_nfnet": {},
    "test_mambaout": {},
    "convnext_atto": {},  # timm's last group has pretrained layers besides the head
    "mobilenetv3_small_050": {},  # likewise
    "mobilenetv2_100": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    with torch.device("meta"):  # only names and shapes are used
        return timm.create_model(request.param, num_classes=3, **FAMILIES[request.param])


def test_every_parameter_is_described(network):
    assert named_params(network).keys() == dict(network.named_parameters()).keys()


def test_depth_0_is_exactly_the_classifier(network):
    params = named_params(network)
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    assert head
    assert {name for name, param in params.items() if param.depth == 0} == {
        name for name, parameter in network.named_parameters() if id(parameter) in head
    }


def test_depths_are_consecutive_down_to_the_stem(network):
    params = named_params(network)
    depths = {param.depth for param in params.values()}
    assert depths == set(range(len(depths)))
    assert len(depths) > 3
    stem = next(name for name, parameter in network.named_parameters() if parameter.ndim == 4)
    assert params[stem].depth == max(depths)


def test_heights_count_the_same_blocks_from_the_stem(network):
    params = named_params(network)
    blocks = max(param.depth for param in params.values())
    assert {param.height for param in params.values()} == set(range(blocks + 1))
    assert {param.depth + param.height for param in params.values()} == {param.blocks for param in params.values()}
    assert {param.blocks for param in params.values()} == {blocks}


def test_kinds_distinguish_weights_biases_and_norms(network):
    params = named_params(network)
    for module_name, module in network.named_modules():
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if isinstance(module, NORMS):
                assert params[name].kind == ("shift" if name.endswith(".bias") else "scale"), name
            elif isinstance(module, nn.Linear | nn.Conv2d):
                assert params[name].kind == ("weight" if parameter.ndim > 1 or name.endswith("gain") else "bias"), name
    assert {"weight", "bias"} <= {param.kind for param in params.values()} <= {"weight", "bias", "scale", "shift"}


def test_every_normalization_layer_with_two_parameters_has_a_scale_and_a_shift(network):
    params = named_params(network)
    norms = [name for name, module in network.named_modules() if isinstance(module, NORMS)]
    with_both = [name for name in norms if {f"{name}.weight", f"{name}.bias"} <= params.keys()]
    assert [params[f"{name}.weight"].kind for name in with_both] == ["scale"] * len(with_both)
    assert [params[f"{name}.bias"].kind for name in with_both] == ["shift"] * len(with_both)


def test_a_norm_without_shift_is_recognized_by_its_name():
    with torch.device("meta"):
        vit = timm.create_model("test_vit3", num_classes=3, img_size=32, norm_layer="rmsnorm")
    kinds = {name: param.kind for name, param in named_params(vit).items()}
    assert kinds["blocks.0.norm1.weight"] == "scale"
    assert "blocks.0.norm1.bias" not in kinds


def test_an_adapter_has_the_depth_of_the_weight_that_it_adapts():
    vit = timm.create_model("test_vit", num_classes=3, img_size=32)
    before = named_params(vit)
    after = named_params(add_low_rank(vit, 2, vit.get_classifier()))
    prefix = "blocks.3.attn.qkv.parametrizations.weight"
    assert after[f"{prefix}.original"] == before["blocks.3.attn.qkv.weight"] == Param(3, "weight", 4)
    assert after[f"{prefix}.0.down"] == after[f"{prefix}.0.up"] == Param(3, "adapter", 4)
    unchanged = before.keys() & after.keys()
    assert {"head.weight", "blocks.3.attn.qkv.bias", "blocks.3.norm1.weight"} <= unchanged
    assert all(before[name] == after[name] for name in unchanged)
    assert before.keys() - after.keys() == {
        name.replace("parametrizations.weight.original", "weight") for name in after if name.endswith(".original")
    }


def test_a_custom_network_has_depths_too():
    depth = {name: param.depth for name, param in named_params(BasicCNN(num_classes=3)).items()}
    order = ["classifier.weight", "hidden.2.weight", "features.6.weight", "features.3.weight", "features.0.weight"]
    assert [depth[name] for name in order] == [0, 1, 2, 3, 4]


def test_depth_increases_from_the_head_to_the_stem():
    with torch.device("meta"):
        params = named_params(timm.create_model("test_resnet", num_classes=3))
    depth = {name: param.depth for name, param in params.items()}
    assert depth["fc.weight"] == 0
    assert depth["layer4.0.conv1.weight"] == 1
    order = ["fc.bias", "layer4.0.conv2.weight", "layer3.0.conv1.weight", "layer2.0.conv1.weight", "conv1.0.weight"]
    assert [depth[name] for name in order] == sorted({depth[name] for name in order})


def test_params_sort_head_first():
    assert sorted([Param(2), Param(0, "weight"), Param(0, "bias")]) == [Param(0, "bias"), Param(0, "weight"), Param(2)]
