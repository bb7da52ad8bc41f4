"""Several devices that train one recipe: they come to what one comes to, and end with the process that leads them.

The devices are CPUs' processes that add up by gloo, or threads; what is said of GPUs runs where there are two.
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

from tests.xfer.thread_group import ThreadAllReduce, run_on_threads
from xfer.distributed import process_group
from xfer.distributed.process_group import (
    SINGLE_PROCESS,
    Rank,
    WorkerError,
    WorkerLostError,
    check_devices,
    deserialize,
    serialize,
)
from xfer.records import as_dict
from xfer.run import DivergedError, Run

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
CONSTANT = {"schedule": "constant", "learning_rate": 0.02}
NUMBERS = ("train_loss", "val_loss", "gradient_norm", "distance")


def assert_same_epochs(found, expected, rel=1e-5):
    assert len(found.epochs) == len(expected.epochs)
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        for name in NUMBERS:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=rel, abs=rel), name
        assert (one.train_accuracy, one.learning_rate) == (other.train_accuracy, other.learning_rate)


def assert_same_weights(found, expected, rel=1e-5):
    state = found.model.state_dict()
    for name, tensor in expected.model.state_dict().items():
        away = (state[name].double() - tensor.double()).norm()
        assert float(away) <= rel * float(tensor.double().norm()) + 1e-8, name


# What a step comes to, with threads for devices


@pytest.fixture
def in_double(monkeypatch):
    """All in float64: through the statistics of few images, rounding in float32 grows a thousandfold in a few steps."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


OF_SINGLE_IMAGES = {
    "a transformer": {"backbone": "test_vit", "clip_norm": 0.5},
    "flipped images": {"backbone": "test_vit", "augmentation": "flip"},
    "frozen statistics": {"backbone": "test_efficientnet", "batch_norm": "frozen"},
    "standardised weights": {"backbone": "test_nfnet"},
    "staying near the start": {"strategy": "l2_sp", "backbone": "test_vit"},
    "clipped values": {"backbone": "test_vit", "clip_value": 0.01},
    "pairs": {"backbone": "test_vit", "embedding_loss": "contrastive"},
    "centres of its own": {"backbone": "test_vit", "embedding_loss": "arcface"},
}
OF_BATCHES = {
    "statistics of the batch": {"backbone": "test_efficientnet"},
    "statistics in a residual network": {"backbone": "test_resnet", "optimizer": "adam", "learning_rate": 1e-3},
    "statistics alone follow": {"strategy": "linear_probe", "batch_norm": "always"},
    "the upper half on features": {"backbone": "test_resnet", "strategy": "freeze_first"},
    "triplets over statistics": {"embedding_loss": "triplet"},
}


def followed(runs, reference):
    """Train all runs together as the devices of a team, the leader included, as if each were told what it is."""
    tasks = [
        {"state": None, "epochs": [as_dict(epoch) for epoch in reference.epochs[:number]]}
        for number in range(len(reference.epochs))
    ]
    for run in runs:
        run._set_pace(0)  # a network is cut by tracing it, which is nothing for two threads at a time
    add = ThreadAllReduce(len(runs))
    run_on_threads(len(runs), lambda this_rank: runs[this_rank.rank].train_as_worker(this_rank, tasks), add)
    return add


def assert_devices_come_to_what_one_comes_to(make_recipe, make_run, changes, rel):
    # 24 images: batches of 9, 9 and 6.
    recipe = make_recipe(**{**CONSTANT, "batch_size": 9, "epochs": 2, **changes})
    alone = make_run(recipe)
    list(alone)
    runs = [make_run(recipe) for _ in range(2)]
    followed(runs, alone)
    for run in runs:
        assert_same_weights(run, alone, rel)
    first, second = (run.model.state_dict() for run in runs)
    assert [name for name in first if not torch.equal(first[name], second[name])] == [], "bit for bit"


@pytest.mark.parametrize("changes", OF_SINGLE_IMAGES.values(), ids=OF_SINGLE_IMAGES)
def test_devices_together_come_to_what_one_comes_to(make_recipe, make_run, changes):
    assert_devices_come_to_what_one_comes_to(make_recipe, make_run, changes, rel=1e-5)


@pytest.mark.parametrize("changes", OF_BATCHES.values(), ids=OF_BATCHES)
def test_so_they_do_where_a_network_asks_for_the_whole_batch(make_recipe, make_run, in_double, changes):
    assert_devices_come_to_what_one_comes_to(make_recipe, make_run, changes, rel=1e-9)


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
def test_a_last_batch_smaller_than_the_team_counts_once(make_recipe, make_run, in_double, backbone):
    recipe = make_recipe(**CONSTANT, backbone=backbone, batch_size=11, epochs=1)  # 24 = 11 + 11 + 2
    alone = make_run(recipe)
    list(alone)
    runs = [make_run(recipe) for _ in range(3)]
    followed(runs, alone)
    for run in runs:
        assert_same_weights(run, alone, rel=1e-9)


def test_loss_hits_and_norm_of_a_step_are_those_of_the_whole_batch(make_recipe, make_run):
    recipe = make_recipe(**CONSTANT, backbone="test_vit", batch_size=7, epochs=1)
    alone = make_run(recipe)
    expected = alone._take_steps(0)
    runs = [make_run(recipe) for _ in range(3)]

    def work(this_rank):
        runs[this_rank.rank]._learner.this_rank = this_rank
        return runs[this_rank.rank]._take_steps(0)

    for taken in run_on_threads(3, work):
        assert taken.hits == expected.hits
        assert taken.losses == pytest.approx(expected.losses, rel=1e-5)
        assert taken.norms == pytest.approx(expected.norms, rel=1e-5)
        assert (taken.rate, taken.images) == (expected.rate, expected.images)


def test_a_step_without_batch_statistics_is_one_message(make_recipe, make_run):
    recipe = make_recipe(**CONSTANT, backbone="test_vit", batch_size=8, epochs=1)
    alone = make_run(recipe)
    list(alone)
    assert followed([make_run(recipe) for _ in range(2)], alone).messages == 3  # 24 images


def test_each_device_drops_other_activations(make_recipe, make_run, monkeypatch):
    run = make_run(make_recipe(backbone="test_vit", epochs=1))
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    run._take_steps(0)
    for rank in range(3):
        run._learner.this_rank = Rank(rank, 3, lambda tensor: None)
        run._take_steps(0)
    alone, *others = seeds
    assert alone == others[0]
    assert len(set(others)) == 3


# Memory


def short_of_memory(run, most):
    """Let a network run out of memory with more than so many images."""

    def refuse(module, inputs):
        if len(inputs[0]) > most and module.training:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run.model.register_forward_pre_hook(refuse)


def test_a_device_whose_memory_runs_out_divides_its_own_slice(make_recipe, make_run):
    recipe = make_recipe(**CONSTANT, backbone="test_vit", batch_size=8, epochs=2)
    alone = make_run(recipe)
    list(alone)
    runs = [make_run(recipe) for _ in range(2)]
    short_of_memory(runs[1], 1)
    followed(runs, alone)
    assert [run._learner.micro_batch for run in runs] == [None, 1]
    assert_same_weights(runs[0], alone)
    assert_same_weights(runs[1], alone)


def test_batch_norms_that_follow_all_devices_cannot_be_divided_by_one(make_recipe, make_run):
    run = make_run(make_recipe(batch_size=8))
    short_of_memory(run, 2)
    with pytest.raises(
        MemoryError, match="4 images .* because its batch norms follow the images of 2 devices, .*: take a smaller"
    ):
        run.train_as_worker(Rank(0, 2, lambda tensor: None), [{"state": None, "epochs": []}])


# Devices


def test_there_must_be_so_many_devices(monkeypatch):
    check_devices(CPU, 3)
    with pytest.raises(ValueError, match="0 devices"):
        check_devices(CPU, 0)
    with pytest.raises(ValueError, match="2 devices: of kind mps a machine has one"):
        check_devices(torch.device("mps"), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    check_devices(torch.device("cuda"), 3)
    check_devices(torch.device("cuda", 1), 2)
    with pytest.raises(ValueError, match="2 devices, but from cuda:2 onwards this process sees 1"):
        check_devices(torch.device("cuda", 2), 2)
    assert process_group.worker_device(torch.device("cuda", 1), 1) == torch.device("cuda", 2)
    assert process_group.worker_device(torch.device("cuda"), 1) == torch.device("cuda", 1)
    assert process_group.worker_device(CPU, 1) == CPU


def test_messages_are_plain_data_and_tensors_and_come_back_as_they_were(make_recipe, make_run):
    run = make_run(make_recipe(optimizer="ranger", epochs=1, embedding_loss="arcface"))
    list(run)
    state = run._learner.state_dict()
    found = deserialize(serialize({"state": state}))["state"]
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in state["model"].items())
    other = make_run(run.recipe)
    other._learner.load_state_dict(found)
    assert_same_weights(other, run, rel=0)


def test_one_device_alone_starts_nothing(make_recipe, make_run, monkeypatch):
    monkeypatch.setattr("xfer.run.WorkerGroup", None)
    run = make_run(make_recipe(epochs=1))
    list(run)
    assert run._learner.this_rank is SINGLE_PROCESS
    assert run.record().arithmetic == "float32"


# Processes


@pytest.fixture
def teams(monkeypatch):
    """The teams that were started."""
    started = []

    class Noted(process_group.WorkerGroup):
        def __init__(self, *given):
            super().__init__(*given)
            started.append(self)

    monkeypatch.setattr("xfer.run.WorkerGroup", Noted)
    return started


@pytest.fixture
def make_team_run(pack, weights_of, one_thread):
    def run(recipe, folder=None, devices=2, device=CPU, **more):
        file = weights_of(recipe.backbone) if recipe.weights else None
        return Run(recipe, pack, file, device=device, folder=folder, devices=devices, **more)

    return run


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_gone(worker_pids, seconds=20.0):
    until = time.monotonic() + seconds
    while any(map(is_there, worker_pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert [pid for pid in worker_pids if is_there(pid)] == []


def patched(monkeypatch, code):
    """Let followers run some code first."""
    start = subprocess.Popen
    monkeypatch.setattr(
        process_group.subprocess,
        "Popen",
        lambda command, **more: start([*command[:-1], f"{code}\n{command[-1]}"], **more),
    )


IN_DOUBLE = "import torch; torch.Tensor.float = torch.Tensor.double; torch.set_default_dtype(torch.float64)"
CHANCE = {"augmentation": "randaugment", "mixing": "cutmix"}
LONG = {
    "a transformer": {"backbone": "test_vit", **CHANCE, "clip_norm": 1.0},
    "frozen statistics": {"batch_norm": "frozen", "augmentation": "random_resized_crop"},
    "a head, then all": {"strategy": "freeze_then_unfreeze", "backbone": "test_vit"},
    "a head, until it has converged": {"strategy": "freeze_until_converged", "backbone": "test_vit"},
    "a head in closed form, then all": {"strategy": "lp_ft", "backbone": "test_vit"},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", LONG.values(), ids=LONG)
def test_a_run_on_two_devices_comes_to_what_one_on_one_comes_to(make_recipe, make_run, make_team_run, teams, changes):
    recipe = make_recipe(**{"schedule": "cosine", "learning_rate": 0.02, "batch_size": 7, "epochs": 4, **changes})
    alone, run = make_run(recipe), make_team_run(recipe)
    list(alone)
    list(run)
    assert len(teams) == 1
    assert_gone(teams[0].worker_pids, 0)
    assert_same_epochs(run, alone, rel=1e-5)
    assert_same_weights(run, alone, rel=1e-5)
    assert run.record().arithmetic == "float32, 2 devices"
    assert run.record().id == alone.record().id
    assert run.evaluate("test").correct == alone.evaluate("test").correct


@pytest.mark.slow
@pytest.mark.parametrize("changes", [CHANCE, {"embedding_loss": "contrastive"}], ids=str)
def test_so_does_one_whose_network_asks_for_the_whole_batch(
    make_recipe, make_run, make_team_run, in_double, monkeypatch, changes
):
    patched(monkeypatch, IN_DOUBLE)
    recipe = make_recipe(batch_size=7, epochs=3, **changes)
    alone, run = make_run(recipe), make_team_run(recipe)
    list(alone)
    list(run)
    # Batches of 7, 7, 7 and 3: what begins as a difference of 1e-15 has grown to 1e-9 after twelve steps.
    assert_same_epochs(run, alone, rel=1e-6)
    assert_same_weights(run, alone, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["naive", "freeze_then_unfreeze"])
def test_stopped_and_resumed_a_team_comes_to_what_it_comes_to_uninterrupted(
    make_recipe, make_run, make_team_run, tmp_path, teams, strategy
):
    recipe = make_recipe(strategy=strategy, backbone="test_vit", optimizer="adam", learning_rate=1e-3, epochs=4)
    uninterrupted = make_team_run(recipe)
    list(uninterrupted)
    run = make_team_run(recipe, tmp_path)
    for epoch in run:
        if epoch.epoch == 3:
            break
    assert_gone(teams[-1].worker_pids, 0)  # whoever leaves the loop leaves nobody behind
    resumed = make_team_run(recipe, tmp_path)
    list(resumed)
    assert resumed.resumed_at == (3,)
    assert_same_weights(resumed, uninterrupted, rel=0)
    # And on another number of devices than it was begun with.
    other = make_team_run(recipe, devices=1)
    list(other)
    assert_same_epochs(resumed, other, rel=1e-4)  # where a gradient is nothing but rounding, Adam makes steps of it


@pytest.mark.slow
def test_a_head_on_features_is_trained_by_the_leader_alone(make_recipe, make_team_run, tmp_path, teams):
    run = make_team_run(make_recipe(strategy="freeze_then_unfreeze", epochs=3))
    seen = []
    for _ in run:
        seen.append((len(teams), run.record().arithmetic))
    assert seen == [(0, "float32"), (0, "float32"), (1, "float32, 2 devices")]
    probe = make_team_run(make_recipe(strategy="linear_probe"))
    list(probe)
    assert probe.record().arithmetic == "float32"
    fitted = make_team_run(make_recipe(strategy="ridge_probe", epochs=1))
    list(fitted)
    assert len(teams) == 1


@pytest.mark.slow
def test_followers_end_when_the_one_who_iterates_fails(make_recipe, make_team_run, teams):
    run = make_team_run(make_recipe(epochs=3))

    def fail():
        for _ in run:
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_gone(teams[0].worker_pids, 0)
    assert len(list(run)) == 2  # and a new team goes on
    assert len(teams) == 2


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_all(make_recipe, make_team_run, teams):
    run = make_team_run(make_recipe(learning_rate=100.0, epochs=5, backbone="test_resnet", schedule="constant"))
    with pytest.raises(DivergedError):
        list(run)
    assert_gone(teams[0].worker_pids, 0)


@pytest.mark.slow
def test_a_process_that_takes_part_in_something_else_cannot_lead(make_recipe, make_team_run, tmp_path):
    run = make_team_run(make_recipe(epochs=1))
    with (
        process_group.join_process_group(tmp_path, 0, 1, CPU),
        pytest.raises(ValueError, match="torch.distributed already"),
    ):
        list(run)


END = "import os; os._exit(3)"
OUT_OF_MEMORY = """
import torch
from xfer.training.learner import Learner
def step(*given):
    raise MemoryError("there is no more")
Learner.step = step
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_why_another_device_gave_up_is_said(make_recipe, make_team_run, monkeypatch, teams, devices):
    patched(monkeypatch, OUT_OF_MEMORY)
    with pytest.raises(WorkerError, match=rf"device \d of {devices}: MemoryError: there is no more"):
        list(make_team_run(make_recipe(), devices=devices))
    assert_gone(teams[0].worker_pids, 0)


@pytest.mark.slow
def test_why_another_device_cannot_begin_is_said(make_recipe, make_team_run, monkeypatch):
    patched(
        monkeypatch,
        "import xfer.distributed.worker\nxfer.distributed.worker.load_pack = lambda folder: open('/nowhere')",
    )
    with pytest.raises(WorkerError, match="device 2 of 2: FileNotFoundError: .*/nowhere"):
        list(make_team_run(make_recipe()))


@pytest.mark.slow
@pytest.mark.parametrize("code", [END, OUT_OF_MEMORY.replace("raise", f"{END}  #")])
def test_a_process_that_was_lost_is_no_failure_of_the_recipe(make_recipe, make_team_run, monkeypatch, code):
    patched(monkeypatch, code)
    with pytest.raises(WorkerLostError, match=r"the process on device 2 of 2 was lost \(exit status 3\)"):
        list(make_team_run(make_recipe()))


LEADER = """
import sys
from pathlib import Path
import torch
from xfer.data.pack import load_pack
from xfer.recipe import recipe_from
from xfer.run import Run
import json
torch.set_num_threads(1)
recipe, pack, weights = json.loads(sys.argv[1])
run = Run(recipe_from(recipe), load_pack(Path(pack)), Path(weights), torch.device("cpu"), devices=3)
for epoch in run:
    print(json.dumps(run._team.processes), flush=True)
    if sys.argv[2] == "between":
        sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["between", "in"])
def test_followers_end_when_their_leader_is_killed(make_recipe, pack, weights_of, moment):
    recipe = make_recipe(backbone="test_vit", epochs=10_000)
    given = [recipe.as_dict(), str(pack.folder), str(weights_of("test_vit"))]
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, json.dumps(given), moment],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        followers = json.loads(leader.stdout.readline())
        assert len(followers) == 2
        assert all(map(is_there, followers))
    finally:
        leader.send_signal(signal.SIGKILL)
        leader.communicate()
    assert_gone(followers)


def listening(pid):
    """The addresses on which a process listens, as /proc has them."""
    sockets = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return [line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


@pytest.mark.slow
def test_a_team_listens_on_the_loopback_interface_alone(make_recipe, make_team_run, teams):
    before = listening(os.getpid())
    run = iter(make_team_run(make_recipe(epochs=2)))
    next(run)
    ours = listening(os.getpid())
    for address in before:
        ours.remove(address)
    assert {*ours, *listening(teams[0].worker_pids[0])} <= {"0100007F"}
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    run.close()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("changes", [{"backbone": "test_vit"}, {"batch_norm": "frozen"}, {}], ids=str)
def test_two_gpus_come_to_what_one_comes_to(make_recipe, make_team_run, changes):
    recipe = make_recipe(**CONSTANT, batch_size=7, epochs=2, **changes)
    gpu = torch.device("cuda")
    alone, run = (make_team_run(recipe, devices=devices, device=gpu, precision="float32") for devices in (1, 2))
    list(alone)
    list(run)
    assert_same_epochs(run, alone, rel=1e-3)
    assert_same_weights(run, alone, rel=1e-3)
