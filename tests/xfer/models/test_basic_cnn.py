"""The plain network without pretraining: its size, and the interface of timm's networks."""

from __future__ import annotations

import pytest
import timm
import torch

from xfer.models import backbones
from xfer.models.basic_cnn import BasicCNN
from xfer.recipe import recipe_from_dict


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_it_has_the_size_of_the_plain_network_in_source_000():
    model = BasicCNN(num_classes=10)
    convolutions = (3 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 96
    assert count_parameters(model) == convolutions + (96 * 25 + 1) * 328 + (328 + 1) * 10 == 865_602
    with torch.device("meta"):
        large = timm.create_model("efficientnet_b0", num_classes=10)
    assert count_parameters(large) / count_parameters(model) == pytest.approx(4.65, rel=0.01)


@pytest.mark.parametrize("side", [8, 32, 61, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_and_head_together_equal_the_network_at_any_size(side, channels):
    model = BasicCNN(num_classes=4, in_chans=channels).eval()
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        features = model.forward_features(images)
        embeddings = model.forward_head(features, pre_logits=True)
        assert features.shape == (2, 96, 5, 5)
        assert embeddings.shape == (2, model.num_features)
        assert torch.equal(model.get_classifier()(embeddings), model(images))
        assert torch.equal(model.forward_head(features), model(images))


def test_it_is_a_backbone_like_those_of_timm():
    backbones.check_name("basic_cnn")
    assert isinstance(backbones.build("basic_cnn", 3, 32), BasicCNN)
    assert backbones.default_image_size("basic_cnn") == 64
    assert backbones.input_statistics(BasicCNN(2)).mean == (0.5, 0.5, 0.5)


def test_it_refuses_weights_and_unknown_arguments(weights):
    with pytest.raises(ValueError, match="basic_cnn is not a pretrained network: it takes no weights"):
        backbones.build("basic_cnn", 3, 32, weights)
    with pytest.raises(ValueError, match=r"basic_cnn cannot be built with these arguments: .*drop_path_rate"):
        backbones.build("basic_cnn", 3, 32, args={"drop_path_rate": 0.1})


def test_the_small_cnn_strategy_refuses_another_backbone(make_recipe):
    plain = make_recipe(strategy="small_cnn").as_dict()
    assert plain["backbone"] == "basic_cnn"
    with pytest.raises(ValueError, match="strategy small_cnn needs backbone basic_cnn, got test_resnet"):
        recipe_from_dict({**plain, "backbone": "test_resnet"})


def test_it_can_be_trained_from_random_weights_by_name(make_recipe, make_run):
    run = make_run(
        make_recipe(strategy="scratch", backbone="basic_cnn", optimizer="adam", learning_rate=0.001, epochs=6)
    )
    losses = [epoch.train_loss for epoch in run]
    assert losses[-1] < losses[0]
