"""Extracted features equal what the network pools at each stage, and come from a single pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xfer.data.loader import iter_batches
from xfer.feature_extraction.extract import earlier_stages, extract_features
from xfer.methods.truncation import TruncatedModel, stage_end_modules
from xfer.models.backbones import Preprocessor, build, input_statistics

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]
INDICES = np.array([7, 0, 30, 12, 3])


def network(weights_of, name):
    model = build(name, 3, 32, weights_of(name)).eval()
    return model, Preprocessor(input_statistics(model), torch.device("cpu"))


def inputs(pack, prepare, indices=INDICES):
    (images, _), *_ = iter_batches(pack, indices, len(indices))
    return prepare(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_late_features_are_the_inputs_of_the_classifier(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    features = extract_features(model, pack, INDICES, prepare)
    assert list(features) == ["late"]
    assert features["late"].dtype == np.float32
    assert features["late"].shape == (5, model.get_classifier().in_features)
    with torch.no_grad():
        logits = model.get_classifier()(torch.from_numpy(features["late"]))
        torch.testing.assert_close(logits, model(inputs(pack, prepare)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_early_features_are_the_output_of_a_stage_averaged_over_positions(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    stages = tuple(range(1, len(stage_end_modules(model)) + 1))
    outputs = []
    features = extract_features(model, pack, INDICES, prepare, stages)
    for stage in stages:
        hook = model.get_submodule(stage_end_modules(model)[stage - 1]).register_forward_hook(
            lambda module, inputs, output: outputs.append(output)
        )
        with torch.no_grad():
            model(inputs(pack, prepare))
        hook.remove()
        maps = outputs.pop()
        if maps.ndim == 3:  # tokens of a ViT: the first is not a position
            maps = maps[:, model.num_prefix_tokens :].transpose(1, 2)[..., None]
        np.testing.assert_allclose(features[stage], maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_stages_are_numbered_as_for_truncation(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    features = extract_features(model, pack, INDICES, prepare, (2,))[2]
    truncated = TruncatedModel(model, stage=2).eval()
    with torch.no_grad():
        expected = truncated.forward_features(inputs(pack, prepare)).mean(dim=(2, 3))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_stages_come_from_one_pass_and_equal_those_extracted_separately(pack, weights_of, name):
    model, prepare = network(weights_of, name)
    batch_sizes = []
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    hook = first.register_forward_hook(lambda module, inputs, output: batch_sizes.append(len(output)))
    joint = extract_features(model, pack, INDICES, prepare, ("late", 2, 1))
    hook.remove()
    assert sum(batch_sizes) == 5
    assert list(joint) == ["late", 2, 1]
    for stage in joint:
        separate = extract_features(model, pack, INDICES, prepare, (stage,))[stage]
        np.testing.assert_allclose(joint[stage], separate, rtol=1e-4, atol=1e-5)


def test_rows_are_in_the_order_of_the_indices_for_any_batch_size(pack, weights_of):
    model, prepare = network(weights_of, "test_resnet")
    calls = []
    expected = extract_features(model, pack, INDICES, prepare, ("late", 1))
    features = extract_features(
        model, pack, INDICES[::-1], prepare, ("late", 1), 2, lambda *counts: calls.append(counts)
    )
    for stage in expected:
        np.testing.assert_allclose(features[stage][::-1], expected[stage], rtol=1e-4, atol=1e-6)
        assert not np.allclose(expected[stage][0], expected[stage][1], rtol=1e-3)
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_the_network_and_the_random_state_do_not_change(pack, weights_of):
    model, prepare = network(weights_of, "test_efficientnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    model.train()
    extract_features(model, pack, INDICES, prepare, ("late", 1))
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("name", "expected"), [("test_resnet", (1, 2, 3, 4)), ("test_convnext", (1, 2, 3)), ("test_vit", (2, 3, 4))]
)
def test_the_earlier_stages_exclude_the_last(weights_of, name, expected):
    assert earlier_stages(network(weights_of, name)[0]) == expected


def test_unknown_stages_and_empty_requests_are_errors(pack, weights_of):
    model, prepare = network(weights_of, "test_resnet")
    for stages in ((0, 1), (6,)):
        with pytest.raises(ValueError, match=r"this network has stages 1 to 5, and late"):
            extract_features(model, pack, INDICES, prepare, stages)
    with pytest.raises(ValueError, match="at least one image and one stage are needed, not 0 and 1"):
        extract_features(model, pack, INDICES[:0], prepare)
    with pytest.raises(ValueError, match="not 5 and 0"):
        extract_features(model, pack, INDICES, prepare, ())
