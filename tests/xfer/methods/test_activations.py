"""Replacing activations changes the activations of every kind of network, and nothing else."""

from __future__ import annotations

import copy
import inspect

import pytest
import timm
import torch
from timm.layers import activations as timms
from timm.layers import activations_me
from torch import nn

from xfer.methods.activations import ACTIVATIONS, REPLACEABLE_ACTIVATIONS, replace_activations
from xfer.training.networks import build_network, check_network

NETWORKS = {
    "test_resnet": {"ReLU": 12},
    "test_efficientnet": {"SiLU": 11},
    "test_vit": {"GELU": 6},
    "basic_cnn": {"ReLU": 4},
}
"""Class and number of activations in each network."""

REPLACEMENTS = {"mish": nn.Mish, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}

each_network = pytest.mark.parametrize("network", NETWORKS)
each_replacement = pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "keep"])


@pytest.fixture
def build(make_recipe, weights_of):
    def network(name, **choices):
        recipe = make_recipe(**({"strategy": "small_cnn"} if name == "basic_cnn" else {"backbone": name}), **choices)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return build_network(recipe, weights_of(name) if recipe.weights else None).eval()

    return network


def images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def kinds(model):
    return {name: type(module).__name__ for name, module in model.named_modules(remove_duplicate=False)}


def test_every_table_entry_is_tested_here():
    assert {"keep", *REPLACEMENTS} == ACTIVATIONS.keys()


@each_network
@each_replacement
def test_all_activations_are_replaced_and_no_other_module(build, network, name):
    before, after = kinds(build(network)), kinds(build(network, activation=name))
    assert before.keys() == after.keys()
    old = {path for path, class_name in before.items() if class_name in REPLACEABLE_ACTIVATIONS}
    assert {
        class_name: sum(before[path] == class_name for path in old) for class_name in NETWORKS[network]
    } == NETWORKS[network]
    assert len(old) == sum(NETWORKS[network].values())
    assert {after[path] for path in old} == {REPLACEMENTS[name].__name__}
    assert all(after[path] == class_name for path, class_name in before.items() if path not in old)


@each_network
@each_replacement
def test_weights_and_statistics_stay_the_same(build, network, name):
    before, after = build(network).state_dict(), build(network, activation=name).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@each_network
@each_replacement
def test_the_network_computes_with_the_new_activation(build, network, name):
    original, replaced = build(network), build(network, activation=name)
    calls = []
    for module in replaced.modules():
        if isinstance(module, REPLACEMENTS[name]):
            # The pre-hook copies the input before an in-place activation overwrites it.
            module.register_forward_pre_hook(lambda module, inputs: calls.append([inputs[0].clone()]))
            module.register_forward_hook(lambda module, inputs, output: calls[-1].append(output.clone()))
    with torch.no_grad():
        changed = not torch.equal(replaced(images()), original(images()))
    assert changed is (network != "test_efficientnet" or name != "silu")
    assert len(calls) == sum(NETWORKS[network].values())
    formula = {
        "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)),
        "silu": lambda x: x / (1 + torch.exp(-x)),
        "leaky_relu": lambda x: torch.where(x < 0, x / 100, x),
    }[name]
    for before, after in calls:
        torch.testing.assert_close(after, formula(before), rtol=1e-4, atol=1e-5)


@each_network
@each_replacement
def test_every_parameter_gets_a_gradient_and_a_step_lowers_the_loss(build, network, name):
    model, inputs, labels = build(network, activation=name), images(6), torch.arange(6) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@each_network
def test_keep_changes_no_module(build, network):
    model = build(network)
    before = dict(model.named_modules())
    assert replace_activations(model, ACTIVATIONS["keep"]()) is model
    assert all(module is before[name] for name, module in model.named_modules())


def test_the_head_of_a_recipe_keeps_its_own_activation(build):
    model = build("test_resnet", activation="mish", head="mlp")
    assert isinstance(model.fc[1], nn.ReLU)
    assert sum(isinstance(module, nn.Mish) for module in model.modules()) == 12


@pytest.fixture(scope="module", params=["mobilenetv3_small_050", "convnext_atto", "densenet121", "regnety_002"])
def other_network(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model(request.param, num_classes=3).eval()


@each_replacement
def test_outputs_of_other_families_stay_finite(other_network, name):
    model = replace_activations(copy.deepcopy(other_network), ACTIVATIONS[name]())
    assert not [
        kind for kind in kinds(model).values() if kind in REPLACEABLE_ACTIVATIONS - {REPLACEMENTS[name].__name__}
    ]
    with torch.no_grad():
        assert model(images(size=64)).isfinite().all()
    assert kinds(model) != kinds(other_network)


# Modules


class Gated(nn.Module):
    """Activations of all kinds next to gates; one module is registered under two names."""

    def __init__(self):
        super().__init__()
        self.shared = self.again = nn.ReLU()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.GELU(), nn.Sequential(nn.PReLU()))
        self.gates = nn.Sequential(
            nn.Sigmoid(), nn.Hardsigmoid(), nn.Softmax(dim=1), nn.Tanh(), nn.Dropout(), nn.Identity()
        )

    def forward(self, x):
        return self.gates(self.again(self.inner(self.shared(x))))


@each_replacement
def test_a_shared_module_is_replaced_under_both_names(name):
    model = replace_activations(Gated(), ACTIVATIONS[name]())
    assert isinstance(model.shared, REPLACEMENTS[name])
    assert isinstance(model.again, REPLACEMENTS[name])
    model(torch.randn(2, 4)).sum().backward()
    assert model.inner[0].weight.grad.abs().sum() > 0


@each_replacement
def test_gates_and_softmax_are_not_replaced(name):
    model = Gated()
    gates = list(model.gates)
    assert list(replace_activations(model, ACTIVATIONS[name]()).gates) == gates


@each_replacement
def test_the_inplace_flag_is_preserved(name):
    inner = replace_activations(Gated(), ACTIVATIONS[name]()).inner
    assert [inner[1].inplace, inner[2].inplace, inner[3][0].inplace] == [True, False, False]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Softmax(dim=1))])
def test_a_network_without_activations_is_refused(model):
    with pytest.raises(
        ValueError, match=f"{type(model).__name__} has no activation modules .* leave activation at keep"
    ):
        replace_activations(model, ACTIVATIONS["mish"]())
    assert replace_activations(model, ACTIVATIONS["keep"]()) is model


def test_a_recipe_with_any_activation_passes_the_check(make_recipe):
    for name in ACTIVATIONS:
        check_network(make_recipe(activation=name))


# What counts as an activation

GATES = {"Sigmoid", "HardSigmoid", "HardSigmoidMe", "Tanh"}


def test_timms_activations_are_known_and_its_gates_are_not():
    timm_names = {
        name
        for module in (timms, activations_me)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
    }
    assert {"GELUTanh", "QuickGELU", "HardMish", "Mish"} <= timm_names
    assert timm_names - GATES <= REPLACEABLE_ACTIVATIONS
    assert not GATES & REPLACEABLE_ACTIVATIONS


def test_torchs_activations_are_known_and_its_gates_are_not():
    torch_names = {name for name in REPLACEABLE_ACTIVATIONS if hasattr(nn, name)}
    timm_names = {name for name in REPLACEABLE_ACTIVATIONS if hasattr(timms, name) or hasattr(activations_me, name)}
    assert torch_names | timm_names == REPLACEABLE_ACTIVATIONS
    assert torch_names >= {
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "ELU",
        "CELU",
        "SELU",
        "GELU",
        "SiLU",
        "Mish",
        "Hardswish",
        "Softplus",
    }
    assert not {"Sigmoid", "Hardsigmoid", "Softmax", "Tanh", "GLU", "LogSigmoid"} & REPLACEABLE_ACTIVATIONS
