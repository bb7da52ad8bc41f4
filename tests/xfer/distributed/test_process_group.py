"""Several devices that train one recipe have the result of a single device. The devices are threads here."""

from __future__ import annotations

import pytest
import torch

from tests.xfer.distributed.equality import assert_same_weights
from tests.xfer.thread_group import ThreadAllReduce, run_on_threads
from xfer.distributed.process_group import SINGLE_PROCESS, Rank, join_process_group
from xfer.records import as_dict

CPU = torch.device("cpu")
CONSTANT = {"schedule": "constant", "learning_rate": 0.02}

IMAGE_BY_IMAGE = {
    "a transformer": {"backbone": "test_vit", "clip_norm": 0.5},
    "flipped images": {"backbone": "test_vit", "augmentation": "flip"},
    "frozen statistics": {"backbone": "test_efficientnet", "batch_norm": "frozen"},
    "standardized weights": {"backbone": "test_nfnet"},
    "regularization towards the start": {"strategy": "l2_sp", "backbone": "test_vit"},
    "clipped values": {"backbone": "test_vit", "clip_value": 0.01},
    "pairs of images": {"backbone": "test_vit", "embedding_loss": "contrastive"},
    "a loss with parameters": {"backbone": "test_vit", "embedding_loss": "arcface"},
}
WHOLE_BATCH = {
    "batch statistics": {"backbone": "test_efficientnet"},
    "batch statistics in a residual network": {"backbone": "test_resnet", "optimizer": "adam", "learning_rate": 1e-3},
    "only batch statistics move": {"strategy": "linear_probe", "batch_norm": "always"},
    "the upper half on cached features": {"backbone": "test_resnet", "strategy": "freeze_first"},
    "triplets and batch statistics": {"embedding_loss": "triplet"},
}


def train_alone(run):
    """Train on one device, and keep the last weights: workers do not choose between them and their average."""
    run.learner.average = None
    list(run)


def train_as_devices(runs, reference):
    """Train all runs together as devices, rank 0 included, with the tasks that a leader would send."""
    tasks = [
        {"state": None, "epochs": [as_dict(epoch) for epoch in reference.epochs[:number]]}
        for number in range(len(reference.epochs))
    ]
    for run in runs:
        run.set_pace(0)  # may trace the network, which two threads cannot do at the same time
    all_reduce = ThreadAllReduce(len(runs))
    run_on_threads(len(runs), lambda rank: runs[rank.index].train_as_worker(rank, tasks), all_reduce)
    return all_reduce


def assert_two_devices_equal_one(make_recipe, make_run, changes, rel):
    # 24 images: batches of 9, 9 and 6.
    recipe = make_recipe(**{**CONSTANT, "batch_size": 9, "epochs": 2, **changes})
    single = make_run(recipe)
    train_alone(single)
    runs = [make_run(recipe) for _ in range(2)]
    train_as_devices(runs, single)
    for run in runs:
        assert_same_weights(run, single, rel)
    first, second = (run.model.state_dict() for run in runs)
    assert [name for name in first if not torch.equal(first[name], second[name])] == [], "bit for bit"


@pytest.mark.parametrize("changes", IMAGE_BY_IMAGE.values(), ids=IMAGE_BY_IMAGE)
def test_two_devices_have_the_result_of_one(make_recipe, make_run, changes):
    assert_two_devices_equal_one(make_recipe, make_run, changes, rel=1e-5)


@pytest.mark.parametrize("changes", WHOLE_BATCH.values(), ids=WHOLE_BATCH)
def test_two_devices_have_the_result_of_one_with_whole_batch_operations(make_recipe, make_run, float64, changes):
    assert_two_devices_equal_one(make_recipe, make_run, changes, rel=1e-9)


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
def test_a_last_batch_with_fewer_images_than_devices_counts_once(make_recipe, make_run, float64, backbone):
    recipe = make_recipe(**CONSTANT, backbone=backbone, batch_size=11, epochs=1)  # 24 = 11 + 11 + 2
    single = make_run(recipe)
    train_alone(single)
    runs = [make_run(recipe) for _ in range(3)]
    train_as_devices(runs, single)
    for run in runs:
        assert_same_weights(run, single, rel=1e-9)


def test_only_the_leader_averages_weights_and_has_the_average_of_one_device(make_recipe, make_run):
    recipe = make_recipe(**CONSTANT, backbone="test_vit", batch_size=9, epochs=2)
    single = make_run(recipe)
    next(iter(single))
    leader, worker = runs = [make_run(recipe) for _ in range(2)]
    train_as_devices(runs, single)
    assert (leader.learner.average.steps, worker.learner.average.steps) == (3, 0)
    for name, tensor in single.learner.average.tensors.items():
        torch.testing.assert_close(leader.learner.average.tensors[name], tensor, rtol=1e-4, atol=1e-6)


def test_loss_hits_and_norm_of_a_step_are_those_of_the_whole_batch(make_recipe, make_run):
    recipe = make_recipe(**CONSTANT, backbone="test_vit", batch_size=7, epochs=1)
    expected = make_run(recipe).take_steps(0)
    runs = [make_run(recipe) for _ in range(3)]

    def work(rank):
        runs[rank.index].learner.rank = rank
        return runs[rank.index].take_steps(0)

    for stats in run_on_threads(3, work):
        assert stats.hits == expected.hits
        assert stats.losses == pytest.approx(expected.losses, rel=1e-5)
        assert stats.norms == pytest.approx(expected.norms, rel=1e-5)
        assert (stats.learning_rate, stats.images) == (expected.learning_rate, expected.images)


def test_a_step_without_batch_statistics_is_one_message(make_recipe, make_run):
    recipe = make_recipe(**CONSTANT, backbone="test_vit", batch_size=8, epochs=1)
    single = make_run(recipe)
    list(single)
    assert train_as_devices([make_run(recipe) for _ in range(2)], single).messages == 3  # 24 images


def test_each_device_drops_different_activations(make_recipe, make_run, monkeypatch):
    run = make_run(make_recipe(backbone="test_vit", epochs=1))
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    run.take_steps(0)
    for index in range(3):
        run.learner.rank = Rank(index, 3, lambda tensor: None)
        run.take_steps(0)
    single, *devices = seeds
    assert single == devices[0]
    assert len(set(devices)) == 3


def test_a_process_in_another_process_group_cannot_lead(tmp_path):
    with (
        join_process_group(tmp_path, 0, 1, CPU) as rank,
        pytest.raises(ValueError, match="already in a process group of torch.distributed"),
        join_process_group(tmp_path, 0, 1, CPU),
    ):
        pass
    assert (rank.index, rank.size) == (0, 1)


# Memory


def limit_memory(run, most):
    """Make a network run out of memory in training with more than `most` images."""

    def refuse(module, inputs):
        if len(inputs[0]) > most and module.training:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run.model.register_forward_pre_hook(refuse)


def test_a_device_that_runs_out_of_memory_splits_its_own_shard(make_recipe, make_run):
    recipe = make_recipe(**CONSTANT, backbone="test_vit", batch_size=8, epochs=2)
    single = make_run(recipe)
    train_alone(single)
    runs = [make_run(recipe) for _ in range(2)]
    limit_memory(runs[1], 1)
    train_as_devices(runs, single)
    assert [run.learner.micro_batch for run in runs] == [None, 1]
    assert_same_weights(runs[0], single)
    assert_same_weights(runs[1], single)


def test_a_shard_with_synchronized_batch_norms_cannot_be_split(make_recipe, make_run):
    run = make_run(make_recipe(batch_size=8))
    limit_memory(run, 2)
    with pytest.raises(
        MemoryError, match="4 images .* because its batch norms use the statistics of all 2 devices, .*: use a smaller"
    ):
        run.train_as_worker(Rank(0, 2, lambda tensor: None), [{"state": None, "epochs": []}])


def test_a_single_device_starts_no_workers(make_recipe, make_run, monkeypatch):
    monkeypatch.setattr("xfer.run.WorkerGroup", None)
    run = make_run(make_recipe(epochs=1))
    list(run)
    assert run.learner.rank is SINGLE_PROCESS
    assert run.record().arithmetic == "float32"
