"""Spread of features: norm, share of variance and number of directions, on examples with known values."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from tests.xfer.advice.test_advisor import profile
from xfer.advice.dataset_profile import profile_from_dict
from xfer.measure.feature_spread import FeatureSpread, feature_spread


def test_points_on_the_axes_have_known_values():
    spread = feature_spread(np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]]))
    assert spread == FeatureSpread(norm=3.0, variance_share=1.0, dimensions=pytest.approx(2.0))


def test_far_from_the_origin_little_of_the_norm_is_variance():
    spread = feature_spread(np.array([[9.0, 1.0], [9.0, -1.0]]))
    assert spread.variance_share == pytest.approx(1 / 82)
    assert spread.dimensions == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(50, 4), (6, 30)], ids=["more images", "more features"])
def test_dimensions_follow_from_the_eigenvalues_for_either_gram_matrix(shape):
    features = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))
    assert feature_spread(features).dimensions == pytest.approx(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())


@pytest.mark.parametrize("features", [np.ones((5, 3)), np.ones((1, 3)), np.ones(3)], ids=["equal", "one", "no matrix"])
def test_features_that_do_not_differ_are_refused(features):
    with pytest.raises(ValueError, match="two different rows"):
        feature_spread(features)


def test_a_profile_of_this_or_an_earlier_version_survives_json():
    original = profile(spread=FeatureSpread(1.5, 0.25, 7.0))
    plain = json.loads(json.dumps(asdict(original)))
    assert profile_from_dict(plain) == original
    del plain["spread"]
    assert profile_from_dict(plain) == profile()
    with pytest.raises((KeyError, TypeError)):
        profile_from_dict({"classes": 3})
