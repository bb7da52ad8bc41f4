"""Low-rank adapters: putting them in changes nothing, only they and the head move, and they merge into the weights."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from xfer.methods.adapters import LowRankAdapter, add_low_rank, merge_adapters
from xfer.models.params import named_params

RANK = 3


def a_vit(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_vit", num_classes=5, img_size=32).eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapted():
    """A network whose adapters have been somewhere."""
    model = a_vit()
    add_low_rank(model, RANK, model.get_classifier())
    for module in model.modules():
        if isinstance(module, LowRankAdapter):
            nn.init.normal_(module.up, std=0.1)
    return model


def adapters_of(model):
    return [module for module in model.modules() if isinstance(module, LowRankAdapter)]


def test_putting_adapters_in_does_not_change_what_a_network_says(images):
    model = a_vit()
    with torch.no_grad():
        before = model(images)
        after = add_low_rank(model, RANK, model.get_classifier())(images)
    assert torch.equal(before, after)


def test_every_linear_layer_below_the_head_gets_one_and_the_head_none():
    model = a_vit()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "head"]
    add_low_rank(model, RANK, model.get_classifier())
    found = [
        name.removesuffix(".parametrizations.weight.0")
        for name, m in model.named_modules()
        if type(m) is LowRankAdapter
    ]
    assert sorted(found) == sorted(linear)
    assert len(linear) == 4 * 6


def test_a_layer_no_larger_than_the_rank_gets_none():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8), head := nn.Linear(8, 2))
    add_low_rank(model, 4, head)
    assert [isinstance(each, nn.utils.parametrize.ParametrizationList) for each in model.modules()].count(True) == 1
    assert nn.utils.parametrize.is_parametrized(model[2])


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
def test_a_network_without_linear_layers_below_its_head_is_refused_with_what_to_take_instead(network):
    model = timm.create_model(network, num_classes=3)
    with pytest.raises(
        ValueError, match=r"lora\(rank=3\) enters linear layers.*take a transformer, or bitfit or train_last"
    ):
        add_low_rank(model, RANK, model.get_classifier())


def test_only_adapters_and_head_move_and_the_weights_move_by_no_more_than_the_rank(make_recipe, make_run):
    recipe = make_recipe(
        strategy={"name": "lora", "rank": RANK},
        backbone="test_vit",
        optimizer="adam",
        learning_rate=0.01,
        weight_decay=0,
    )
    run = make_run(recipe)
    start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    plain = {name: tensor.clone() for name, tensor in merge_adapters(run.model).state_dict().items()}
    list(run)
    end = run.model.state_dict()
    params = named_params(run.model)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name, param in params.items() if param.depth == 0 or param.kind == "adapter"}
    merged = merge_adapters(run.model).state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {
        *(name for name in plain if ("attn" in name or "mlp" in name) and name.endswith("weight")),
        *("head.weight", "head.bias"),
    }
    for name in changed - {"head.weight", "head.bias"}:
        singular = torch.linalg.svdvals((merged[name] - plain[name]).double())
        assert singular[RANK - 1] > 1e-4 * singular[0] > singular[RANK], name


def test_the_distance_is_that_of_the_weights_that_are_computed_with(make_recipe, make_run):
    run = make_run(make_recipe(strategy="lora", backbone="test_vit", optimizer="adam", learning_rate=0.01))
    assert run.learner.distance() == 0.0
    start = merge_adapters(run.model).state_dict()
    list(run)
    end = merge_adapters(run.model).state_dict()
    body = [name for name in start if not name.startswith("head.")]
    before, after = (torch.cat([state[name].flatten().double() for name in body]) for state in (start, end))
    assert run.epochs[-1].distance == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)


def test_a_plain_copy_says_the_same_in_the_shapes_of_the_original(adapted, images):
    plain = merge_adapters(adapted)
    with torch.no_grad():
        assert torch.equal(plain(images), adapted(images))
    original = a_vit()
    assert list(plain.state_dict()) == list(original.state_dict())
    assert [each.shape for each in plain.state_dict().values()] == [
        each.shape for each in original.state_dict().values()
    ]
    assert {name: type(module) for name, module in plain.named_modules()} == {
        name: type(module) for name, module in original.named_modules()
    }
    original.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(original(images), adapted(images))


def test_a_plain_copy_leaves_the_network_as_it_is(adapted, images):
    names = list(adapted.state_dict())
    with torch.no_grad():
        before = adapted(images)
        plain = merge_adapters(adapted)
        for parameter in plain.parameters():
            parameter.zero_()
        assert torch.equal(adapted(images), before)
    assert list(adapted.state_dict()) == names
    assert len(adapters_of(adapted)) == 24
    adapted(images).sum().backward()
    assert all(module.up.grad is not None and module.down.grad is not None for module in adapters_of(adapted))


def test_a_plain_copy_of_a_copy_leaves_both_as_they_are(adapted, images):
    other = copy.deepcopy(adapted)
    merge_adapters(other)
    with torch.no_grad():
        assert torch.equal(adapted(images), other(images))


def test_a_plain_copy_draws_nothing_and_keeps_the_mode(adapted):
    adapted.train()
    state = torch.get_rng_state()
    plain = merge_adapters(adapted)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in plain.modules())


def test_a_network_without_adapters_is_its_own_plain_copy():
    model = a_vit()
    assert merge_adapters(model) is model


def test_the_product_is_scaled_alike_at_every_rank():
    for rank in (1, 4):
        adapter = LowRankAdapter(torch.zeros(6, 5), rank)
        assert torch.equal(adapter(torch.ones(6, 5)), torch.ones(6, 5))
        nn.init.ones_(adapter.up)
        nn.init.ones_(adapter.down)
        assert torch.equal(adapter(torch.zeros(6, 5)), torch.full((6, 5), 2.0 * rank))


def test_adapters_are_decayed_and_the_frozen_weights_are_not(make_recipe, make_run):
    run = make_run(make_recipe(strategy="lora", backbone="test_vit", weight_decay=0.3))
    groups = run.state_dict()["optimizer"]["param_groups"]
    decay = {(group["depth"] == 0, group["kind"]): group["weight_decay"] for group in groups}
    assert decay[False, "adapter"] == 0.3
    assert decay[False, "shift"] == 0.0
