"""What a frozen half makes of images is computed once, and a run on it comes to what it would have come to without."""

from __future__ import annotations

import pytest
import torch

from xfer.features.feature_cache import FeatureCache
from xfer.features.frozen_features import FrozenFeatures
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


def numbers(run):
    measured = [(each.train_loss, each.val_loss, each.gradient_norm, each.distance) for each in run.epochs]
    return torch.tensor([[*each, epoch.val_accuracy] for each, epoch in zip(measured, run.epochs, strict=True)])


def counted(monkeypatch, method):
    """How often a method is called from here on, as the length of a list."""
    calls = []
    original = getattr(FrozenFeatures, method)
    monkeypatch.setattr(FrozenFeatures, method, lambda self, *args: calls.append(args[-1:]) or original(self, *args))
    return calls


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_vit"])
@pytest.mark.parametrize("strategy", FROZEN)
def test_a_run_on_kept_features_equals_one_on_pixels(strategy, backbone, make_recipe, run_with, monkeypatch):
    recipe = make_recipe(
        backbone=backbone,
        strategy={"name": strategy, **FROZEN[strategy]},
        augmentation="randaugment",
        views=2,
        epochs=4,
        learning_rate=0.003,
    )
    computed = counted(monkeypatch, "_compute")
    shared = run_with(recipe)
    list(shared)
    assert computed, "nothing was kept"
    monkeypatch.setattr(Learner, "frozen_split", lambda self: None)
    alone = run_with(recipe)
    list(alone)
    # test_vit's kernels are chosen by batch size, so features differ in the last bits
    torch.testing.assert_close(numbers(shared), numbers(alone), rtol=1e-3, atol=1e-4)


def test_every_version_is_computed_once_for_all_runs_of_a_storage(make_recipe, run_with, tmp_path, monkeypatch):
    computed = counted(monkeypatch, "_compute")
    for rate in (0.1, 0.01, 0.001):
        recipe = make_recipe(strategy="linear_probe", augmentation="flip", views=2, epochs=5, learning_rate=rate)
        list(run_with(recipe, tmp_path))
    assert computed == [(None,), (0,), (1,)]


@pytest.mark.parametrize(
    "change",
    [{"augmentation": "randaugment"}, {"activation": "mish"}, {"colour": "grey"}, {"images_per_class": 3}],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_features_is_never_a_hit(change, make_recipe, run_with, tmp_path, monkeypatch):
    plain = {"strategy": "linear_probe", "augmentation": "flip", "views": 1, "epochs": 1}
    list(run_with(make_recipe(**plain), tmp_path))
    computed = counted(monkeypatch, "_compute")
    list(run_with(make_recipe(**{**plain, **change}), tmp_path))
    assert (0,) in computed


def test_weights_changed_under_the_same_name_are_never_a_hit(make_recipe, run_with, tmp_path, monkeypatch):
    recipe = make_recipe(strategy="linear_probe", epochs=1)
    list(run_with(recipe, tmp_path))
    computed = counted(monkeypatch, "_compute")
    run = run_with(recipe, tmp_path)
    with torch.no_grad():
        run.model.conv_stem.weight.add_(1e-6)
    list(run)
    assert computed == [(None,)]


@pytest.mark.parametrize(
    "changes",
    [{"mixing": "cutmix"}, {"augmentation": "flip"}, {"strategy": "naive"}, {"batch_norm": "always"}],
    ids=["mixing", "drawn anew", "naive", "batch norm follows"],
)
def test_nothing_is_kept_of_what_changes_in_every_step(changes, make_recipe, run_with, monkeypatch):
    computed = counted(monkeypatch, "_compute")
    list(run_with(make_recipe(**{"strategy": "linear_probe", "epochs": 1, **changes})))
    assert computed == []


@pytest.mark.parametrize("strategy", FROZEN)
def test_stopped_and_resumed_on_kept_features_is_equal_bit_for_bit(strategy, make_recipe, run_with, tmp_path):
    recipe = make_recipe(
        strategy={"name": strategy, **FROZEN[strategy]}, augmentation="flip", views=2, epochs=4, optimizer="adam"
    )
    whole = run_with(recipe, tmp_path / "features")
    list(whole)
    for _ in range(recipe.epochs):
        parts = run_with(recipe, tmp_path / "features", tmp_path / "checkpoints")
        next(iter(parts))
    parts = run_with(recipe, tmp_path / "features", tmp_path / "checkpoints")
    assert torch.equal(numbers(parts), numbers(whole))
    assert parts.evaluate("val") == whole.evaluate("val")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name


def test_a_checkpoint_of_a_probe_holds_its_head_alone(make_recipe, run_with):
    run = run_with(make_recipe(strategy="linear_probe"))
    assert set(run.state_dict()["model"]) == {"classifier.weight", "classifier.bias"}
    assert len(run_with(make_recipe(strategy="naive")).state_dict()["model"]) == len(run.model.state_dict())


def test_versions_do_not_mix_with_batches_that_are_mixed(make_recipe):
    with pytest.raises(ValueError, match="take mixing none, or views none"):
        make_recipe(strategy="linear_probe", mixing="cutmix", views=2)


def test_the_head_of_lp_ft_is_fitted_on_the_features_that_a_probe_has_left(
    make_recipe, run_with, tmp_path, monkeypatch
):
    list(run_with(make_recipe(strategy="linear_probe"), tmp_path))
    computed = counted(monkeypatch, "_compute")
    list(run_with(make_recipe(strategy="lp_ft"), tmp_path))
    assert computed == []


def test_a_store_in_memory_gives_what_was_computed():
    store = FeatureCache()
    rows = store.get_or_compute({"a": 1}, 3, lambda: iter([torch.zeros(2, 4).numpy(), torch.ones(1, 4).numpy()]))
    assert rows.tolist() == [[0] * 4, [0] * 4, [1] * 4]
