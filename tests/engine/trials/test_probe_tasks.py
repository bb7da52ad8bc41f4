"""Probe tasks: each probe of a batch ends with its own record, equal to that of its solo run, and none runs twice."""

from __future__ import annotations

import io
from dataclasses import asdict, replace

import pytest
import torch
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import ray_tune
from sweeps.engine.trials.probe_tasks import ProbeTasks, split_into_tasks, train_probes
from sweeps.engine.trials.trainable import Resources, TrialContext, trial_config
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.run import Run
from xfer.training import checkpoints

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "storage" / "sweep")


@pytest.fixture
def configs(store, pack, weights, make_recipe):
    """Returns the configuration of a trial for each recipe, after adding it to the store."""

    def add_trials(*recipes):
        context = TrialContext(
            str(store.folder), str(pack.folder), str(weights), 1, False, features=str(store.folder.parent / "f")
        )
        trials = [Trial(f"{number:04d}", "search", {}, recipe.as_dict()) for number, recipe in enumerate(recipes)]
        for trial in trials:
            store.add_trial(trial)
        return [trial_config(trial, context) for trial in trials]

    return add_trials


def probe_recipes(make_recipe):
    probe = {"strategy": "linear_probe", "epochs": 3}
    return [
        make_recipe(**probe, learning_rate=0.1),
        make_recipe(**probe, learning_rate=0.01, optimizer="adam", augmentation="flip", views=2),
        make_recipe(**probe, learning_rate=0.02, augmentation="randaugment", views=2, loss="label_smoothing", seed=3),
        make_recipe(**probe, learning_rate=0.03, batch_size=4),
    ]


def test_each_record_equals_that_of_its_solo_run(make_recipe, configs, store, pack, weights):
    recipes = probe_recipes(make_recipe)
    train_probes(configs(*recipes))
    for number, recipe in enumerate(recipes):
        run = Run(recipe, pack, weights, CPU)
        list(run)
        solo, batched = run.record(f"{number:04d}"), store.record(f"{number:04d}")
        assert replace(batched, epochs=(), seconds=0.0, val=None) == replace(solo, epochs=(), seconds=0.0, val=None)
        for one, other in zip(batched.epochs, solo.epochs, strict=True):
            for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "gradient_norm", "learning_rate"):
                assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4), name
        assert batched.val.correct == solo.val.correct
        assert store.epochs(f"{number:04d}") == batched.epochs


def test_probes_in_two_image_sizes_are_trained_in_one_task(
    make_recipe, configs, store, pack, weights, image_folder, tmp_path
):
    packs = [pack, build_pack(folder(image_folder), 48, tmp_path / "packs")]
    probe = {"strategy": "linear_probe", "learning_rate": 0.1}
    recipes = [make_recipe(**probe, data=of_size.hash, image_size=of_size.image_size) for of_size in packs]
    added = configs(*recipes)
    added[1]["site"]["pack"] = str(packs[1].folder)
    train_probes(added)
    for number, (recipe, of_size) in enumerate(zip(recipes, packs, strict=True)):
        run = Run(recipe, of_size, weights, CPU)
        list(run)
        batched = store.record(f"{number:04d}")
        assert (batched.id, batched.status) == (recipe.id, "finished")
        assert batched.val.loss == pytest.approx(run.evaluate("val").loss, abs=1e-4)
    assert store.record("0000").val.loss != store.record("0001").val.loss


def test_a_run_resumes_from_the_checkpoint_of_a_batched_probe(make_recipe, configs, store, pack, weights):
    recipe = probe_recipes(make_recipe)[1]
    train_probes(configs(recipe))
    run = Run(recipe, pack, weights, CPU, store.checkpoints("0000"))
    assert len(run.epochs) == recipe.epochs
    assert run.evaluate("val").loss == pytest.approx(store.record("0000").val.loss, abs=1e-5)
    assert list(run) == []


def test_probes_that_have_a_record_are_not_trained_again(make_recipe, configs, store):
    added = configs(*probe_recipes(make_recipe))
    train_probes(added[:2])
    before = {name: store.record(name) for name in ("0000", "0001")}
    train_probes(added)
    assert {name: store.record(name) for name in before} == before
    assert [record.status for record in store.records()] == ["finished"] * 4


def test_a_diverged_probe_ends_as_failed_with_the_reason(make_recipe, configs, store):
    good, *_ = probe_recipes(make_recipe)
    train_probes(configs(replace(good, epochs=90), replace(good, learning_rate=90.0, weight_decay=9.9, epochs=90)))
    assert store.record("0000").status == "finished"
    bad = store.record("0001")
    assert bad.status == "failed"
    assert bad.error.startswith("DivergedError: the ")
    assert checkpoints.load(store.checkpoints("0001")) is None


def test_an_unexpected_error_fails_the_group_and_not_the_sweep(make_recipe, configs, store, tmp_path):
    added = configs(*probe_recipes(make_recipe)[:1])
    added[0]["site"] = asdict(replace(TrialContext(**added[0]["site"]), weights=str(tmp_path / "gone.safetensors")))
    train_probes(added)
    assert store.record("0000").status == "failed"
    assert "gone.safetensors" in store.record("0000").error


def test_tasks_are_split_so_that_each_augmented_view_is_computed_once(make_recipe):
    trials = [
        Trial(f"{number:04d}", "search", {}, recipe.as_dict())
        for number, recipe in enumerate(probe_recipes(make_recipe))
    ]
    first, second = split_into_tasks(trials, 2)
    assert sorted(trial.name for trial in first + second) == ["0000", "0001", "0002", "0003"]
    assert {"0001"} <= {trial.name for trial in first}
    assert {"0002"} <= {trial.name for trial in second}
    assert [[trial.name for trial in task] for task in split_into_tasks(trials, 1)] == [
        ["0001", "0002", "0000", "0003"]
    ]
    assert split_into_tasks([], 2) == []


class FakeCluster:
    """Stands for Ray: notes which tasks are submitted; a task ends when it is waited for."""

    def __init__(self, monkeypatch):
        self.submitted, self.waits, self.resources = [], [], []
        monkeypatch.setattr(ray_tune, "submit", self.submit)
        monkeypatch.setattr(ray_tune, "finished_tasks", self.finished_tasks)
        monkeypatch.setattr(ray_tune, "task_error", lambda task: None)

    def submit(self, function, configs, resources):
        self.resources.append(resources)
        self.submitted.append([config["trial"] for config in configs])
        function(configs)
        return len(self.submitted)

    def finished_tasks(self, tasks, wait):
        self.waits.append(wait)
        return tasks if wait else []


def names(records):
    return [record.trial for record in records]


@pytest.fixture
def view():
    return ProgressView(Console(file=io.StringIO()), "colours")


@pytest.fixture
def collect_probes(store, view, configs, make_recipe, monkeypatch):
    """Adds linear probes one after another, in batches of two; returns the tasks, the cluster and the records."""

    def collect(resources, tune_is_running=False, trials=4):
        cluster, records = FakeCluster(monkeypatch), []
        started = configs(*(replace(probe_recipes(make_recipe)[0], seed=seed) for seed in range(trials)))
        context = TrialContext(**started[0]["site"])
        probes = ProbeTasks(store, view, lambda trial: context, resources, batch_size=2)
        probes.tune_is_running = tune_is_running
        for config in started:
            assert probes.add(Trial(config["trial"], "search", {}, config["recipe"]))
            records += probes.collect()
        return probes, cluster, records

    return collect


def test_a_full_batch_is_trained_before_more_probes_are_proposed(collect_probes, view):
    _, cluster, records = collect_probes(Resources())
    assert cluster.submitted == [["0000", "0001"], ["0002", "0003"]]
    assert list(view.running) == ["0000", "0001", "0002", "0003"]
    assert names(records) == ["0000", "0001", "0002", "0003"]


def test_a_few_probes_are_trained_in_this_process_before_ray_starts(store, view, configs, make_recipe, monkeypatch):
    cluster = FakeCluster(monkeypatch)
    (config,) = configs(probe_recipes(make_recipe)[0])
    context = TrialContext(**config["site"])
    probes = ProbeTasks(store, view, lambda trial: context, Resources(), in_process=True)
    probes.add(Trial(config["trial"], "search", {}, config["recipe"]))
    assert probes.start() == []
    assert names(probes.start_few()) == ["0000"]
    assert cluster.submitted == []


def test_no_probe_is_trained_in_this_process_where_trials_get_gpus(collect_probes):
    probes, cluster, _ = collect_probes(Resources(gpus=1.0), trials=1)
    assert probes.start_few() == []
    assert cluster.submitted == []


def test_the_last_incomplete_batch_is_trained_too(collect_probes):
    probes, cluster, records = collect_probes(Resources(), trials=3)
    assert names(records) == ["0000", "0001"]
    assert names(probes.settle()) == ["0002"]
    assert cluster.submitted[-1] == ["0002"]


def test_probes_are_not_waited_for_while_trials_may_hold_their_gpus(collect_probes):
    probes, cluster, records = collect_probes(Resources(gpus=1.0), tune_is_running=True)
    assert probes.settle() == records == []
    assert not any(cluster.waits)
    probes.tune_is_running = False
    assert sorted(names(probes.settle())) == ["0000", "0001", "0002", "0003"]


@pytest.mark.parametrize(("gpus", "requested"), [(0.0, 0.0), (0.25, 0.25), (2.0, 1.0)])
def test_probes_request_one_gpu_even_if_trials_are_trained_on_more(collect_probes, gpus, requested):
    _, cluster, _ = collect_probes(Resources(cpus=2, gpus=gpus), trials=2)
    assert cluster.resources == [Resources(cpus=2, gpus=requested)]


def test_a_recipe_that_trains_more_than_a_head_cannot_be_batched(store, view, configs, make_recipe):
    (config,) = configs(make_recipe())
    probes = ProbeTasks(store, view, lambda trial: TrialContext(**config["site"]), Resources())
    assert not probes.add(Trial("0000", "search", {}, config["recipe"]))
