"""A run can stop, be killed and resume with the same result, and fails with clear errors."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from tests.xfer.conftest import MEASURED_FIELDS
from xfer.data.image_folder import folder as folder_source
from xfer.data.loader import iter_batches
from xfer.data.pack import build_pack
from xfer.methods.augmentations import AUGMENTATIONS
from xfer.methods.losses import LOSSES
from xfer.methods.optimizers import OPTIMIZERS
from xfer.methods.schedules import SCHEDULES
from xfer.methods.strategies import STRATEGIES
from xfer.records import as_dict
from xfer.run import Run
from xfer.training import checkpoints
from xfer.training.epochs import DivergedError

CPU = torch.device("cpu")
BACKBONE = "test_efficientnet"
RANDOM = {  # all sources of randomness
    "augmentation": "randaugment",
    "mixing": "cutmix",
    "backbone_args": {"drop_rate": 0.3, "drop_path_rate": 0.2},
}


def without_measurements(epochs):
    return [{name: value for name, value in as_dict(epoch).items() if name not in MEASURED_FIELDS} for epoch in epochs]


def optimizer_state(run):
    state = run.state_dict()["optimizer"]
    return {(index, name): value for index, values in state["state"].items() for name, value in values.items()}


def optimizer_groups(run):
    """In JSON's types, because a checkpoint turns tuples into lists. Some optimizers count steps in a tensor."""
    return json.loads(json.dumps(run.state_dict()["optimizer"]["param_groups"], default=torch.Tensor.item))


def equal_bit_for_bit(first, second):
    """Whether two tensors or plain values are equal."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first == second


def assert_equal_bit_for_bit(first, second):
    for kind, one, other in (
        ("model", first.model.state_dict(), second.model.state_dict()),
        ("optimizer", optimizer_state(first), optimizer_state(second)),
    ):
        assert one.keys() == other.keys(), kind
        assert [name for name in one if not equal_bit_for_bit(one[name], other[name])] == [], kind
    assert optimizer_groups(first) == optimizer_groups(second)
    assert without_measurements(first.epochs) == without_measurements(second.epochs)
    assert first.evaluate("test") == second.evaluate("test")


def train(run, epochs):
    """Train some epochs, then leave the loop."""
    end = len(run.epochs) + epochs
    for epoch in run:
        if epoch.epoch == end:
            break


def random_recipe(strategy, network=BACKBONE):
    """Arguments of a recipe with all sources of randomness."""
    network = "test_vit" if strategy in ("lora", "drop_early") else network  # the other two do not support them
    args = {} if strategy == "small_cnn" else RANDOM["backbone_args"]  # it has its own dropout
    return {**RANDOM, "strategy": strategy, "backbone": network, "backbone_args": args, "batch_size": 12, "epochs": 4}


def assert_resumed_equals_uninterrupted(make_recipe, make_run, folder, **changes):
    """A new Run for every epoch, each resumed from the last checkpoint, equals a single Run bit for bit."""
    recipe = make_recipe(**changes)
    uninterrupted = make_run(recipe)
    list(uninterrupted)
    for done in range(recipe.epochs):
        run = make_run(recipe, folder)
        assert len(run.epochs) == done
        assert next(iter(run)).epoch == done + 1  # and this Run is abandoned
    resumed = make_run(recipe, folder)
    assert list(resumed) == []
    assert resumed.resumed_at == tuple(range(1, recipe.epochs + 1))
    assert_equal_bit_for_bit(resumed, uninterrupted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stopped_after_every_epoch_equals_uninterrupted(make_recipe, make_run, tmp_path, strategy):
    assert_resumed_equals_uninterrupted(make_recipe, make_run, tmp_path, **random_recipe(strategy))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"small_cnn", "lora", "drop_early"}))
def test_stopped_after_every_epoch_equals_uninterrupted_on_other_networks(
    make_recipe, make_run, tmp_path, strategy, network
):
    assert_resumed_equals_uninterrupted(make_recipe, make_run, tmp_path, **random_recipe(strategy, network))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stopped_after_every_epoch_equals_uninterrupted_with_every_optimizer(
    make_recipe, make_run, tmp_path, optimizer
):
    # Eight steps include one of Lookahead's, which come every six steps.
    changes = {**random_recipe("freeze_then_unfreeze"), "optimizer": optimizer, "learning_rate": 0.003}
    assert_resumed_equals_uninterrupted(make_recipe, make_run, tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        "test_resnet",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("test_vit", "test_convnext", "test_nfnet")),
    ],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stopped_after_every_epoch_equals_uninterrupted_with_every_optimizer_on_other_networks(
    make_recipe, make_run, tmp_path, network, optimizer
):
    # Moments of these networks have various memory layouts.
    changes = {**random_recipe("naive", network), "optimizer": optimizer, "learning_rate": 0.003}
    assert_resumed_equals_uninterrupted(make_recipe, make_run, tmp_path, **changes)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moments_are_restored_in_their_memory_layout(make_recipe, make_run, tmp_path, optimizer):
    recipe = make_recipe(optimizer=optimizer, backbone="test_resnet", epochs=4)
    run = make_run(recipe, tmp_path)
    train(run, 3)  # nine steps, after which Lookahead has slow weights
    resumed = make_run(recipe, tmp_path)
    layouts = [
        {key: layout(value) for key, value in optimizer_state(one).items() if isinstance(value, torch.Tensor)}
        for one in (run, resumed)
    ]
    assert [key for key in layouts[0] if layouts[0][key] != layouts[1][key]] == []


def layout(tensor):
    """Strides, except those of dimensions of size 1."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def test_a_state_dict_resumes_like_a_checkpoint(make_recipe, make_run):
    recipe = make_recipe(optimizer="adam", epochs=3, **RANDOM)
    uninterrupted = make_run(recipe)
    list(uninterrupted)
    first, second = make_run(recipe), make_run(recipe)
    next(iter(first))
    second.load_state_dict(first.state_dict())
    list(second)
    assert_equal_bit_for_bit(second, uninterrupted)


def test_leaving_the_loop_stops_and_iterating_again_continues(make_recipe, make_run):
    recipe = make_recipe(epochs=4, **RANDOM)
    uninterrupted = make_run(recipe)
    list(uninterrupted)
    run = make_run(recipe)
    train(run, 1)
    train(run, 2)
    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 3]
    assert run.record().status == "pruned"
    list(run)
    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 3, 4]
    assert list(run) == []
    assert_equal_bit_for_bit(run, uninterrupted)


def test_evaluating_a_run_does_not_change_it(make_recipe, make_run):
    recipe = make_recipe(epochs=3, **RANDOM)
    undisturbed, evaluated = make_run(recipe), make_run(recipe)
    list(undisturbed)
    for _ in evaluated:
        torch.manual_seed(99)
        torch.rand(5)
        evaluated.evaluate("train")
        evaluated.evaluate("test")
        evaluated.record()
    assert_equal_bit_for_bit(evaluated, undisturbed)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_recipe_gives_the_same_run(make_recipe, make_run, strategy):
    recipe = make_recipe(**{**random_recipe(strategy), "epochs": 3})
    torch.manual_seed(1)
    first = make_run(recipe)
    list(first)
    torch.manual_seed(2)
    np.random.seed(2)
    second = make_run(recipe)
    list(second)
    assert_equal_bit_for_bit(first, second)


def test_another_seed_gives_another_run_on_the_same_images(make_recipe, make_run):
    runs = [make_run(make_recipe(seed=seed)) for seed in (0, 1)]
    for run in runs:
        list(run)
    first, second = (run.epochs[-1].train_loss for run in runs)
    assert first != second
    for part in ("train", "val", "test"):
        assert np.array_equal(runs[0].split.of(part), runs[1].split.of(part))


def test_another_draw_moves_the_validation_part_and_never_the_test_part(make_recipe, make_run):
    runs = [make_run(make_recipe(draw=draw)) for draw in (0, 1)]
    assert not np.array_equal(runs[0].split.val, runs[1].split.val)
    assert np.array_equal(runs[0].split.test, runs[1].split.test)


def test_every_epoch_sees_each_image_once_in_a_new_order(make_recipe, make_run, monkeypatch):
    seen = []

    def recorded(pack, indices, batch_size):
        if batch_size == 8:  # the recipe's; evaluation uses larger batches
            seen.append(np.array(indices))
        return iter_batches(pack, indices, batch_size)

    run = make_run(make_recipe(epochs=3))
    monkeypatch.setattr("xfer.training.inputs.iter_batches", recorded)
    list(run)
    assert len(seen) == 3
    assert all(sorted(indices) == list(run.split.train) for indices in seen)
    assert len({tuple(indices) for indices in seen}) == 3


def test_every_epoch_draws_new_augmentations_and_mixtures(make_recipe, make_run, monkeypatch):
    drawn = []

    def augment(images, generator):
        drawn.append(generator.initial_seed())
        return images

    monkeypatch.setitem(AUGMENTATIONS, "flip", lambda: augment)
    list(make_run(make_recipe(epochs=3, augmentation="flip", mixing="cutmix")))
    assert len(set(drawn)) == 3, "one generator per epoch"
    assert len(drawn) == 9


# Epochs


def test_an_epoch_reports_its_metrics(make_recipe, make_run):
    run = make_run(make_recipe(epochs=3, optimizer="adam"))
    for number, epoch in enumerate(run, start=1):
        assert epoch.epoch == number
        assert epoch.val_accuracy == run.evaluate("val").accuracy
        assert epoch.val_loss == run.evaluate("val").loss
        assert 0 <= epoch.train_accuracy <= 1
        assert epoch.seconds > 0
        assert epoch.images_per_second > 0
        assert epoch.memory_mb > 50
        assert epoch.cpu_percent > 0
        assert epoch.gpu_memory_mb is epoch.gpu_percent is None


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_epoch_reports_the_learning_rate_of_its_last_step(make_recipe, make_run, schedule):
    epochs, steps = 3, 3  # 24 training images in batches of 8
    run = make_run(make_recipe(schedule=schedule, epochs=epochs, learning_rate=0.02))
    rates = [epoch.learning_rate for epoch in run]
    last_steps = [(epoch * steps + steps - 1) / (epochs * steps) for epoch in range(epochs)]
    assert rates == pytest.approx([0.02 * SCHEDULES[schedule]()(progress) for progress in last_steps])


def test_training_fits_a_simple_task(make_recipe, make_run):
    run = make_run(make_recipe(optimizer="adam", learning_rate=0.003, epochs=20))
    list(run)
    assert run.evaluate("test").accuracy == 1.0
    assert run.epochs[-1].train_loss < run.epochs[0].train_loss / 3


def test_an_evaluation_covers_the_images_of_its_part(make_recipe, make_run):
    run = make_run(make_recipe())
    list(run)
    for part in ("train", "val", "test"):
        evaluation = run.evaluate(part)
        assert evaluation.part == part
        assert evaluation.images == tuple(run.split.of(part))
        assert len(evaluation.correct) == len(evaluation.images)


def test_a_last_batch_of_a_single_image_is_left_out(make_recipe, make_run):
    run = make_run(make_recipe(batch_size=23, epochs=3))  # 24 = 23 + 1
    list(run)
    assert all(math.isfinite(epoch.train_loss) for epoch in run.epochs)


# Records


def test_a_record_is_finished_pruned_or_failed(make_recipe, make_run):
    run = make_run(make_recipe(epochs=2))
    assert (run.record().status, run.record().epochs, run.record().val) == ("pruned", (), None)
    next(iter(run))
    assert (run.record().status, run.record().val) == ("pruned", None)
    list(run)
    finished = run.record(trial="0007", phase="final")
    assert (finished.status, finished.trial, finished.phase) == ("finished", "0007", "final")
    assert finished.val == run.evaluate("val")
    assert finished.val_accuracy == finished.val.accuracy
    assert finished.test is finished.error is None
    failed = run.record(error="the disk is full")
    assert (failed.status, failed.error, failed.val) == ("failed", "the disk is full", None)


def test_a_record_identifies_its_recipe(make_recipe, make_run):
    recipe = make_recipe()
    run = make_run(recipe)
    list(run)
    record = run.record()
    assert (record.key, record.id, record.recipe) == (recipe.key, recipe.id, recipe.as_dict())
    assert record.seconds == sum(epoch.seconds for epoch in run.epochs)
    assert record.resumed_at == ()


def test_a_resumed_run_has_the_record_of_an_uninterrupted_one(make_recipe, make_run, tmp_path):
    recipe = make_recipe(epochs=3)
    uninterrupted = make_run(recipe)
    list(uninterrupted)
    next(iter(make_run(recipe, tmp_path)))
    resumed = make_run(recipe, tmp_path)
    list(resumed)
    record, expected = resumed.record(), uninterrupted.record()
    assert without_measurements(record.epochs) == without_measurements(expected.epochs)
    assert record.resumed_at == (1,)
    assert dataclasses.replace(record, epochs=(), seconds=0, resumed_at=()) == dataclasses.replace(
        expected, epochs=(), seconds=0
    )


def test_a_resumed_finished_run_trains_nothing_and_has_the_same_record(make_recipe, make_run, tmp_path):
    recipe = make_recipe()
    run = make_run(recipe, tmp_path)
    list(run)
    again = make_run(recipe, tmp_path)
    assert list(again) == []
    assert dataclasses.replace(again.record(), resumed_at=()) == run.record()


# Checkpoints of a run


def test_a_run_saves_every_epoch_before_it_is_yielded_and_keeps_two(make_recipe, make_run, tmp_path):
    run = make_run(make_recipe(epochs=3), tmp_path)
    for epoch in run:
        assert len(checkpoints.load(tmp_path)["epochs"]) == epoch.epoch
        assert len(list(tmp_path.iterdir())) == min(epoch.epoch, 2)


def test_a_damaged_checkpoint_costs_one_epoch_only(make_recipe, make_run, tmp_path, caplog):
    recipe = make_recipe(epochs=4, optimizer="ranger", **RANDOM)
    uninterrupted = make_run(recipe)
    list(uninterrupted)
    train(make_run(recipe, tmp_path), 3)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = make_run(recipe, tmp_path)
    assert resumed.resumed_at == (int(newest.name[6:10]) - 1,)
    assert newest.name in caplog.text
    list(resumed)
    assert_equal_bit_for_bit(resumed, uninterrupted)


def test_a_run_without_a_folder_writes_nothing(make_recipe, make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(make_run(make_recipe()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.02}, {"strategy": "linear_probe"}])
def test_the_state_of_another_recipe_is_an_error(make_recipe, make_run, tmp_path, change):
    mine, other = make_recipe(), make_recipe(**change)
    next(iter(make_run(mine, tmp_path)))
    with pytest.raises(ValueError, match=f"belongs to recipe {mine.id[:12]}, not to {other.id[:12]}"):
        make_run(other, tmp_path)


# Invalid arguments


def test_a_pack_with_other_content_is_an_error(make_recipe, pack, weights, image_folder, tmp_path):
    other = build_pack(folder_source(image_folder), 16, tmp_path)
    with pytest.raises(ValueError, match=f"made for data {pack.hash[:12]}, this pack is {other.hash[:12]}"):
        Run(make_recipe(), other, weights, CPU)


def test_weights_with_other_content_are_an_error_under_any_name(make_recipe, pack, weights, weights_of, tmp_path):
    recipe = make_recipe()
    impostor = tmp_path / weights.name
    impostor.write_bytes(weights_of("test_resnet").read_bytes())
    for wrong in (impostor, None):
        with pytest.raises(ValueError, match=f"made for weights {recipe.weights[:12]}"):
            Run(recipe, pack, wrong, CPU)
    renamed = tmp_path / "anything.safetensors"
    renamed.write_bytes(weights.read_bytes())
    assert Run(recipe, pack, renamed, CPU).recipe == recipe


def test_scratch_ignores_weights(make_recipe, pack, weights):
    recipe = make_recipe(strategy="scratch")
    first, second = Run(recipe, pack, weights, CPU), Run(recipe, pack, None, CPU)
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))


# Divergence


def loss_that_diverges(at_step, value):
    steps = []

    def loss(logits, targets):
        steps.append(1)
        return logits.sum(dim=1) * 0 + (value if len(steps) == at_step else 1.0)

    return loss


@pytest.mark.parametrize(("at_step", "epoch", "step"), [(1, 1, 1), (3, 1, 3), (5, 2, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_epoch_and_step(
    make_recipe, make_run, monkeypatch, at_step, epoch, step, value
):
    monkeypatch.setitem(LOSSES, "cross_entropy", lambda: loss_that_diverges(at_step, value))
    run = make_run(make_recipe(epochs=3))
    with pytest.raises(DivergedError, match=rf"training loss became {value} in epoch {epoch}, step {step} of 3"):
        list(run)
    assert len(run.epochs) == epoch - 1


def test_a_diverged_run_has_a_failed_record_with_the_epochs_before(make_recipe, make_run, tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "constant", lambda: lambda progress: 1e-4 if progress < 1 / 30 else 1e30)
    run = make_run(make_recipe(learning_rate=1.0, optimizer="sgd", schedule="constant", epochs=30), tmp_path)
    with pytest.raises(DivergedError, match=r"loss became (nan|inf)") as caught:
        list(run)
    assert 1 <= len(run.epochs) < 30
    record = run.record(error=str(caught.value))
    assert (record.status, record.val) == ("failed", None)
    assert all(math.isfinite(epoch.train_loss) and math.isfinite(epoch.val_loss) for epoch in record.epochs)
    assert len(checkpoints.load(tmp_path)["epochs"]) == len(run.epochs), "a diverged epoch was saved"


def test_a_validation_loss_that_is_not_finite_ends_the_run(make_recipe, make_run, monkeypatch):
    run = make_run(make_recipe())
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda part: dataclasses.replace(evaluate(part), loss=math.nan))
    with pytest.raises(DivergedError, match="validation loss became nan after epoch 1"):
        list(run)
    assert run.epochs == ()
