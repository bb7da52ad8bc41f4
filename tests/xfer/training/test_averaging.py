"""The moving average of a run's weights, and the choice between start, last and averaged weights at its end."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from xfer.data.loader import iter_batches
from xfer.methods.schedules import SCHEDULES
from xfer.records import Evaluation
from xfer.training import averaging, checkpoints
from xfer.training.averaging import EXPONENT, WeightAverage, estimate_statistics
from xfer.training.candidates import keep_best
from xfer.training.epochs import DivergedError
from xfer.training.export import load_classifier, save_classifier

HEADS_ONLY = ("linear_probe", "logistic_probe", "ridge_probe")


def state(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# The average


def test_the_average_weights_steps_by_the_seventh_power_of_their_number():
    weight, values = torch.zeros(3), [torch.rand(3) for _ in range(50)]
    average = WeightAverage({"weight": weight})
    assert average.tensors == {}
    expected = torch.zeros(3)
    for step, value in enumerate(values, start=1):
        weight.copy_(value)
        average.update()
        expected = expected + (1 - (1 - 1 / step) ** EXPONENT) * (value - expected)
        torch.testing.assert_close(average.tensors["weight"], expected)
    assert average.steps == 50
    powers = np.array([t**EXPONENT - (t - 1) ** EXPONENT for t in range(1, 51)]) / 50.0**EXPONENT
    direct = sum(power * value for power, value in zip(powers, values, strict=True))
    torch.testing.assert_close(average.tensors["weight"], direct.float())


@pytest.mark.parametrize("gradient_steps", [1, 2, 7])
def test_the_average_of_a_run_is_that_of_the_weights_after_each_step(make_recipe, make_run, gradient_steps):
    run = make_run(make_recipe(epochs=4, batch_size=24))
    images, targets = next(iter(run.inputs.training_batches(run.split.train, 0, False)))
    run.set_pace(0)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, gradient_steps + 1):
        run.learner.step(images, targets, 0.05)
        weight = 1 - (1 - 1 / step) ** EXPONENT
        for name, parameter in run.model.named_parameters():
            expected[name] = torch.lerp(expected.get(name, parameter.detach()), parameter.detach(), weight)
    averaged = run.learner.average.tensors
    assert averaged.keys() == dict(run.model.named_parameters()).keys()
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize("strategy", HEADS_ONLY)
def test_runs_that_only_train_a_head_have_no_average_and_keep_their_last_weights(make_recipe, make_run, strategy):
    run = make_run(make_recipe(strategy=strategy))
    list(run)
    assert run.learner.average is None
    assert run.record().kept is None
    assert (run.epochs[-1].raw_val_accuracy, run.epochs[-1].averaged_val_accuracy) == (None, None)


def test_the_average_begins_with_the_first_step_that_trains_more_than_the_head(make_recipe, make_run):
    run = make_run(make_recipe(strategy={"name": "freeze_then_unfreeze", "freeze_epochs": 2}, epochs=4))
    steps = []
    for epoch in run:
        steps.append(run.learner.average.steps if epoch.epoch < 4 else None)
    assert steps == [0, 0, 3, None]


@pytest.mark.parametrize("strategy", ["lora", "freeze_first", "gradual_unfreeze", "bitfit", "surgical"])
def test_only_what_is_trained_is_averaged(make_recipe, make_run, strategy):
    run = make_run(make_recipe(strategy=strategy, backbone="test_vit", epochs=3))
    for epoch in run:
        if epoch.epoch == 2:
            averaged = run.learner.average.tensors
            assert averaged.keys() <= run.learner.trainable_names
            assert sum(tensor.numel() for tensor in averaged.values()) == run.learner.count_trainable()


# Batch statistics


def test_the_statistics_of_one_batch_are_those_of_a_plain_forward_pass(make_recipe, make_run):
    run = make_run(make_recipe(backbone="test_resnet"))
    images, _ = next(iter_batches(run.pack, run.split.train, 24))
    prepare = run.inputs.transform.prepare
    norms = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: dict[nn.Module, torch.Tensor] = {}
    hooks = [norm.register_forward_pre_hook(lambda norm, args: seen.update({norm: args[0]})) for norm in norms]
    run.model.train()
    with torch.no_grad():
        run.model(prepare(images))
    plain = {norm: (rows.mean((0, 2, 3)), rows.var((0, 2, 3))) for norm, rows in seen.items()}
    for hook in hooks:
        hook.remove()
    estimate_statistics(run.model, norms, images, prepare)
    assert len(plain) == len(norms) > 3
    for norm, (mean, variance) in plain.items():
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
        assert not norm.training
        assert norm.momentum == 0.1


def test_the_statistics_are_the_mean_over_batches(make_recipe, make_run, monkeypatch):
    monkeypatch.setattr(averaging, "STATISTICS_BATCH_SIZE", 8)
    run = make_run(make_recipe(backbone="test_resnet"))
    images, _ = next(iter_batches(run.pack, run.split.train, 24))
    first = next(module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d))
    means = []
    for start in (0, 8, 16):
        estimate_statistics(run.model, [first], images[start : start + 8], run.inputs.transform.prepare)
        means.append(first.running_mean.clone())
    estimate_statistics(run.model, [first], images, run.inputs.transform.prepare)
    torch.testing.assert_close(first.running_mean, torch.stack(means).mean(dim=0))


def test_the_statistics_are_estimated_in_smaller_batches_where_memory_runs_out(make_recipe, make_run):
    run = make_run(make_recipe(backbone="test_resnet"))
    images, _ = next(iter_batches(run.pack, run.split.train, 24))
    norms = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d)]
    prepare, sizes = run.inputs.transform.prepare, []

    def limited(batch):
        sizes.append(len(batch))
        if len(batch) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prepare(batch)

    estimate_statistics(run.model, norms, images, limited)
    assert sizes == [24, 12, 12]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}


@pytest.mark.parametrize(
    ("strategy", "batch_norm", "follows"),
    [
        ("naive", "with_weights", {"all"}),
        ("naive", "frozen", set()),
        ("naive", "always", {"all"}),
        ("freeze_first", "with_weights", {"some"}),
        ("freeze_first", "always", {"all"}),
    ],
)
def test_only_batch_norms_that_follow_the_images_are_estimated_again(
    make_recipe, make_run, strategy, batch_norm, follows
):
    run = make_run(make_recipe(strategy=strategy, batch_norm=batch_norm, backbone="test_resnet", learning_rate=0.001))
    next(iter(run))
    before = {name: tensor.clone() for name, tensor in run.model.named_buffers() if name.endswith("running_var")}
    run.learner.use_average(run.inputs.statistics_images(), run.inputs.transform.prepare)
    after = dict(run.model.named_buffers())
    changed = [not torch.equal(before[name], after[name]) for name in before]
    assert ({"all"} if all(changed) else {"some"} if any(changed) else set()) == follows


def test_the_images_for_statistics_are_a_bounded_sample_of_the_training_part(make_recipe, make_run, monkeypatch):
    run = make_run(make_recipe())
    everything = run.inputs.statistics_images()
    assert len(everything) == 24
    monkeypatch.setattr("xfer.training.inputs.STATISTICS_IMAGES", 10)
    assert torch.equal(run.inputs.statistics_images(), everything[:10])


# The candidates


def evaluation(correct, loss=1.0):
    return Evaluation("val", loss, tuple(range(10)), tuple(index < correct for index in range(10)))


@pytest.mark.parametrize(
    ("last", "averaged", "start", "kept"),
    [
        ((8, 1.0), (7, 0.1), (6, 0.1), "last"),
        ((7, 0.1), (8, 1.0), (6, 0.1), "averaged"),
        ((6, 0.1), (7, 0.1), (8, 9.0), "start"),
        ((7, 0.5), (7, 0.4), (7, 0.6), "averaged"),
        ((7, 0.5), (7, 0.6), (7, 0.4), "start"),
        ((7, 0.5), (7, 0.5), (7, 0.5), "last"),
        ((6, 0.5), (7, 0.5), (7, 0.5), "averaged"),
        ((6, 0.5), (9, math.nan), (3, 0.5), "last"),
        ((6, 0.5), None, (3, 0.5), "last"),
        ((2, 0.5), None, (3, 0.5), "start"),
    ],
)
def test_the_best_accuracy_is_kept_then_the_lowest_loss_then_the_last_weights(last, averaged, start, kept):
    values = {"last": 1.0, "averaged": 2.0, "start": 3.0}
    model = nn.Linear(1, 1, bias=False)
    weight = model.weight.data
    weight.fill_(values["last"])
    by_value = {1.0: last, 2.0: averaged, 3.0: start}
    evaluated = []

    def evaluate():
        evaluated.append(weight.item())
        return evaluation(*by_value[weight.item()])

    selection = keep_best(
        model,
        {"weight"},
        evaluation(*last),
        evaluate,
        (lambda: weight.fill_(values["averaged"])) if averaged else None,
        lambda: {"weight": torch.full((1, 1), values["start"])},
        start[0] / 10,
    )
    assert (selection.kept, weight.item()) == (kept, values[kept])
    assert selection.last == evaluation(*last)
    finite = [other for other in (last, averaged) if other and math.isfinite(other[1])]
    may_win = start[0] >= max(correct for correct, _ in finite)
    assert evaluated == [*([2.0] if averaged else []), *([3.0] if may_win else [])], "the start is evaluated needlessly"


def ruined(make_recipe, **changes):
    """A recipe whose learning rate ruins the network without making its loss NaN."""
    return make_recipe(
        **{"strategy": "lp_ft", "optimizer": "adam", "learning_rate": 1.0, "batch_norm": "frozen", **changes}
    )


@pytest.mark.parametrize("network", ["test_efficientnet", "test_resnet", "test_vit"])
def test_a_run_that_training_ruins_ends_at_its_fitted_head(make_recipe, make_run, network, tmp_path):
    recipe = ruined(make_recipe, backbone=network)
    run = make_run(recipe, tmp_path)
    list(run)
    record = run.record()
    assert record.kept == "start"
    assert record.val_accuracy == record.val.accuracy == record.start_accuracy
    assert record.epochs[-1].raw_val_accuracy < record.start_accuracy
    assert record.epochs[-1].distance == 0.0
    probe = make_run(make_recipe(strategy="logistic_probe", backbone=network))
    list(probe)
    assert run.evaluate("test").correct == probe.evaluate("test").correct
    assert_same(state(run), state(probe))


@pytest.mark.parametrize("strategy", ["naive", "freeze_then_unfreeze", "scratch", "small_cnn"])
def test_a_run_never_ends_below_its_start(make_recipe, make_run, strategy):
    for seed in range(3):
        run = make_run(make_recipe(strategy=strategy, optimizer="adam", learning_rate=0.5, epochs=3, seed=seed))
        start = state(run)
        list(run)
        record = run.record()
        assert record.val_accuracy >= record.start_accuracy
        if record.kept == "start":
            assert_same(state(run), start)


def kept_weights(make_recipe, make_run, monkeypatch, name, folder=None, **changes):
    """A run that keeps the candidate `name`, whatever its accuracy."""

    def choose(model, names, last, evaluate, average, start, start_accuracy):
        others = {"last": 1.0, "averaged": 1.0, "start": 1.0, name: 0.0}
        order = iter(["averaged", "start"])

        def graded():
            current = next(order)
            return dataclasses.replace(evaluate(), correct=last.correct, loss=others[current])

        last = dataclasses.replace(last, loss=others["last"])
        selection = keep_best(model, names, last, graded, average, start, 1.0)
        return dataclasses.replace(selection, val=evaluate())

    monkeypatch.setattr("xfer.run.keep_best", choose)
    run = make_run(make_recipe(**{"epochs": 3, "strategy": "lp_ft", **changes}), folder)
    list(run)
    assert run.record().kept == name
    return run


@pytest.mark.parametrize("name", ["last", "averaged", "start"])
def test_checkpoint_export_and_evaluation_use_the_weights_that_are_kept(
    make_recipe, make_run, monkeypatch, name, tmp_path
):
    run = kept_weights(make_recipe, make_run, monkeypatch, name, tmp_path / "checkpoints")
    assert run.epochs[-1].val_loss == run.evaluate("val").loss
    assert run.epochs[-1].val_accuracy == run.record().val.accuracy
    assert "average" not in checkpoints.load(tmp_path / "checkpoints")
    resumed = make_run(run.recipe, tmp_path / "checkpoints")
    assert list(resumed) == []
    assert_same(state(resumed), state(run))
    assert dataclasses.replace(resumed.record(), resumed_at=()) == run.record()
    save_classifier(tmp_path / "model", run.model, run.recipe, run.pack.classes)
    exported = load_classifier(tmp_path / "model").model.state_dict()
    assert_same(exported, state(run))


@pytest.mark.parametrize("name", ["last", "averaged", "start"])
@pytest.mark.parametrize(
    "strategy",
    [
        "lp_ft",
        *(
            pytest.param(name, marks=[pytest.mark.slow, pytest.mark.nightly])
            for name in ("freeze_first", "gradual_unfreeze", "surgical")
        ),
    ],
)
def test_a_run_that_is_resumed_before_its_last_epoch_keeps_the_same_weights(
    make_recipe, make_run, monkeypatch, name, strategy, tmp_path
):
    uninterrupted = kept_weights(make_recipe, make_run, monkeypatch, name, strategy=strategy, batch_norm="always")
    for epoch in range(3):
        resumed = make_run(uninterrupted.recipe, tmp_path)
        assert len(resumed.epochs) == epoch
        next(iter(resumed))
    assert_same(state(resumed), state(uninterrupted))
    assert resumed.epochs[-1].kept == name
    assert resumed.epochs[-1].averaged_val_loss == uninterrupted.epochs[-1].averaged_val_loss
    assert make_run(uninterrupted.recipe, tmp_path).evaluate("val") == uninterrupted.evaluate("val")


def test_the_last_epoch_names_all_candidates_and_the_others_none(make_recipe, make_run):
    run = make_run(make_recipe(epochs=3))
    first, second, last = list(run)
    for epoch in (first, second):
        assert (epoch.kept, epoch.raw_val_accuracy, epoch.averaged_val_accuracy) == (None, None, None)
    accuracies = {
        "last": last.raw_val_accuracy,
        "averaged": last.averaged_val_accuracy,
        "start": run.record().start_accuracy,
    }
    assert last.val_accuracy == accuracies[last.kept] == max(accuracies.values())
    assert run.record().kept == last.kept


def test_a_run_that_is_stopped_early_keeps_its_last_weights_and_evaluates_nothing_twice(
    make_recipe, make_run, monkeypatch
):
    run, evaluated = make_run(make_recipe(epochs=5)), []
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda part: evaluated.append(part) or evaluate(part))
    for epoch in run:
        if epoch.epoch == 3:
            break
    assert evaluated == ["val"] * 4  # before the first epoch, and after each of three
    assert run.record().kept is None


def test_a_run_whose_loss_becomes_nan_in_its_last_epoch_fails(make_recipe, make_run, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "constant", lambda: lambda progress: 0.0 if progress < 0.5 else math.nan)
    run = make_run(make_recipe(epochs=2, schedule="constant", strategy="lp_ft"))
    with pytest.raises(DivergedError, match=r"loss became nan"):
        list(run)
    assert len(run.epochs) == 1
