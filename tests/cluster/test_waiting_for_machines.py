"""With a real Ray whose cloud refuses to start machines, the user learns why, and another type is started instead.

The head of this cluster also shows what keeps it from shutting itself down.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sweeps.cluster.settings import COMMAND_KEYS
from tests.cluster.lab.laboratory import ROOT, Laboratory, wait_until
from tests.cluster.mock_aws import filled_cluster_config

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.usefixtures("can_have_a_laboratory")]

HEAD = "f" * 51 + "00000"
"""Id that Ray's fake provider gives to the head."""

HEAD_TYPE = "ray.head.default"
"""Its node type there."""

DRIVER = """
import sys, ray
from sweeps.engine.resources.machine_watch import MachineWatch
ray.init(address="auto", log_to_driver=False)
address = ray.get_runtime_context().gcs_address
with MachineWatch(address, lambda line: print(line, flush=True), period_seconds=1.0):
    task = ray.remote(num_gpus=1)(lambda: ray.get_runtime_context().get_node_labels())
    print("ran on", ray.get(task.remote())["ray.io/node-group"], flush=True)
"""


def cluster_config(on_demand: int) -> dict[str, Any]:
    """A cluster file with two spot types that the cloud refuses, and up to `on_demand` machines on demand."""
    gpu = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0}
    provider = {
        "type": "external",
        "module": "short_of_machines.ShortOfMachines",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "head_node_id": HEAD,
        "launch_multiple": True,
        "refused": {"l4": "MaxSpotInstanceCountExceeded", "a10g": "InsufficientInstanceCapacity"},
    }
    names = {"l4": {**gpu, "max_workers": 2}, "a10g": {**gpu, "max_workers": 2}}
    names["l4_on_demand"] = {**gpu, "max_workers": on_demand, "priority": -1}
    node_types = {name: {**node, "labels": {"ray.io/node-group": name}} for name, node in names.items()}
    node_types[HEAD_TYPE] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    commands: dict[str, Any] = {key: [] for key in COMMAND_KEYS}
    changed = {"provider": provider, "available_node_types": node_types, "head_node_type": HEAD_TYPE, "max_workers": 2}
    return filled_cluster_config() | commands | changed | {"file_mounts": {}}


def test_the_user_learns_why_nothing_starts_and_then_a_machine_on_demand_runs_the_task(tmp_path: Path) -> None:
    exports = {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    (tmp_path / "lab").mkdir()
    with Laboratory(tmp_path / "lab", readable=[ROOT / "sweeps", ROOT / "xfer"], exports=exports) as lab:
        lab.ask("create", cluster="c", node_config={}, tags={"ray-user-node-type": "head"}, count=1)
        wait_until(lambda: lab.machines(), "the machine ran", lab.log)
        [host] = lab.machines().values()

        def write_config(on_demand: int) -> None:
            text = shlex.quote(json.dumps(cluster_config(on_demand)))
            lab.run(host, f"echo {text} > ~/new && mv ~/new ~/ray_bootstrap_config.yaml")

        def explain() -> str:
            logs = "tail -n 60 /tmp/ray/session_latest/logs/monitor.*"
            return driver.out + lab.run(host, logs, expect_failure=True)

        write_config(on_demand=0)
        start = "ray start --head --port=6379 --num-cpus=0 --autoscaling-config=/root/ray_bootstrap_config.yaml"
        lab.run(host, f"{start} --object-store-memory=80000000")
        driver = lab.start(host, f"python -c {shlex.quote(DRIVER)}")
        expected = (
            "machines: 0 of 2 GPUs are up, ",
            "l4 could not be started, ",
            "MaxSpotInstanceCountExceeded",
            "the account's quota is used up: `python -m sweeps.cluster check`",
            "a10g could not be started, ",
            "InsufficientInstanceCapacity",
            "the cloud has no such machine left now",
        )
        wait_until(lambda: all(text in driver.out for text in expected), "the reasons were printed", explain)
        assert "ran on" not in driver.out
        # The driver, which is a program of the user's own, keeps the head from shutting down for as long as it runs.
        lab.run(host, "mkdir -p ~/.ray && echo token > ~/.ray/auth_token")
        script = ROOT / "sweeps" / "cluster" / "idle_shutdown.py"
        check = f"python -I {script} check --dry-run --home /root --worker-minutes 0 --head-hours 0"
        assert "This head is in use: Ray job 0" in lab.run(host, check)
        write_config(on_demand=1)
        wait_until(lambda: "ran on l4_on_demand" in driver.out, "a machine on demand ran the task", explain)
        assert driver.end().status == 0
        wait_until(lambda: "This head has been idle" in lab.run(host, check), "the driver had ended", explain)
