"""Low-rank adapters: adding them changes no output, only they and the head train, and they merge into the weights."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from xfer.methods.adapters import LowRankAdapter, add_low_rank, merge_adapters
from xfer.models.params import named_params
from xfer.training.learner import Learner

RANK = 3


def build_vit(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_vit", num_classes=5, img_size=32).eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapted():
    """A network whose adapters have moved from their initial value."""
    model = build_vit()
    add_low_rank(model, RANK, model.get_classifier())
    for module in model.modules():
        if isinstance(module, LowRankAdapter):
            nn.init.normal_(module.up, std=0.1)
    return model


def adapters_of(model):
    return [module for module in model.modules() if isinstance(module, LowRankAdapter)]


def test_adding_adapters_does_not_change_the_outputs(images):
    model = build_vit()
    with torch.no_grad():
        before = model(images)
        after = add_low_rank(model, RANK, model.get_classifier())(images)
    assert torch.equal(before, after)


def test_every_linear_layer_below_the_head_gets_an_adapter_and_the_head_none():
    model = build_vit()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "head"]
    add_low_rank(model, RANK, model.get_classifier())
    adapted_layers = [
        name.removesuffix(".parametrizations.weight.0")
        for name, module in model.named_modules()
        if type(module) is LowRankAdapter
    ]
    assert sorted(adapted_layers) == sorted(linear)
    assert len(linear) == 4 * 6


def test_a_layer_no_larger_than_the_rank_gets_no_adapter():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8), head := nn.Linear(8, 2))
    add_low_rank(model, 4, head)
    assert [isinstance(module, nn.utils.parametrize.ParametrizationList) for module in model.modules()].count(True) == 1
    assert nn.utils.parametrize.is_parametrized(model[2])


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
def test_a_network_without_linear_layers_below_its_head_is_refused_with_alternatives(network):
    model = timm.create_model(network, num_classes=3)
    with pytest.raises(
        ValueError, match=r"lora\(rank=3\) adapts linear layers.*use a transformer, or strategy bitfit or train_last"
    ):
        add_low_rank(model, RANK, model.get_classifier())


def test_only_adapters_and_head_move_and_weights_change_by_at_most_the_rank(make_recipe, make_run):
    recipe = make_recipe(
        strategy={"name": "lora", "rank": RANK},
        backbone="test_vit",
        optimizer="adam",
        learning_rate=0.01,
        weight_decay=0,
    )
    run = make_run(recipe)
    start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in merge_adapters(run.model).state_dict().items()}
    list(run)
    end = run.model.state_dict()
    params = named_params(run.model)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name, param in params.items() if param.depth == 0 or param.kind == "adapter"}
    after = merge_adapters(run.model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        *(name for name in before if ("attn" in name or "mlp" in name) and name.endswith("weight")),
        *("head.weight", "head.bias"),
    }
    for name in changed - {"head.weight", "head.bias"}:
        singular = torch.linalg.svdvals((after[name] - before[name]).double())
        assert singular[RANK - 1] > 1e-4 * singular[0] > singular[RANK], name


def test_the_distance_is_that_of_the_merged_weights(make_recipe, make_run, weights_of):
    run = make_run(make_recipe(strategy="lora", backbone="test_vit", optimizer="adam", learning_rate=0.01))
    assert Learner(run.recipe, weights_of("test_vit"), torch.device("cpu")).distance() == 0.0
    start = merge_adapters(run.model).state_dict()
    list(run)
    end = merge_adapters(run.model).state_dict()
    body = [name for name in start if not name.startswith("head.")]
    before, after = (torch.cat([state[name].flatten().double() for name in body]) for state in (start, end))
    assert run.epochs[-1].distance == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)


def test_a_merged_copy_has_the_same_outputs_and_the_original_shapes(adapted, images):
    merged = merge_adapters(adapted)
    with torch.no_grad():
        assert torch.equal(merged(images), adapted(images))
    original = build_vit()
    assert list(merged.state_dict()) == list(original.state_dict())
    assert [tensor.shape for tensor in merged.state_dict().values()] == [
        tensor.shape for tensor in original.state_dict().values()
    ]
    assert {name: type(module) for name, module in merged.named_modules()} == {
        name: type(module) for name, module in original.named_modules()
    }
    original.load_state_dict(merged.state_dict())
    with torch.no_grad():
        assert torch.equal(original(images), adapted(images))


def test_merging_does_not_change_the_adapted_network(adapted, images):
    names = list(adapted.state_dict())
    with torch.no_grad():
        before = adapted(images)
        merged = merge_adapters(adapted)
        for parameter in merged.parameters():
            parameter.zero_()
        assert torch.equal(adapted(images), before)
    assert list(adapted.state_dict()) == names
    assert len(adapters_of(adapted)) == 24
    adapted(images).sum().backward()
    assert all(module.up.grad is not None and module.down.grad is not None for module in adapters_of(adapted))


def test_merging_a_copy_changes_neither_network(adapted, images):
    other = copy.deepcopy(adapted)
    merge_adapters(other)
    with torch.no_grad():
        assert torch.equal(adapted(images), other(images))


def test_merging_draws_no_random_numbers_and_keeps_the_mode(adapted):
    adapted.train()
    state = torch.get_rng_state()
    merged = merge_adapters(adapted)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in merged.modules())


def test_a_network_without_adapters_is_returned_itself():
    model = build_vit()
    assert merge_adapters(model) is model


def test_the_scale_of_the_product_does_not_depend_on_the_rank():
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
