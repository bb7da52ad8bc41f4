"""A network is split as high as it is frozen, and both halves in sequence equal the network."""

from __future__ import annotations

import pytest
import timm
import torch

from xfer.feature_extraction.model_split import EMBEDDINGS, split_at_frozen
from xfer.methods.batch_norm import BATCH_NORM_MODES
from xfer.methods.freezing import (
    FreezeFirstBlocks,
    HeadFirst,
    TrainAll,
    TrainingProgress,
    TrainLastBlocks,
    TrainParamKinds,
)
from xfer.models.params import named_params
from xfer.training.learner import set_train_mode

SIZE = 32
NETWORKS = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_mambaout")


def network(name, pace, batch_norm="with_weights", **args):
    fixed = {"img_size": SIZE} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    model = timm.create_model(name, num_classes=3, **fixed, **args)
    params = named_params(model)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(pace(params[parameter_name], TrainingProgress(0, 4)) > 0)
    set_train_mode(model, True, BATCH_NORM_MODES[batch_norm]())
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pace", [HeadFirst(None), TrainLastBlocks(2), FreezeFirstBlocks(1), FreezeFirstBlocks(3)])
def test_both_halves_equal_the_network_and_only_the_upper_one_moves(name, pace):
    torch.manual_seed(0)
    model = network(name, pace)
    split = split_at_frozen(model, SIZE)
    modes = [module.training for module in model.modules()]
    images = torch.rand(3, 3, SIZE, SIZE)
    with torch.no_grad():
        assert [module.training for module in model.modules()] == modes
        torch.testing.assert_close(split.upper.eval()(split.lower.eval()(images)), model.eval()(images))
    assert split.frozen
    assert not any(tensor.requires_grad for tensor in split.frozen)
    moving = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert moving <= {id(parameter) for parameter in split.upper.parameters()}


def test_the_more_is_frozen_the_higher_is_the_split():
    frozen_sizes = [
        sum(tensor.numel() for tensor in split_at_frozen(network("test_resnet", TrainLastBlocks(n)), SIZE).frozen)
        for n in (1, 2, 3)
    ]
    assert frozen_sizes == sorted(frozen_sizes, reverse=True)
    assert len(set(frozen_sizes)) == 3


def test_if_only_the_head_moves_the_split_is_below_the_classifier():
    split = split_at_frozen(network("test_vit", HeadFirst(None)), SIZE)
    assert split.cut_point == EMBEDDINGS
    assert split.lower(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 64)


def test_a_network_without_a_frozen_part_is_not_split():
    assert split_at_frozen(network("test_resnet", TrainAll()), SIZE) is None
    assert split_at_frozen(network("test_vit", TrainParamKinds(("bias", "shift"))), SIZE) is None


def test_a_batch_norm_in_training_mode_is_not_frozen():
    assert split_at_frozen(network("test_resnet", HeadFirst(None), batch_norm="always"), SIZE).cut_point != EMBEDDINGS


def test_dropout_is_not_frozen():
    assert split_at_frozen(network("test_efficientnet", HeadFirst(None), drop_rate=0.5), SIZE) is None
    assert split_at_frozen(network("test_efficientnet", TrainLastBlocks(2), drop_rate=0.5), SIZE) is None


def test_a_network_that_cannot_be_traced_is_not_split_in_the_middle():
    class Untraceable(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images) if images.sum() > 0 else self.inner(-images)

        def get_classifier(self):
            return self.inner.get_classifier()

    assert split_at_frozen(Untraceable(network("test_resnet", TrainLastBlocks(2))), SIZE) is None


def test_a_split_that_differs_from_the_network_is_not_used(monkeypatch):
    model = network("test_resnet", HeadFirst(None))
    monkeypatch.setattr(
        type(model), "forward", lambda self, images: self.forward_head(self.forward_features(images)) + 1
    )
    assert split_at_frozen(model, SIZE) is None
