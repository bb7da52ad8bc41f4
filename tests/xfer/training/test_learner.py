"""Model, loss and optimizer of a recipe: learning rates, step statistics, batch norm and embedding losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from xfer.feature_extraction.model_split import Embedder
from xfer.methods.batch_norm import BATCH_NORM_MODES
from xfer.methods.embedding_losses import EMBEDDING_LOSSES
from xfer.methods.freezing import TrainingProgress
from xfer.recipe import recipe_from_dict
from xfer.training import checkpoints

NETWORKS = ("test_resnet", "test_efficientnet", "test_vit")
EMBEDDING_LOSS_NAMES = sorted(set(EMBEDDING_LOSSES) - {"none"})
CONSTANT = {"schedule": "constant", "optimizer": "sgd"}


def snapshot(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# Learning rates


@pytest.mark.parametrize("strategy", ["naive", "layer_decay", "l2_sp"])
def test_the_body_rate_slows_everything_below_the_head_and_nothing_else(make_recipe, make_run, strategy):
    def rates(body_rate):
        run = make_run(make_recipe(**CONSTANT, strategy=strategy, learning_rate=0.04, body_rate=body_rate))
        next(iter(run))
        groups = run.state_dict()["optimizer"]["param_groups"]
        return {(group["depth"], group["kind"]): group["lr"] for group in groups}

    full, slow = rates(1.0), rates(0.1)
    assert {rate for (depth, _), rate in full.items() if depth == 0} == {0.04}
    assert slow == pytest.approx({group: rate * (0.1 if group[0] else 1) for group, rate in full.items()})


def test_the_first_step_of_the_body_is_proportional_to_the_body_rate(make_recipe, make_run):
    def step(body_rate):
        recipe = make_recipe(**CONSTANT, body_rate=body_rate, batch_size=24, weight_decay=0, learning_rate=0.5)
        run = make_run(recipe)
        start = dict(snapshot(run))
        next(iter(run))
        return {name: tensor.detach() - start[name] for name, tensor in run.model.named_parameters()}

    full, slow = step(1.0), step(0.25)
    for name, moved in full.items():
        expected = moved if name.startswith("classifier.") else 0.25 * moved
        torch.testing.assert_close(slow[name], expected, atol=2e-6, rtol=1e-3)


# Step statistics


def test_gradient_norms_are_logged_in_the_first_epoch_and_average_to_its_gradient_norm(make_recipe, make_run):
    run = make_run(make_recipe(epochs=3))
    first, *later = list(run)
    assert len(first.gradient_norms) == 3  # 24 images in batches of 8
    assert first.gradient_norm == math.fsum(first.gradient_norms) / 3
    assert len(set(first.gradient_norms)) == 3
    assert [epoch.gradient_norms for epoch in later] == [(), ()]


def test_gradient_norms_are_logged_for_the_first_steps_only(make_recipe, make_run, monkeypatch):
    all_norms = next(iter(make_run(make_recipe(batch_size=2)))).gradient_norms
    monkeypatch.setattr("xfer.training.epochs.LOGGED_GRADIENT_NORMS", 5)
    first_norms = next(iter(make_run(make_recipe(batch_size=2)))).gradient_norms
    assert (len(all_norms), first_norms) == (12, all_norms[:5])


@pytest.mark.parametrize("strategy", ["scratch", "linear_probe", "naive"])
def test_the_start_accuracy_is_measured_before_the_first_step(make_recipe, make_run, strategy):
    recipe = make_recipe(strategy=strategy, epochs=2, optimizer="adam", learning_rate=0.01)
    start = make_run(recipe).evaluate("val").accuracy
    run = make_run(recipe)
    assert run.record().start_accuracy is None
    for _ in run:
        assert run.record().start_accuracy == start


def test_a_resumed_run_keeps_its_start_accuracy(make_recipe, make_run, tmp_path):
    recipe = make_recipe(strategy="lp_ft")
    run = make_run(recipe, tmp_path)
    next(iter(run))
    assert run.record().start_accuracy is not None
    assert make_run(recipe, tmp_path).record().start_accuracy == run.record().start_accuracy


def test_the_distance_starts_at_zero_and_grows(make_recipe, make_run):
    run = make_run(make_recipe(epochs=3, learning_rate=0.003))
    assert run.learner.distance() == 0.0
    distances = [epoch.distance for epoch in run]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_a_resumed_run_measures_distance_from_the_same_start(make_recipe, make_run, tmp_path):
    recipe = make_recipe(epochs=3)
    uninterrupted = [epoch.distance for epoch in make_run(recipe)]
    next(iter(make_run(recipe, tmp_path)))
    assert [epoch.distance for epoch in make_run(recipe, tmp_path)] == uninterrupted[1:]


# Training images


def test_images_per_class_limits_the_training_part_only(make_recipe, make_run):
    full, few = make_run(make_recipe()), make_run(make_recipe(images_per_class=3))
    labels = full.pack.labels
    assert [(labels[few.split.train] == label).sum() for label in range(3)] == [3, 3, 3]
    assert set(few.split.train) < set(full.split.train)
    for part in ("val", "test"):
        assert few.split.of(part).tolist() == full.split.of(part).tolist()
    assert len(next(iter(few)).gradient_norms) == 1  # nine images in batches of eight: the last one is left out


# Batch norm


def running_statistics(run):
    return {name: tensor.clone() for name, tensor in run.model.named_buffers() if "running" in name}


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("batch_norm", BATCH_NORM_MODES)
@pytest.mark.parametrize("strategy", ["linear_probe", "naive"])
def test_running_statistics_are_updated_as_batch_norm_says(make_recipe, make_run, network, batch_norm, strategy):
    updates = {"with_weights": strategy == "naive", "frozen": False, "always": True}
    run = make_run(make_recipe(strategy=strategy, backbone=network, batch_norm=batch_norm, epochs=1))
    before = running_statistics(run)
    list(run)
    after = running_statistics(run)
    assert before
    assert {torch.equal(before[name], after[name]) for name in before} == {not updates[batch_norm]}


def test_dropout_is_off_in_the_frozen_part_and_on_above_it(make_recipe, make_run):
    run = make_run(make_recipe(strategy={"name": "freeze_first", "blocks": 3}, backbone_args={"drop_path_rate": 0.5}))
    next(iter(run))
    run.learner.set_pace(TrainingProgress(1, 2))
    modes = {name: module.training for name, module in run.model.named_modules() if isinstance(module, nn.Sequential)}
    assert [modes[f"blocks.{stage}"] for stage in range(5)] == [False, False, True, True, True]


# Embedding losses


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("embedding_loss", EMBEDDING_LOSS_NAMES)
def test_every_embedding_loss_trains_every_network(make_recipe, make_run, embedding_loss, network):
    plain = make_run(make_recipe(backbone=network, epochs=1))
    run = make_run(make_recipe(backbone=network, epochs=1, embedding_loss=embedding_loss))
    assert_same(snapshot(run), snapshot(plain))
    (epoch,), (without,) = list(run), list(plain)
    assert math.isfinite(epoch.train_loss)
    assert epoch.train_loss > without.train_loss or embedding_loss == "triplet"  # may find no triplets
    if embedding_loss != "triplet":
        body = next(name for name, parameter in run.model.named_parameters() if parameter.ndim == 4)
        assert not torch.equal(run.model.state_dict()[body], plain.model.state_dict()[body])
    assert run.record().parameters == plain.record().parameters
    assert run.record().trainable_parameters == plain.record().trainable_parameters


@pytest.mark.parametrize("embedding_loss", EMBEDDING_LOSS_NAMES)
def test_an_embedding_loss_with_a_tiny_weight_changes_nothing(make_recipe, make_run, embedding_loss):
    changes = {"backbone_args": {"drop_rate": 0.3}, "augmentation": "flip", "epochs": 2}
    plain = make_run(make_recipe(**changes))
    weighted = make_run(make_recipe(**changes, embedding_loss={"name": embedding_loss, "weight": 1e-30}))
    assert [epoch.train_loss for epoch in plain] == [epoch.train_loss for epoch in weighted]
    assert_same(snapshot(plain), snapshot(weighted))


@pytest.mark.parametrize(("strategy", "body_rate"), [("naive", 0.5), ("linear_probe", 1.0)])
def test_the_centres_of_arcface_have_the_heads_learning_rate_and_weight_decay(
    make_recipe, make_run, strategy, body_rate
):
    choices = {"strategy": strategy, "body_rate": body_rate, "embedding_loss": "arcface"}
    recipe = make_recipe(**CONSTANT, **choices, learning_rate=0.02, weight_decay=0.3)
    run = make_run(recipe)
    (centres,) = run.learner.embedding_loss_module.parameters()
    assert centres.shape == (256, 3)
    before = centres.detach().clone()
    next(iter(run))
    assert not torch.equal(centres, before)
    group = next(group for group in run.learner.optimizer.param_groups if group["params"][0] is centres)
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)


@pytest.mark.parametrize("strategy", ["freeze_then_unfreeze", "lp_ft"])
@pytest.mark.parametrize(
    "optimizer",
    ["sgd", *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.nightly]) for name in ("ranger", "lamb"))],
)
def test_the_centres_of_arcface_are_restored_from_the_checkpoint(make_recipe, make_run, tmp_path, strategy, optimizer):
    recipe = make_recipe(strategy=strategy, optimizer=optimizer, embedding_loss="arcface", epochs=4)
    uninterrupted = make_run(recipe)
    list(uninterrupted)
    run = make_run(recipe, tmp_path)
    start = run.learner.embedding_loss_module.W.detach().clone()
    next(iter(run))
    saved = checkpoints.load(tmp_path)["embedding_loss"]["W"]
    assert torch.equal(saved, run.learner.embedding_loss_module.W)
    assert not torch.equal(saved, start)
    for epochs in (2, 3, 4):
        resumed = make_run(recipe, tmp_path)
        assert next(iter(resumed)).epoch == epochs
    assert_same(snapshot(resumed), snapshot(uninterrupted))
    assert torch.equal(resumed.learner.embedding_loss_module.W, uninterrupted.learner.embedding_loss_module.W)


@pytest.mark.parametrize("embedding_loss", ["contrastive", "triplet"])
def test_a_run_with_an_embedding_loss_without_parameters_can_be_resumed(
    make_recipe, make_run, tmp_path, embedding_loss
):
    recipe = make_recipe(embedding_loss=embedding_loss)
    uninterrupted = make_run(recipe)
    list(uninterrupted)
    next(iter(make_run(recipe, tmp_path)))
    resumed = make_run(recipe, tmp_path)
    list(resumed)
    assert_same(snapshot(resumed), snapshot(uninterrupted))


@pytest.mark.parametrize("embedding_loss", EMBEDDING_LOSS_NAMES)
@pytest.mark.parametrize("mixing", ["cutmix", "mixup"])
def test_embedding_losses_and_mixing_exclude_each_other(make_recipe, embedding_loss, mixing):
    with pytest.raises(
        ValueError, match=f"embedding_loss {embedding_loss}.* needs one class per image, but mixing {mixing}"
    ):
        make_recipe(embedding_loss=embedding_loss, mixing=mixing)
    assert recipe_from_dict({**make_recipe(embedding_loss=embedding_loss).as_dict(), "mixing": {"name": "none"}})


def test_the_embedding_loss_gets_the_inputs_of_the_head(make_recipe, make_run, monkeypatch):
    run = make_run(make_recipe(embedding_loss="contrastive", strategy="linear_probe", batch_size=24, epochs=1))
    calls = []
    monkeypatch.setattr(
        run.learner.embedding_loss_module, "forward", lambda embeddings, labels: calls.append((embeddings, labels)) or 0
    )
    list(run)
    (embeddings, labels), *further_calls = calls
    assert further_calls == []
    assert sorted(labels.tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    (batch,) = run.inputs.evaluation_batches(run.split.train)
    with torch.no_grad():
        expected = Embedder(run.model.eval())(run.inputs.transform.prepare(batch[0]))
    actual, expected = (rows[rows.sum(dim=1).argsort()] for rows in (embeddings.detach(), expected))
    torch.testing.assert_close(actual, expected)
