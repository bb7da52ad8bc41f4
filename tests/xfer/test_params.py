"""Where a parameter stands, seen from the head, and what it is: the same words for every family of networks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from xfer.params import NORMS, Param, params_of

FAMILIES = {
    "test_resnet": {},
    "test_efficientnet": {},
    "test_vit": {"img_size": 32},
    "test_convnext": {},
    "test_nfnet": {},
    "test_mambaout": {},
    "convnext_atto": {},  # timm's last group holds pretrained layers besides the head,
    "mobilenetv3_small_050": {},  # and so does this one's
    "mobilenetv2_100": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    with torch.device("meta"):  # names and shapes are all that is asked
        return timm.create_model(request.param, num_classes=3, **FAMILIES[request.param])


def test_every_parameter_is_somewhere(network):
    assert params_of(network).keys() == dict(network.named_parameters()).keys()


def test_depth_0_is_exactly_the_classifier(network):
    params = params_of(network)
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    assert head
    assert {name for name, param in params.items() if param.depth == 0} == {
        name for name, parameter in network.named_parameters() if id(parameter) in head
    }


def test_depths_follow_each_other_without_a_gap_down_to_the_stem(network):
    params = params_of(network)
    depths = {param.depth for param in params.values()}
    assert depths == set(range(len(depths)))
    assert len(depths) > 3
    stem = next(name for name, parameter in network.named_parameters() if parameter.ndim == 4)
    assert params[stem].depth == max(depths)


def test_kinds_tell_norms_and_biases_from_the_weights_proper(network):
    params = params_of(network)
    for module_name, module in network.named_modules():
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if isinstance(module, NORMS):
                assert params[name].kind == "norm", name
            elif isinstance(module, nn.Linear | nn.Conv2d):
                assert params[name].kind == ("weight" if parameter.ndim > 1 or name.endswith("gain") else "bias"), name


def test_depth_counts_blocks_upwards_from_the_stem():
    with torch.device("meta"):
        params = params_of(timm.create_model("test_resnet", num_classes=3))
    depth = {name: param.depth for name, param in params.items()}
    assert depth["fc.weight"] == 0
    assert depth["layer4.0.conv1.weight"] == 1
    order = ["fc.bias", "layer4.0.conv2.weight", "layer3.0.conv1.weight", "layer2.0.conv1.weight", "conv1.0.weight"]
    assert [depth[name] for name in order] == sorted({depth[name] for name in order})


def test_params_sort_head_first():
    assert sorted([Param(2), Param(0, "weight"), Param(0, "bias")]) == [Param(0, "bias"), Param(0, "weight"), Param(2)]
