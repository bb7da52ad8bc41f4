"""A network is cut as high as it is frozen, and both halves together are the network."""

from __future__ import annotations

import pytest
import timm
import torch

from xfer.features.model_split import EMBEDDINGS, split_at_frozen
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


def network(name, pace, follows="with_weights", **args):
    fixed = {"img_size": SIZE} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    model = timm.create_model(name, num_classes=3, **fixed, **args)
    params = named_params(model)
    for each, parameter in model.named_parameters():
        parameter.requires_grad_(pace(params[each], TrainingProgress(0, 4)) > 0)
    set_train_mode(model, True, BATCH_NORM_MODES[follows]())
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pace", [HeadFirst(None), TrainLastBlocks(2), FreezeFirstBlocks(1), FreezeFirstBlocks(3)])
def test_both_halves_give_what_the_network_gives_and_only_the_upper_one_moves(name, pace):
    torch.manual_seed(0)
    model = network(name, pace)
    cut = split_at_frozen(model, SIZE)
    modes = [module.training for module in model.modules()]
    images = torch.rand(3, 3, SIZE, SIZE)
    with torch.no_grad():
        assert [module.training for module in model.modules()] == modes
        torch.testing.assert_close(cut.upper.eval()(cut.lower.eval()(images)), model.eval()(images))
    assert cut.frozen
    assert not any(tensor.requires_grad for tensor in cut.frozen)
    moving = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert moving <= {id(parameter) for parameter in cut.upper.parameters()}


def test_the_more_is_frozen_the_higher_is_the_cut():
    heights = [
        sum(tensor.numel() for tensor in split_at_frozen(network("test_resnet", TrainLastBlocks(n)), SIZE).frozen)
        for n in (1, 2, 3)
    ]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_where_the_head_alone_moves_the_cut_is_below_the_classifier():
    cut = split_at_frozen(network("test_vit", HeadFirst(None)), SIZE)
    assert cut.cut_point == EMBEDDINGS
    assert cut.lower(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 64)


def test_a_network_that_moves_as_a_whole_is_not_cut():
    assert split_at_frozen(network("test_resnet", TrainAll()), SIZE) is None
    assert split_at_frozen(network("test_vit", TrainParamKinds(("bias", "shift"))), SIZE) is None


def test_what_follows_the_batch_is_not_frozen():
    assert split_at_frozen(network("test_resnet", HeadFirst(None), follows="always"), SIZE).cut_point != EMBEDDINGS


def test_chance_is_not_frozen():
    assert split_at_frozen(network("test_efficientnet", HeadFirst(None), drop_rate=0.5), SIZE) is None
    assert split_at_frozen(network("test_efficientnet", TrainLastBlocks(2), drop_rate=0.5), SIZE) is None


def test_a_network_that_cannot_be_traced_is_not_cut_in_the_middle():
    class Untraceable(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images) if images.sum() > 0 else self.inner(-images)

        def get_classifier(self):
            return self.inner.get_classifier()

    assert split_at_frozen(Untraceable(network("test_resnet", TrainLastBlocks(2))), SIZE) is None


def test_halves_that_disagree_with_the_network_are_not_believed(monkeypatch):
    model = network("test_resnet", HeadFirst(None))
    monkeypatch.setattr(
        type(model), "forward", lambda self, images: self.forward_head(self.forward_features(images)) + 1
    )
    assert split_at_frozen(model, SIZE) is None
