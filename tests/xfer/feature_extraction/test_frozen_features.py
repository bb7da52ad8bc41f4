"""Features of a frozen half are computed once, and a run on cached features equals one without."""

from __future__ import annotations

import pytest
import torch

from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.run import Run
from xfer.training.learner import Learner

CPU = torch.device("cpu")
FROZEN = {
    "linear_probe": {},
    "early_cut": {"stage": 2},
    "train_last": {"blocks": 2},
    "freeze_first": {"blocks": 3},
    "freeze_then_unfreeze": {"freeze_epochs": 2},
    "freeze_until_converged": {"patience": 1},
    "gradual_unfreeze": {"blocks": 2, "until": 0.7},
    "surgical": {"block": 4},
}


@pytest.fixture
def run_with(pack, weights_of, one_thread):
    def run(recipe, features=None, folder=None):
        return Run(recipe, pack, weights_of(recipe.backbone), CPU, folder, features=FeatureCache(features))

    return run


def metrics(run):
    fields = ("train_loss", "val_loss", "gradient_norm", "distance", "val_accuracy")
    return torch.tensor([[getattr(epoch, field) for field in fields] for epoch in run.epochs])


def record_calls(monkeypatch, method):
    """A list that gets the last argument of every further call of a method."""
    calls = []
    original = getattr(FrozenFeatures, method)
    monkeypatch.setattr(FrozenFeatures, method, lambda self, *args: calls.append(args[-1:]) or original(self, *args))
    return calls


@pytest.mark.parametrize(
    "backbone",
    [
        "test_efficientnet",
        *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.nightly]) for name in ("test_resnet", "test_vit")),
    ],
)
@pytest.mark.parametrize("strategy", FROZEN)
def test_a_run_on_cached_features_equals_one_on_images(strategy, backbone, make_recipe, run_with, monkeypatch):
    recipe = make_recipe(
        backbone=backbone,
        strategy={"name": strategy, **FROZEN[strategy]},
        augmentation="randaugment",
        views=2,
        epochs=4,
        learning_rate=0.003,
    )
    computed = record_calls(monkeypatch, "compute")
    cached = run_with(recipe)
    list(cached)
    assert computed, "nothing was cached"
    monkeypatch.setattr(Learner, "frozen_split", lambda self: None)
    uncached = run_with(recipe)
    list(uncached)
    # The kernels of test_vit depend on the batch size, so features differ in the last bits.
    torch.testing.assert_close(metrics(cached), metrics(uncached), rtol=1e-3, atol=1e-4)


def test_every_view_is_computed_once_for_all_runs_with_a_cache(make_recipe, run_with, tmp_path, monkeypatch):
    computed = record_calls(monkeypatch, "compute")
    for rate in (0.1, 0.01, 0.001):
        recipe = make_recipe(strategy="linear_probe", augmentation="flip", views=2, epochs=5, learning_rate=rate)
        list(run_with(recipe, tmp_path))
    assert computed == [(None,), (0,), (1,)]


@pytest.mark.parametrize(
    "change",
    [{"augmentation": "randaugment"}, {"activation": "mish"}, {"colour": "grey"}, {"images_per_class": 3}],
    ids=lambda change: next(iter(change)),
)
def test_a_recipe_with_other_features_misses_the_cache(change, make_recipe, run_with, tmp_path, monkeypatch):
    plain = {"strategy": "linear_probe", "augmentation": "flip", "views": 1, "epochs": 1}
    list(run_with(make_recipe(**plain), tmp_path))
    computed = record_calls(monkeypatch, "compute")
    list(run_with(make_recipe(**{**plain, **change}), tmp_path))
    assert (0,) in computed


def test_other_weights_of_the_same_name_miss_the_cache(make_recipe, run_with, tmp_path, monkeypatch):
    recipe = make_recipe(strategy="linear_probe", epochs=1)
    list(run_with(recipe, tmp_path))
    computed = record_calls(monkeypatch, "compute")
    run = run_with(recipe, tmp_path)
    with torch.no_grad():
        run.model.conv_stem.weight.add_(1e-6)
    list(run)
    assert computed == [(None,)]


@pytest.mark.parametrize(
    "changes",
    [{"mixing": "cutmix"}, {"augmentation": "flip"}, {"strategy": "naive"}, {"batch_norm": "always"}],
    ids=["mixing", "random augmentation", "naive", "batch norm in training mode"],
)
def test_features_that_change_in_every_step_are_not_cached(changes, make_recipe, run_with, monkeypatch):
    computed = record_calls(monkeypatch, "compute")
    list(run_with(make_recipe(**{"strategy": "linear_probe", "epochs": 1, **changes})))
    assert computed == []


@pytest.mark.parametrize("strategy", FROZEN)
def test_a_resumed_run_on_cached_features_equals_an_uninterrupted_one_bit_for_bit(
    strategy, make_recipe, run_with, tmp_path
):
    recipe = make_recipe(
        strategy={"name": strategy, **FROZEN[strategy]}, augmentation="flip", views=2, epochs=4, optimizer="adam"
    )
    uninterrupted = run_with(recipe, tmp_path / "features")
    list(uninterrupted)
    for _ in range(recipe.epochs):
        resumed = run_with(recipe, tmp_path / "features", tmp_path / "checkpoints")
        next(iter(resumed))
    resumed = run_with(recipe, tmp_path / "features", tmp_path / "checkpoints")
    assert torch.equal(metrics(resumed), metrics(uninterrupted))
    assert resumed.evaluate("val") == uninterrupted.evaluate("val")
    for name, tensor in uninterrupted.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_a_probe_only_holds_its_head(make_recipe, run_with):
    run = run_with(make_recipe(strategy="linear_probe"))
    assert set(run.state_dict()["model"]) == {"classifier.weight", "classifier.bias"}
    assert len(run_with(make_recipe(strategy="naive")).state_dict()["model"]) == len(run.model.state_dict())


def test_views_and_mixing_exclude_each_other(make_recipe):
    with pytest.raises(ValueError, match="use mixing none or views none"):
        make_recipe(strategy="linear_probe", mixing="cutmix", views=2)


def test_the_head_of_lp_ft_is_fitted_on_the_cached_features_of_a_probe(make_recipe, run_with, tmp_path, monkeypatch):
    list(run_with(make_recipe(strategy="linear_probe"), tmp_path))
    computed = record_calls(monkeypatch, "compute")
    list(run_with(make_recipe(strategy="lp_ft"), tmp_path))
    assert computed == []


def test_a_cache_in_memory_returns_what_was_computed():
    cache = FeatureCache()
    rows = cache.get_or_compute({"a": 1}, 3, lambda: iter([torch.zeros(2, 4).numpy(), torch.ones(1, 4).numpy()]))
    assert rows.tolist() == [[0] * 4, [0] * 4, [1] * 4]
