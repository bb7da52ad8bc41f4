"""Frozen features: what the network itself would pool, from every stage, in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xfer.data.loader import iter_batches
from xfer.features.extract import earlier_stages, extract_features
from xfer.methods.truncation import TruncatedModel, stage_end_modules
from xfer.models.backbones import Preprocessor, build, input_statistics

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]
PLACES = np.array([7, 0, 30, 12, 3])


def network(weights_of, name):
    model = build(name, 3, 32, weights_of(name)).eval()
    return model, Preprocessor(input_statistics(model), torch.device("cpu"))


def inputs(pack, prepare, places=PLACES):
    (images, _), *_ = iter_batches(pack, places, len(places))
    return prepare(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_late_features_are_what_the_classifier_is_asked_with(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    found = extract_features(model, pack, PLACES, prepare)
    assert list(found) == ["late"]
    assert found["late"].dtype == np.float32
    assert found["late"].shape == (5, model.get_classifier().in_features)
    with torch.no_grad():
        logits = model.get_classifier()(torch.from_numpy(found["late"]))
        torch.testing.assert_close(logits, model(inputs(pack, prepare)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_early_features_are_a_stages_output_averaged_over_the_picture(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    stages = tuple(range(1, len(stage_end_modules(model)) + 1))
    outputs = []
    found = extract_features(model, pack, PLACES, prepare, stages)
    for stage in stages:
        hook = model.get_submodule(stage_end_modules(model)[stage - 1]).register_forward_hook(
            lambda module, given, output: outputs.append(output)
        )
        with torch.no_grad():
            model(inputs(pack, prepare))
        hook.remove()
        maps = outputs.pop()
        if maps.ndim == 3:  # a ViT's tokens: the first is no place in the picture
            maps = maps[:, model.num_prefix_tokens :].transpose(1, 2)[..., None]
        np.testing.assert_allclose(found[stage], maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_stage_has_the_number_under_which_the_network_can_be_cut_there(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    found = extract_features(model, pack, PLACES, prepare, (2,))[2]
    cut = TruncatedModel(model, stage=2).eval()
    with torch.no_grad():
        expected = cut.forward_features(inputs(pack, prepare)).mean(dim=(2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_stages_come_from_one_pass_and_are_those_that_one_alone_gives(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    seen = []
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    hook = first.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    together = extract_features(model, pack, PLACES, prepare, ("late", 2, 1))
    hook.remove()
    assert sum(seen) == 5
    assert list(together) == ["late", 2, 1]
    for stage in together:
        alone = extract_features(model, pack, PLACES, prepare, (stage,))[stage]
        np.testing.assert_allclose(together[stage], alone, rtol=1e-4, atol=1e-5)


def test_rows_stand_in_the_order_asked_for_whatever_the_batches(pack, weights_of):
    model, prepare = network(weights_of, "test_resnet")
    told = []
    whole = extract_features(model, pack, PLACES, prepare, ("late", 1))
    found = extract_features(model, pack, PLACES[::-1], prepare, ("late", 1), 2, lambda *done: told.append(done))
    for stage in whole:
        np.testing.assert_allclose(found[stage][::-1], whole[stage], rtol=1e-4, atol=1e-6)
        assert not np.allclose(whole[stage][0], whole[stage][1], rtol=1e-3)
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_the_network_and_the_state_of_chance_stay_as_they_are(pack, weights_of):
    model, prepare = network(weights_of, "test_efficientnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chance = torch.get_rng_state()
    model.train()
    extract_features(model, pack, PLACES, prepare, ("late", 1))
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize(
    ("name", "expected"), [("test_resnet", (1, 2, 3, 4)), ("test_convnext", (1, 2, 3)), ("test_vit", (2, 3, 4))]
)
def test_the_earlier_stages_leave_out_the_last(weights_of, name, expected):
    assert earlier_stages(network(weights_of, name)[0]) == expected


def test_stages_that_are_not_there_and_requests_for_nothing_are_refused(pack, weights_of):
    model, prepare = network(weights_of, "test_resnet")
    for stages in ((0, 1), (6,)):
        with pytest.raises(ValueError, match=r"this network has 1 to 5, and late"):
            extract_features(model, pack, PLACES, prepare, stages)
    with pytest.raises(ValueError, match="features of 0 images at 1 stages"):
        extract_features(model, pack, PLACES[:0], prepare)
    with pytest.raises(ValueError, match="features of 5 images at 0 stages"):
        extract_features(model, pack, PLACES, prepare, ())
