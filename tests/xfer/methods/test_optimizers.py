"""Optimizers compared with torch's and with the published updates written out, and their parameter groups."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from xfer.methods.optimizers import OPTIMIZERS, build_param_groups
from xfer.models.params import Param, named_params
from xfer.training import checkpoints

STEPS = 37
RATE = 0.01
DECAY = 0.1


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def as_groups(network):
    """Four groups: weights and biases of each layer, the head first."""
    return [
        {
            "params": [parameter],
            "depth": depth,
            "kind": kind,
            "pace": 1.0,
            "weight_decay": DECAY if kind == "weight" else 0,
        }
        for depth, layer in enumerate((network[2], network[0]))
        for kind, parameter in (("weight", layer.weight), ("bias", layer.bias))
    ]


def learn(network, step, steps=range(STEPS), frozen=lambda number: ()):
    """Takes steps on data that changes with every step; returns the weights after each step."""
    weights = []
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(10, 6, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (10,), generator=generator)
        network.requires_grad_(True)
        for parameter in frozen(number):
            parameter.requires_grad_(False)
        network.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        step()
        weights.append(nn.utils.parameters_to_vector(network.parameters()).detach().clone())
    return torch.stack(weights)


def by_hand(update):
    """Builds an optimizer without groups: `update(parameter, gradient, decay, state)` changes each trained tensor."""

    def make(groups):
        states = {}

        @torch.no_grad()
        def step():
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = states.setdefault(parameter, {"t": 0, "m": 0.0, "v": 0.0})
                        state["t"] += 1
                        update(parameter, parameter.grad, group["weight_decay"], state)

        return step

    return make


def lamb_by_hand(parameter, gradient, decay, state):
    """Algorithm 2 of You et al. 2020; as is usual, tensors without decay are not scaled to their norm."""
    state["m"] = 0.9 * state["m"] + 0.1 * gradient
    state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
    mean = state["m"] / (1 - 0.9 ** state["t"])
    spread = state["v"] / (1 - 0.999 ** state["t"])
    direction = mean / (spread.sqrt() + 1e-6) + decay * parameter
    trust = parameter.norm() / direction.norm() if decay else 1.0
    parameter -= RATE * trust * direction


def lion_by_hand(parameter, gradient, decay, state):
    """Algorithm 2 of Chen et al. 2023."""
    direction = torch.sign(0.9 * state["m"] + 0.1 * gradient)
    parameter -= RATE * (direction + decay * parameter)
    state["m"] = 0.99 * state["m"] + 0.01 * gradient


def ranger_by_hand(groups):
    """torch's RAdam inside Lookahead, Algorithm 1 of Zhang et al. 2019 with k = 6 and alpha = 0.5."""
    inner = torch.optim.RAdam(groups, lr=RATE, betas=(0.95, 0.999), eps=1e-5)
    parameters = [parameter for group in groups for parameter in group["params"]]
    slow_weights = [parameter.detach().clone() for parameter in parameters]
    step_count = 0

    @torch.no_grad()
    def step():
        nonlocal step_count
        inner.step()
        step_count += 1
        if step_count % 6 == 0:
            for fast, anchor in zip(parameters, slow_weights, strict=True):
                anchor += 0.5 * (fast - anchor)
                fast.copy_(anchor)

    return step


EXACT = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=RATE, momentum=0.9).step,
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True).step,
    "adam": lambda groups: torch.optim.Adam(groups, lr=RATE).step,
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=RATE).step,
    "radam": lambda groups: torch.optim.RAdam(groups, lr=RATE).step,
}
WITHIN_A_MILLIONTH = {"ranger": ranger_by_hand, "lamb": by_hand(lamb_by_hand), "lion": by_hand(lion_by_hand)}
REFERENCES = EXACT | WITHIN_A_MILLIONTH


def test_every_optimizer_has_a_reference():
    assert OPTIMIZERS.keys() == REFERENCES.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_an_optimizer_takes_the_steps_of_its_reference(name):
    ours, theirs = small_network(), small_network()
    trajectory = learn(ours, OPTIMIZERS[name](as_groups(ours), RATE).step)
    expected = learn(theirs, REFERENCES[name](as_groups(theirs)))
    torch.testing.assert_close(trajectory, expected, rtol=0, atol=0 if name in EXACT else 1e-6)


@pytest.mark.parametrize("unfrozen_at", [1, 5, 6, 8, 20])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_parameter_that_is_unfrozen_later_moves_as_in_the_reference(name, unfrozen_at):
    ours, theirs = small_network(), small_network()

    def body_until_unfrozen(network):
        return lambda number: network[0].parameters() if number < unfrozen_at else ()

    trajectory = learn(ours, OPTIMIZERS[name](as_groups(ours), RATE).step, frozen=body_until_unfrozen(ours))
    expected = learn(theirs, REFERENCES[name](as_groups(theirs)), frozen=body_until_unfrozen(theirs))
    torch.testing.assert_close(trajectory, expected, rtol=0, atol=0 if name in EXACT else 1e-6)


def test_the_slow_weights_of_ranger_start_at_the_initial_weights():
    network = small_network()
    start = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    plain = small_network()
    radam = torch.optim.RAdam(as_groups(plain), lr=RATE, betas=(0.95, 0.999), eps=1e-5)
    alone = learn(plain, radam.step, range(6))
    trajectory = learn(network, OPTIMIZERS["ranger"](as_groups(network), RATE).step, range(6))
    assert torch.equal(trajectory[:5], alone[:5])
    torch.testing.assert_close(trajectory[5], (start + alone[5]) / 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_is_skipped(name):
    network = small_network()
    optimizer = OPTIMIZERS[name](as_groups(network), RATE)
    learn(network, optimizer.step, range(8))  # it has moved, and has moments
    frozen, moving = network[0].weight.detach().clone(), network[2].weight.detach().clone()
    before = copy.deepcopy(optimizer.state[network[0].weight])
    learn(network, optimizer.step, range(8, 20), frozen=lambda number: network[0].parameters())
    assert torch.equal(network[0].weight, frozen)
    assert not torch.equal(network[2].weight, moving)
    after = optimizer.state[network[0].weight]
    assert after.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(after[key]), torch.as_tensor(before[key])) for key in before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_is_read_from_the_group_at_every_step(name):
    ours, theirs = small_network(), small_network()
    optimizer = OPTIMIZERS[name](as_groups(ours), 1.0)

    def step():
        for group in optimizer.param_groups:
            group["lr"] = RATE
        optimizer.step()

    expected = learn(theirs, OPTIMIZERS[name](as_groups(theirs), RATE).step)
    torch.testing.assert_close(learn(ours, step), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_of_0_moves_nothing(name):
    network = small_network()
    start = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    assert (learn(network, OPTIMIZERS[name](as_groups(network), 0.0).step, range(8)) == start).all()


def through_checkpoint(state, folder):
    """Saves and loads an optimizer's state as a checkpoint does, which turns its keys into strings."""
    checkpoints.save(folder, 1, state)
    loaded = checkpoints.load(folder)
    return {**loaded, "state": {int(index): values for index, values in loaded["state"].items()}}


@pytest.mark.parametrize("stopped_at", [1, 6, 9, 13])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(name, stopped_at, tmp_path):
    def frozen(network):  # over the stop and back again
        return lambda number: network[0].parameters() if 4 <= number < 12 else ()

    uninterrupted, interrupted = small_network(), small_network()
    expected = learn(uninterrupted, OPTIMIZERS[name](as_groups(uninterrupted), RATE).step, frozen=frozen(uninterrupted))
    first = OPTIMIZERS[name](as_groups(interrupted), RATE)
    learn(interrupted, first.step, range(stopped_at), frozen=frozen(interrupted))
    state = through_checkpoint(first.state_dict(), tmp_path)
    resumed = small_network()
    resumed.load_state_dict(interrupted.state_dict())
    second = OPTIMIZERS[name](as_groups(resumed), RATE)
    second.load_state_dict(state)
    trajectory = learn(resumed, second.step, range(stopped_at, STEPS), frozen=frozen(resumed))
    assert torch.equal(trajectory, expected[stopped_at:])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_holds_tensors_and_numbers_by_parameter_index(name):
    network = small_network()
    optimizer = OPTIMIZERS[name](as_groups(network), RATE)
    learn(network, optimizer.step, range(7))
    state = optimizer.state_dict()["state"]
    assert state.keys() == {0, 1, 2, 3}
    parameters = [group["params"][0] for group in optimizer.param_groups]
    for index, values in state.items():
        moments = [value for key, value in values.items() if key != "step"]
        assert all(value.shape == parameters[index].shape for value in moments)


def test_lamb_leaves_clipping_to_the_recipe():
    ours, theirs = small_network(), small_network()
    optimizer = OPTIMIZERS["lamb"](as_groups(ours), RATE)
    hundredfold = learn(ours, lambda: (scale_gradients(ours, 100.0), optimizer.step()))
    reference = by_hand(lamb_by_hand)(as_groups(theirs))
    expected = learn(theirs, lambda: (scale_gradients(theirs, 100.0), reference()))
    torch.testing.assert_close(hundredfold, expected, rtol=0, atol=1e-6)


def scale_gradients(network, factor):
    for parameter in network.parameters():
        parameter.grad *= factor


def test_lamb_scales_steps_to_the_weights_even_without_weight_decay():
    network = small_network()
    groups = [{**group, "weight_decay": 0.0} for group in as_groups(network)]
    before = network[2].weight.detach().clone()
    learn(network, OPTIMIZERS["lamb"](groups, RATE).step, range(1))
    step = (network[2].weight.detach() - before).norm()
    assert step.item() == pytest.approx(RATE * before.norm().item(), rel=1e-6)


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet", "test_vit", "convnext_atto"])
def network_and_groups(request):
    size = {"img_size": 32} if request.param == "test_vit" else {}
    with torch.device("meta"):
        network = timm.create_model(request.param, num_classes=3, **size)
    return network, build_param_groups(network, named_params(network), DECAY)


def test_every_parameter_is_in_exactly_one_group(network_and_groups):
    network, groups = network_and_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())


def param_of(group):
    return Param(group["depth"], group["kind"], group["height"])


def test_there_is_one_group_for_each_depth_and_kind_head_first(network_and_groups):
    network, groups = network_and_groups
    params = named_params(network)
    params_of_groups = [param_of(group) for group in groups]
    assert params_of_groups == sorted(set(params.values()))
    assert len({(param.depth, param.kind) for param in params_of_groups}) == len(params_of_groups)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in groups:
        assert all(params[names[id(parameter)]] == param_of(group) for parameter in group["params"])


def test_only_weights_are_decayed(network_and_groups):
    _, groups = network_and_groups
    decay = {group["kind"]: group["weight_decay"] for group in groups}
    assert all(value == (DECAY if kind == "weight" else 0.0) for kind, value in decay.items())
    assert {"weight", "bias"} < decay.keys()


@pytest.mark.parametrize(
    ("kind", "decay"), [("weight", DECAY), ("adapter", DECAY), ("bias", 0.0), ("scale", 0.0), ("shift", 0.0)]
)
def test_only_weights_and_adapters_among_all_kinds_are_decayed(kind, decay):
    (group,) = build_param_groups(nn.Linear(2, 2, bias=False), {"weight": Param(depth=1, kind=kind)}, DECAY)
    assert (group["kind"], group["weight_decay"]) == (kind, decay)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_the_additional_keys_of_its_groups(name):
    network = timm.create_model("test_efficientnet", num_classes=3)
    groups = build_param_groups(network, named_params(network), DECAY)
    optimizer = OPTIMIZERS[name](groups, RATE)
    keys = ("depth", "kind", "height", "pace", "weight_decay")
    kept = [[group[key] for key in keys] for group in optimizer.param_groups]
    assert kept == [[group[key] for key in keys] for group in groups]
