"""Worker processes of a run on several devices: same result as one device, clear errors, and no orphan processes.

The devices are CPU processes that communicate by gloo; the test for GPUs runs where there are two.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import xfer.run
from tests.xfer.distributed.equality import assert_same_epochs, assert_same_weights
from xfer.distributed import launcher
from xfer.distributed.launcher import WorkerError, WorkerLostError, deserialize, serialize
from xfer.distributed.process_group import join_process_group
from xfer.run import Run, open_worker
from xfer.training.epochs import DivergedError
from xfer.training.learner import Learner

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
CONSTANT = {"schedule": "constant", "learning_rate": 0.02}


def test_messages_are_plain_data_and_tensors_and_survive_the_round_trip(make_recipe, make_run):
    run = make_run(make_recipe(optimizer="ranger", epochs=1, embedding_loss="arcface"))
    list(run)
    state = run.learner.state_dict()
    received = deserialize(serialize({"state": state}))["state"]
    assert all(torch.equal(received["model"][name], tensor) for name, tensor in state["model"].items())
    other = make_run(run.recipe)
    other.learner.load_state_dict(received)
    assert_same_weights(other, run, rel=0)


# Same result as one device


@pytest.fixture
def worker_groups(monkeypatch):
    """All worker groups that were started."""
    started = []

    class RecordedGroup(launcher.WorkerGroup):
        def __init__(self, *args):
            super().__init__(*args)
            started.append(self)

    monkeypatch.setattr("xfer.run.WorkerGroup", RecordedGroup)
    return started


@pytest.fixture
def make_distributed_run(pack, weights_of, one_thread):
    def run(recipe, folder=None, devices=2, device=CPU, **options):
        file = weights_of(recipe.backbone) if recipe.weights else None
        return Run(recipe, pack, file, device=device, folder=folder, devices=devices, **options)

    return run


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_ended(pids, seconds=20.0):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if is_running(pid)] == []


RANDOM = {"augmentation": "randaugment", "mixing": "cutmix"}
RECIPES = {
    "a transformer": {"backbone": "test_vit", **RANDOM, "clip_norm": 1.0},
    "frozen statistics": {"batch_norm": "frozen", "augmentation": "random_resized_crop"},
    "a head, then everything": {"strategy": "freeze_then_unfreeze", "backbone": "test_vit"},
    "a head until it has converged": {"strategy": "freeze_until_converged", "backbone": "test_vit"},
    "a head in closed form, then everything": {"strategy": "lp_ft", "backbone": "test_vit"},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_a_run_on_two_devices_has_the_result_of_one(
    make_recipe, make_run, make_distributed_run, worker_groups, changes
):
    recipe = make_recipe(**{"schedule": "cosine", "learning_rate": 0.02, "batch_size": 7, "epochs": 4, **changes})
    single, run = make_run(recipe), make_distributed_run(recipe)
    list(single)
    list(run)
    assert len(worker_groups) == 1
    assert_ended(worker_groups[0].worker_pids, 0)
    assert_same_epochs(run, single, rel=1e-5)
    assert_same_weights(run, single, rel=1e-5)
    assert run.record().arithmetic == "float32, 2 devices"
    assert run.record().id == single.record().id
    assert run.evaluate("test").correct == single.evaluate("test").correct


def open_float64_worker(job, device):
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    return open_worker(job, device)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [RANDOM, {"embedding_loss": "contrastive"}], ids=str)
def test_a_run_on_two_devices_has_the_result_of_one_with_whole_batch_operations(
    make_recipe, make_run, make_distributed_run, float64, monkeypatch, changes
):
    monkeypatch.setattr("xfer.run.open_worker", open_float64_worker)
    recipe = make_recipe(batch_size=7, epochs=3, **changes)
    single, run = make_run(recipe), make_distributed_run(recipe)
    list(single)
    list(run)
    # Batches of 7, 7, 7 and 3: a difference of 1e-15 has grown to 1e-9 after twelve steps.
    assert_same_epochs(run, single, rel=1e-6)
    assert_same_weights(run, single, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["freeze_then_unfreeze", pytest.param("naive", marks=pytest.mark.nightly)])
def test_a_resumed_run_on_two_devices_equals_an_uninterrupted_one(
    make_recipe, make_run, make_distributed_run, tmp_path, worker_groups, strategy
):
    recipe = make_recipe(strategy=strategy, backbone="test_vit", optimizer="adam", learning_rate=1e-3, epochs=4)
    uninterrupted = make_distributed_run(recipe)
    list(uninterrupted)
    run = make_distributed_run(recipe, tmp_path)
    for epoch in run:
        if epoch.epoch == 3:
            break
    assert_ended(worker_groups[-1].worker_pids, 0)  # leaving the loop ends the workers
    resumed = make_distributed_run(recipe, tmp_path)
    list(resumed)
    assert resumed.resumed_at == (3,)
    assert_same_weights(resumed, uninterrupted, rel=0)
    # And equals a run on another number of devices.
    single = make_distributed_run(recipe, devices=1)
    list(single)
    assert_same_epochs(resumed, single, rel=1e-4)  # Adam takes full steps even where a gradient is only rounding


@pytest.mark.slow
def test_a_head_on_cached_features_trains_on_the_leader_alone(make_recipe, make_distributed_run, worker_groups):
    run = make_distributed_run(make_recipe(strategy="freeze_then_unfreeze", epochs=3))
    seen = []
    for _ in run:
        seen.append((len(worker_groups), run.record().arithmetic))
    assert seen == [(0, "float32"), (0, "float32"), (1, "float32, 2 devices")]
    probe = make_distributed_run(make_recipe(strategy="linear_probe"))
    list(probe)
    assert probe.record().arithmetic == "float32"
    closed_form = make_distributed_run(make_recipe(strategy="ridge_probe", epochs=1))
    list(closed_form)
    assert len(worker_groups) == 1


# The end of workers


@pytest.mark.slow
def test_workers_end_when_the_caller_of_the_loop_fails(make_recipe, make_distributed_run, worker_groups):
    run = make_distributed_run(make_recipe(epochs=3))

    def fail():
        for _ in run:
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_ended(worker_groups[0].worker_pids, 0)
    assert len(list(run)) == 2  # with new workers
    assert len(worker_groups) == 2


@pytest.mark.slow
def test_workers_end_when_the_loss_diverges(make_recipe, make_distributed_run, worker_groups):
    run = make_distributed_run(make_recipe(learning_rate=100.0, epochs=5, backbone="test_resnet", schedule="constant"))
    with pytest.raises(DivergedError):
        list(run)
    assert_ended(worker_groups[0].worker_pids, 0)


@pytest.mark.slow
def test_a_run_in_another_process_group_cannot_lead(make_recipe, make_distributed_run, tmp_path):
    run = make_distributed_run(make_recipe(epochs=1))
    with (
        join_process_group(tmp_path, 0, 1, CPU),
        pytest.raises(ValueError, match="already in a process group of torch.distributed"),
    ):
        list(run)


def raise_memory_error(*args):
    raise MemoryError("there is no memory left")


def exit_with_status_3(*args):
    os._exit(3)


def open_worker_without_memory(job, device):
    Learner.step = raise_memory_error
    return open_worker(job, device)


def open_worker_without_pack(job, device):
    xfer.run.load_pack = lambda folder: Path("/nowhere").read_text()
    return open_worker(job, device)


def open_worker_that_exits_in_a_step(job, device):
    Learner.step = exit_with_status_3
    return open_worker(job, device)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_the_error_of_a_worker_is_reported(make_recipe, make_distributed_run, monkeypatch, worker_groups, devices):
    monkeypatch.setattr("xfer.run.open_worker", open_worker_without_memory)
    with pytest.raises(WorkerError, match=rf"device \d of {devices}: MemoryError: there is no memory left"):
        list(make_distributed_run(make_recipe(), devices=devices))
    assert_ended(worker_groups[0].worker_pids, 0)


@pytest.mark.slow
def test_the_error_of_a_worker_that_cannot_start_is_reported(make_recipe, make_distributed_run, monkeypatch):
    monkeypatch.setattr("xfer.run.open_worker", open_worker_without_pack)
    with pytest.raises(WorkerError, match="device 2 of 2: FileNotFoundError: .*/nowhere"):
        list(make_distributed_run(make_recipe()))


@pytest.mark.slow
@pytest.mark.parametrize("open_lost_worker", [exit_with_status_3, open_worker_that_exits_in_a_step])
def test_a_lost_process_is_no_failure_of_the_recipe(make_recipe, make_distributed_run, monkeypatch, open_lost_worker):
    monkeypatch.setattr("xfer.run.open_worker", open_lost_worker)
    with pytest.raises(WorkerLostError, match=r"the process on device 2 of 2 was lost \(exit status 3\)"):
        list(make_distributed_run(make_recipe()))


LEADER = """
import json
import os
import sys
from pathlib import Path
import torch
from xfer.data.pack import load_pack
from xfer.recipe import recipe_from_dict
from xfer.run import Run

def is_worker(process):
    try:
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        return parent == str(os.getpid()) and "spawn_main" in (process / "cmdline").read_text()
    except OSError:
        return False

torch.set_num_threads(1)
recipe, pack, weights = json.loads(sys.argv[1])
run = Run(recipe_from_dict(recipe), load_pack(Path(pack)), Path(weights), torch.device("cpu"), devices=3)
for epoch in run:
    print(json.dumps([int(process.name) for process in Path("/proc").glob("[0-9]*") if is_worker(process)]), flush=True)
    if sys.argv[2] == "between steps":
        sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [pytest.param("between steps", marks=pytest.mark.nightly), "in a step"])
def test_workers_end_when_their_leader_is_killed(make_recipe, pack, weights_of, moment):
    recipe = make_recipe(backbone="test_vit", epochs=10_000)
    arguments = [recipe.as_dict(), str(pack.folder), str(weights_of("test_vit"))]
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, json.dumps(arguments), moment],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        workers = json.loads(leader.stdout.readline())
        assert len(workers) == 2
        assert all(map(is_running, workers))
    finally:
        leader.send_signal(signal.SIGKILL)
        leader.communicate()
    assert_ended(workers)


# Network


def listening_addresses(pid):
    """The addresses on which a process listens, as /proc has them."""
    sockets = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return [line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


@pytest.mark.slow
def test_devices_listen_on_the_loopback_interface_only(make_recipe, make_distributed_run, worker_groups):
    before = listening_addresses(os.getpid())
    run = iter(make_distributed_run(make_recipe(epochs=2)))
    next(run)
    new = listening_addresses(os.getpid())
    for address in before:
        new.remove(address)
    assert {*new, *listening_addresses(worker_groups[0].worker_pids[0])} <= {"0100007F"}
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    run.close()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("changes", [{"backbone": "test_vit"}, {"batch_norm": "frozen"}, {}], ids=str)
def test_two_gpus_have_the_result_of_one(make_recipe, make_distributed_run, changes):
    recipe = make_recipe(**CONSTANT, batch_size=7, epochs=2, **changes)
    gpu = torch.device("cuda")
    single, run = (make_distributed_run(recipe, devices=devices, device=gpu, precision="float32") for devices in (1, 2))
    list(single)
    list(run)
    assert_same_epochs(run, single, rel=1e-3)
    assert_same_weights(run, single, rel=1e-3)
