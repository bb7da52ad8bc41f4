"""Features of several stages from one pass, whose last ones are cached bit for bit as a head would cache them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xfer.feature_extraction.extract import earlier_stages, extract_features
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.stage_features import can_share, shared_stage_features
from xfer.run import Run

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]


@pytest.fixture
def frozen_features(pack, weights_of, one_thread, make_recipe, tmp_path):
    def features(name, folder="features", **changes):
        recipe = make_recipe(backbone=name, strategy="linear_probe", epochs=1, **changes)
        run = Run(recipe, pack, weights_of(name), torch.device("cpu"), features=FeatureCache(tmp_path / folder))
        run.set_pace(0)
        return run.frozen_body

    return features


def count_images(features):
    """A list that gets the batch size of every further pass of the network."""
    sizes = []
    first = next(module for module in features.network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    return sizes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cached_rows_are_bit_for_bit_those_of_a_head(name, frozen_features):
    features = frozen_features(name)
    shared_stage_features(features, features.cached_indices[:5], earlier_stages(features.network))
    cached = frozen_features(name)
    sizes = count_images(cached)
    rows = cached.rows(cached.cached_indices)
    assert sizes == []
    other = frozen_features(name, "other")
    assert torch.equal(rows, other.rows(other.cached_indices))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_the_features_are_those_of_a_direct_extraction_whether_or_not_they_are_cached(name, frozen_features):
    features = frozen_features(name)
    indices = features.cached_indices[[1, 7, 4]]
    stages = earlier_stages(features.network)
    expected = extract_features(features.network, features.pack, indices, features.prepare, (*stages, "late"))
    progress = []
    for images in (len(features.cached_indices), len(indices)):  # computed and cached, then read
        features = frozen_features(name)
        sizes = count_images(features)
        shared = shared_stage_features(features, indices, stages, lambda done, total: progress.append((done, total)))
        assert sizes == [images]
        assert progress[-1] == (images, images)
        assert list(shared) == [*stages, "late"]
        for stage in shared:
            np.testing.assert_allclose(shared[stage], expected[stage], rtol=1e-4, atol=1e-5)


def test_only_few_images_that_the_features_include_are_shared(frozen_features):
    features = frozen_features("test_efficientnet")
    count = len(features.cached_indices)
    assert can_share(features, features.cached_indices[:2], count)
    assert not can_share(features, features.cached_indices[:2], count - 1)
    fewer = frozen_features("test_efficientnet", images_per_class=2)
    assert not can_share(fewer, features.cached_indices, count)
