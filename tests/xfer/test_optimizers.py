"""Optimizers against torch's own and against a Ranger written by hand, and how parameters are grouped."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from xfer.methods.optimizers import OPTIMIZERS, groups_of
from xfer.params import Param, params_of

STEPS = 25
RATE = 0.01
DECAY = 0.1


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def as_groups(network):
    return [{"params": list(network.parameters()), "depth": 0, "kind": "weight", "pace": 1.0, "weight_decay": DECAY}]


def trajectory(network, step):
    """The weights after each of STEPS steps on data that changes with every step."""
    chance = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        images = torch.randn(10, 6, generator=chance, dtype=torch.float64)
        labels = torch.randint(3, (10,), generator=chance)
        network.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        step()
        found.append(nn.utils.parameters_to_vector(network.parameters()).detach().clone())
    return torch.stack(found)


TORCHS_OWN = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=DECAY),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=RATE, weight_decay=DECAY),
    "radam": lambda parameters: torch.optim.RAdam(parameters, lr=RATE, weight_decay=DECAY),
}


def test_every_optimizer_is_held_against_a_reference():
    assert OPTIMIZERS.keys() == {*TORCHS_OWN, "ranger"}


@pytest.mark.parametrize("name", TORCHS_OWN)
def test_an_optimizer_takes_the_steps_of_torchs_own(name):
    ours, theirs = small_network(), small_network()
    optimizer = OPTIMIZERS[name](as_groups(ours), RATE)
    reference = TORCHS_OWN[name](theirs.parameters())
    torch.testing.assert_close(trajectory(ours, optimizer.step), trajectory(theirs, reference.step), rtol=0, atol=0)


def ranger_by_hand(network):
    """RAdam as torch has it, and after every 6th step the weights half-way back to slow ones (Zhang et al. 2019).

    The slow weights start as they do in timm's Lookahead: where the first 6 steps led. In the paper they start where
    the first step does.
    """
    inner = torch.optim.RAdam(network.parameters(), lr=RATE, betas=(0.95, 0.999), eps=1e-5, weight_decay=DECAY)
    slow = []
    steps = 0

    @torch.no_grad()
    def step():
        nonlocal steps
        inner.step()
        steps += 1
        if steps == 6:
            slow.extend(parameter.clone() for parameter in network.parameters())
        elif steps % 6 == 0:
            for parameter, anchor in zip(network.parameters(), slow, strict=True):
                anchor.copy_(0.5 * anchor + 0.5 * parameter)
                parameter.copy_(anchor)

    return step


def test_ranger_is_radam_inside_lookahead():
    ours, theirs = small_network(), small_network()
    optimizer = OPTIMIZERS["ranger"](as_groups(ours), RATE)
    reference = ranger_by_hand(theirs)
    torch.testing.assert_close(trajectory(ours, optimizer.step), trajectory(theirs, reference), rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet", "test_vit", "convnext_atto"])
def grouped(request):
    size = {"img_size": 32} if request.param == "test_vit" else {}
    with torch.device("meta"):
        network = timm.create_model(request.param, num_classes=3, **size)
    return network, groups_of(network, params_of(network), DECAY)


def test_every_parameter_is_in_exactly_one_group(grouped):
    network, groups = grouped
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in network.parameters())


def test_there_is_one_group_for_each_depth_and_kind_head_first(grouped):
    network, groups = grouped
    params = params_of(network)
    places = [Param(group["depth"], group["kind"]) for group in groups]
    assert places == sorted(set(params.values()))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group, place in zip(groups, places, strict=True):
        assert all(params[names[id(parameter)]] == place for parameter in group["params"])


def test_only_weights_are_decayed(grouped):
    _, groups = grouped
    assert {group["kind"]: group["weight_decay"] for group in groups} == {"weight": DECAY, "bias": 0.0, "norm": 0.0}
    assert all(group["weight_decay"] == (DECAY if group["kind"] == "weight" else 0) for group in groups)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_what_its_groups_say_about_themselves(name):
    network = timm.create_model("test_efficientnet", num_classes=3)
    groups = groups_of(network, params_of(network), DECAY)
    optimizer = OPTIMIZERS[name](groups, RATE)
    kept = [(group["depth"], group["kind"], group["pace"], group["weight_decay"]) for group in optimizer.param_groups]
    assert kept == [(group["depth"], group["kind"], 1.0, group["weight_decay"]) for group in groups]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_is_passed_over(name):
    network = small_network()
    optimizer = OPTIMIZERS[name](as_groups(network), RATE)
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    frozen = network[0].weight.detach().clone()
    moving = network[2].weight.detach().clone()
    trajectory(network, optimizer.step)
    assert torch.equal(network[0].weight, frozen)
    assert not torch.equal(network[2].weight, moving)
