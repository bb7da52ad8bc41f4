"""The interface to Ray: which processes trials and probes get, and the node type and price label of a machine.

One Ray is started for all tests, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest

from tests.sweep_commands import MARKER_ENV_VAR, ROOT, TIMEOUT_SECONDS

SCRIPT = """
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import ray
from ray import tune

from sweeps.engine.trials import ray_connection, ray_tune
from sweeps.engine.trials.trainable import Resources
from tests import sweep_commands


class Trial:
    def process(self):
        return os.getpid()


def idle_processes():
    marked = sweep_commands.processes_with(sweep_commands.MARKER_ENV_VAR, os.environ[sweep_commands.MARKER_ENV_VAR])
    return {pid for pid in marked if pathlib.Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::IDLE")}


ray_connection.connect_ray()
print(ray_tune.alive_machines())
ask = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None)"
address = ray.get_runtime_context().gcs_address
for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}, {}):
    environment = {**os.environ, "RAY_AUTH_MODE": "token", **token}
    answer = subprocess.run([sys.executable, "-c", ask, address], env=environment, capture_output=True, text=True)
    print(address, "InvalidAuthToken" in answer.stderr, answer.returncode)
cores = os.cpu_count() or 1
limit = time.monotonic() + 120
while len(started := idle_processes()) < cores and time.monotonic() < limit:
    time.sleep(0.1)
run_config = tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0)
(result,) = tune.Tuner(lambda config: {"process": os.getpid()}, run_config=run_config).fit()
print("started with Ray" if result.metrics["process"] in started else "new")
trials = [ray.remote(num_cpus=1)(Trial).remote() for _ in range(cores)]
ray.get([trial.process.remote() for trial in trials])


def probe_process():
    return ray.get(ray_tune.submit(lambda argument: os.getpid(), None, Resources()))


first = probe_process()
time.sleep(8)  # Ray ends a surplus idle process after one second, but checks only now and then
print("reused" if probe_process() == first else "replaced")
"""


@pytest.fixture(scope="module")
def printed_lines() -> list[str]:
    """What the script printed on a node that `ray up` gave a type and a label."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    labels = {"xfer/usd-per-hour": "0.36"}
    environment |= {MARKER_ENV_VAR: uuid.uuid4().hex}
    environment |= {"RAY_NODE_TYPE_NAME": "l4", "RAY_OVERRIDE_LABELS": json.dumps(labels, separators=(",", ":"))}
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout.splitlines()


@pytest.mark.slow
def test_the_node_type_and_labels_that_ray_up_sets_are_read_back(printed_lines: list[str]) -> None:
    assert printed_lines[0] == "[Machine(node_type='l4', label_price=0.36)]"


@pytest.mark.slow
def test_ray_listens_on_this_machine_only_and_refuses_connections_without_its_token(printed_lines: list[str]) -> None:
    answers = [line.split() for line in printed_lines[1:4]]
    assert all(address.startswith("127.0.0.1:") for address, *_ in answers)
    assert [answer[1:] for answer in answers] == [["True", "1"], ["True", "1"], ["False", "0"]]


@pytest.mark.slow
def test_a_trial_runs_in_a_process_that_has_started_with_ray(printed_lines: list[str]) -> None:
    assert "started with Ray" in printed_lines


@pytest.mark.slow
def test_the_process_for_probes_is_reused_while_trials_occupy_all_cores(printed_lines: list[str]) -> None:
    assert printed_lines[-1] == "reused"
