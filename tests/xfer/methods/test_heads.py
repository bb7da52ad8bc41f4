"""Every head of the table on every kind of network: a new top, and nothing else changes."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from xfer.methods.heads import HEADS
from xfer.models.params import named_params
from xfer.training.networks import build_network, check_network

NETWORKS = {
    "test_resnet": {"backbone": "test_resnet"},
    "test_efficientnet": {"backbone": "test_efficientnet"},
    "test_vit": {"backbone": "test_vit"},
    "basic_cnn": {"strategy": "small_cnn"},
    "early_cut": {"backbone": "test_resnet", "strategy": "early_cut"},
}

each_head = pytest.mark.parametrize("head", HEADS)
each_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture
def build(make_recipe, weights_of):
    """Builds a network with a head; its random weights are the same in every call."""

    def network(name, head):
        recipe = make_recipe(**NETWORKS[name], head=head)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return build_network(recipe, weights_of(recipe.backbone) if recipe.weights else None).eval()

    return network


def images(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def embeddings_of(model, inputs):
    return model.forward_head(model.forward_features(inputs), pre_logits=True)


@each_head
@each_network
def test_logits_are_the_heads_output_for_the_embeddings(build, head, network):
    model = build(network, head)
    with torch.no_grad():
        embeddings = embeddings_of(model, images())
        logits = model(images())
        assert logits.shape == (2, 3)
        torch.testing.assert_close(model.get_classifier()(embeddings), logits)
    assert not torch.allclose(logits[0], logits[1], atol=1e-7)


@each_head
@each_network
def test_exactly_the_heads_parameters_have_depth_0(build, head, network):
    model = build(network, head)
    depths = {name: param.depth for name, param in named_params(model).items()}
    own = {id(parameter) for parameter in model.get_classifier().parameters()}
    assert {name for name, parameter in model.named_parameters() if id(parameter) in own} == {
        name for name, depth in depths.items() if depth == 0
    }
    assert len({param.blocks for param in named_params(model).values()}) == 1
    reference = named_params(build(network, "linear"))
    body = {name: param for name, param in named_params(model).items() if param.depth}
    assert body == {name: param for name, param in reference.items() if param.depth}


@each_head
@each_network
def test_everything_below_the_head_is_the_same_for_every_head(build, head, network):
    model, reference = build(network, head), build(network, "linear")
    own = {id(tensor) for tensor in reference.get_classifier().parameters()}
    body = {name: tensor for name, tensor in reference.state_dict(keep_vars=True).items() if id(tensor) not in own}
    state = model.state_dict()
    assert len(body) > 5
    assert all(torch.equal(state[name], tensor) for name, tensor in body.items())
    with torch.no_grad():
        assert torch.equal(embeddings_of(model, images()), embeddings_of(reference, images()))


@each_head
def test_a_linear_probe_moves_only_the_head(make_recipe, make_run, head):
    run = make_run(make_recipe(strategy="linear_probe", head=head, epochs=1, learning_rate=0.1))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    list(run)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"classifier.{name}" for name, _ in run.model.classifier.named_parameters()}


# Each of them


def test_the_hidden_layer_has_the_given_width(build):
    first, relu, second = build("test_resnet", {"name": "mlp", "hidden": 7}).fc
    assert (first.in_features, first.out_features, second.in_features, second.out_features) == (96, 7, 7, 3)
    assert isinstance(relu, nn.ReLU)


@pytest.mark.parametrize("scale", [0.5, 16.0, 100.0])
def test_cosine_logits_are_bounded_by_the_scale_and_reach_it(scale):
    head = HEADS["cosine"](cosine_scale=scale)(5, 4)
    embeddings = torch.cat([1e3 * torch.randn(50, 5), head.weight.detach(), -head.weight.detach()])
    logits = head(embeddings)
    assert logits.abs().max() <= scale * (1 + 1e-6)
    torch.testing.assert_close(logits[50:54].diagonal(), torch.full((4,), scale))
    torch.testing.assert_close(logits[54:].diagonal(), torch.full((4,), -scale))


def test_cosine_logits_equal_the_cosines_written_out():
    head = HEADS["cosine"](cosine_scale=3.0)(5, 4)
    embeddings = torch.randn(6, 5)
    expected = [
        [3.0 * (row @ centre / (row.norm() * centre.norm())).item() for centre in head.weight] for row in embeddings
    ]
    torch.testing.assert_close(head(embeddings), torch.tensor(expected))
    torch.testing.assert_close(head(7.0 * embeddings), head(embeddings))
    assert torch.equal(head(torch.zeros(1, 5)), torch.zeros(1, 4))


@each_head
def test_a_new_head_prefers_no_class_and_depends_on_torchs_seed(head):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(HEADS[head]()(64, 10))
    first, same, other = ([parameter.detach() for parameter in head_of_seed.parameters()] for head_of_seed in heads)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    with torch.no_grad():
        shares = heads[0](torch.randn(500, 64)).softmax(dim=1).mean(dim=0)
    assert shares.max() < 0.35


# Refusals


@pytest.mark.parametrize("hidden", [0, -3, 2.5])
def test_a_hidden_width_that_is_not_a_positive_integer_is_refused(make_recipe, hidden):
    with pytest.raises(ValueError, match=f"hidden must be an integer of at least 1, got {hidden}; .* head linear"):
        check_network(make_recipe(head={"name": "mlp", "hidden": hidden}))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_not_positive_and_finite_is_refused(make_recipe, scale):
    with pytest.raises(ValueError, match=f"cosine_scale must be above 0 and finite, got {scale}"):
        check_network(make_recipe(head={"name": "cosine", "cosine_scale": scale}))


@pytest.mark.parametrize("head", [name for name in HEADS if name != "linear"])
@pytest.mark.parametrize(("backbone", "ends_in"), [("resnetv2_18", "Conv2d"), ("dla34", "Conv2d")])
def test_a_network_that_does_not_end_in_one_linear_layer_accepts_no_other_head(make_recipe, backbone, ends_in, head):
    message = f"head {head}(.*) replaces a linear layer, but {backbone} ends in {ends_in}: use head linear"
    with pytest.raises(ValueError, match=message):
        check_network(make_recipe(backbone=backbone, head=head, weights="w"))
    check_network(make_recipe(backbone=backbone, weights="w"))


@pytest.mark.parametrize(("strategy", "term"), [("lp_ft", "none"), ("naive", "arcface")])
def test_choices_that_use_the_head_separately_are_refused_where_head_and_body_do_not_fit(make_recipe, strategy, term):
    subject = "strategy lp_ft" if term == "none" else re.escape("embedding_loss arcface(")
    with pytest.raises(
        ValueError, match=f"{subject}.* needs a head that takes embeddings .* resnetv2_18 ends in Conv2d"
    ):
        check_network(make_recipe(backbone="resnetv2_18", strategy=strategy, embedding_loss=term, weights="w"))
    check_network(make_recipe(backbone="test_resnet", strategy=strategy, embedding_loss=term, weights="w"))
