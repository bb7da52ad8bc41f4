"""Truncated networks: the remaining part computes what it did before."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from xfer.methods.truncation import TruncatedModel, drop_stages, stage_end_modules
from xfer.models.params import named_params
from xfer.training import networks

STAGES = {"test_resnet": 5, "test_efficientnet": 5, "test_vit": 6}
each_network = pytest.mark.parametrize("network", STAGES)
DO_NOT_FIT = r"drop_early\(stage={stage}\): the stages above do not accept .*early_cut"


def build(network, classes=5):
    """A network with the same random weights at every call, and batch norm statistics other than 0 and 1."""
    size = {"img_size": 32} if network == "test_vit" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = timm.create_model(network, num_classes=classes, **size)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def stage_output(network, model, images, stage):
    """The output of a stage [N, D, h, w], block by block."""
    with torch.no_grad():
        if network == "test_resnet":
            x = model.act1(model.bn1(model.conv1(images)))
            if stage == 1:
                return x
            x = model.maxpool(x)
            for layer in (model.layer1, model.layer2, model.layer3, model.layer4)[: stage - 1]:
                x = layer(x)
            return x
        if network == "test_efficientnet":
            return model.blocks[:stage](model.bn1(model.conv_stem(images)))
        x = model.patch_embed(images).flatten(1, 2)
        x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), dim=1) + model.pos_embed
        for block in model.blocks[:stage]:
            x = block(x)
        return x[:, 1:].transpose(1, 2).unflatten(2, (2, 2))


# early_cut


@each_network
def test_a_truncated_network_is_a_linear_classifier_on_the_normalised_mean_of_a_stage(network, images):
    for stage in range(1, STAGES[network]):
        full = build(network)
        expected = stage_output(network, full, images, stage)
        cut = TruncatedModel(build(network), stage).eval()
        embeddings = functional.layer_norm(expected.mean(dim=(2, 3)), (expected.shape[1],))
        with torch.no_grad():
            torch.testing.assert_close(cut.forward_features(images), expected)
            torch.testing.assert_close(cut.forward_head(expected, pre_logits=True), embeddings)
            logits = embeddings @ cut.classifier.weight.T + cut.classifier.bias
            torch.testing.assert_close(cut(images), logits)
        assert logits.shape == (2, 5)
        assert cut.num_features == expected.shape[1]


@each_network
def test_the_stages_are_timms(network):
    assert len(stage_end_modules(build(network))) == STAGES[network]


@each_network
def test_everything_above_the_stage_is_removed(network):
    sizes = [
        sum(p.numel() for p in TruncatedModel(build(network), stage).parameters())
        for stage in range(1, STAGES[network])
    ]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < sum(p.numel() for p in build(network).parameters())
    names = TruncatedModel(build("test_efficientnet"), 2).state_dict()
    assert not [name for name in names if name.startswith(("body.blocks.2", "body.conv_head", "body.classifier"))]
    assert [name for name in names if name.startswith("body.blocks.1")]


@each_network
def test_the_order_of_blocks_is_that_of_the_full_network_below_the_new_head(network):
    full = named_params(build(network))
    cut = named_params(TruncatedModel(build(network), 2))
    assert {name for name, param in cut.items() if param.depth == 0} == {"classifier.weight", "classifier.bias"}
    below = {name: param for name, param in cut.items() if param.depth > 0}
    assert {param.depth for param in below.values()} == set(range(1, max(param.depth for param in below.values()) + 1))
    assert {name: param.height for name, param in below.items()} == {
        name: full[name.removeprefix("body.")].height for name in below
    }
    assert {name: param.kind for name, param in below.items()} == {
        name: full[name.removeprefix("body.")].kind for name in below
    }


@each_network
@pytest.mark.parametrize("stage", [-1, 0, "last", "beyond"])
def test_a_missing_or_last_stage_is_refused_with_the_valid_ones(make_recipe, network, stage):
    last = STAGES[network]
    stage = {"last": last, "beyond": last + 1}.get(stage, stage)
    recipe = make_recipe(strategy={"name": "early_cut", "stage": stage}, backbone=network)
    message = rf"early_cut\(stage={stage}\): .* {last} stages, so stage must be from 1 to {last - 1}; .*linear_"
    with pytest.raises(ValueError, match=message):
        networks.check_network(recipe)


@pytest.mark.parametrize("strategy", ["early_cut", "drop_early"])
def test_a_network_without_known_stages_is_refused(make_recipe, strategy):
    recipe = make_recipe(strategy=strategy, backbone="basic_cnn", weights="e" * 64)
    with pytest.raises(ValueError, match="timm does not define the stages of BasicCNN, so it cannot be cut"):
        networks.check_network(recipe)


def test_a_truncated_network_accepts_every_kind_of_head(make_recipe):
    for head in ("linear", "mlp", "cosine"):
        networks.check_network(make_recipe(strategy="early_cut", head=head))


# drop_early


@pytest.mark.parametrize("stage", range(1, 6))
def test_a_vit_without_its_early_blocks_equals_one_with_only_the_others(images, stage):
    full, dropped = build("test_vit"), drop_stages(build("test_vit"), stage, 32)
    with torch.no_grad():
        before = full(images)
        del full.blocks[:stage]
        assert len(full.blocks) == 6 - stage
        assert torch.equal(dropped(images), full(images))
        assert not torch.allclose(dropped(images), before)
    assert sum(p.numel() for p in dropped.parameters()) == sum(p.numel() for p in full.parameters())
    assert {param.blocks for param in named_params(dropped).values()} == {7 - stage}


@pytest.mark.parametrize(
    ("network", "stage", "removed"),
    [("test_resnet", 2, ("layer1.",)), ("test_efficientnet", 2, ("blocks.0.", "blocks.1."))],  # stages of equal width
)
def test_a_convolutional_network_whose_stages_fit_works_without_the_early_ones(images, network, stage, removed):
    dropped = drop_stages(build(network), stage, 32)
    full = build(network)
    assert full.state_dict().keys() - dropped.state_dict().keys() == {
        name for name in full.state_dict() if name.startswith(removed)
    }
    for prefix in removed:
        full.set_submodule(prefix.rstrip("."), nn.Identity())
    with torch.no_grad():
        assert torch.equal(dropped(images), full(images))


@pytest.mark.parametrize(
    ("network", "stage", "reason"),
    [
        ("test_resnet", 1, r"drop_early\(stage=1\): that stage is part of this network's stem, which cannot"),
        ("test_efficientnet", 1, DO_NOT_FIT.format(stage=1)),
        ("test_resnet", 3, DO_NOT_FIT.format(stage=3)),
        ("test_resnet", 4, DO_NOT_FIT.format(stage=4)),
        ("test_efficientnet", 4, DO_NOT_FIT.format(stage=4)),
        *(
            (name, stage, "so stage must be from 1 to")
            for name, last in STAGES.items()
            for stage in (0, last, last + 1)
        ),
    ],
)
def test_stages_that_cannot_be_removed_are_refused_with_the_reason(make_recipe, network, stage, reason):
    recipe = make_recipe(strategy={"name": "drop_early", "stage": stage}, backbone=network)
    with pytest.raises(ValueError, match=reason):
        networks.check_network(recipe)


def test_the_test_whether_stages_fit_changes_neither_mode_nor_statistics():
    model = build("test_resnet").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drop_stages(model, 2, 32)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("strategy", "network"), [("early_cut", "test_resnet"), ("drop_early", "test_vit")])
def test_removed_stages_cost_nothing(make_recipe, make_run, strategy, network):
    cut, full = (
        make_run(make_recipe(strategy={"name": strategy, "stage": 2}, backbone=network)),
        make_run(make_recipe(strategy="linear_probe", backbone=network)),
    )
    assert cut.record().flops < full.record().flops
    assert cut.record().parameters < full.record().parameters
