"""The cluster file that the project ships, on the laboratory's machines: its own commands, on hosts of another cloud.

What a machine of the laboratory has already, or cannot have, is left out: packages are not installed a second time, and
there is no GPU to be asked. Everything else is run as it stands, so that what the tests see is what a user gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.cluster.lab.cloud import OFFICE, PORT, ROUTER
from tests.cluster.lab.laboratory import ROOT

SHIPPED = ROOT / "ray_cluster.yaml"
SKIPPED_COMMANDS = ("/pip ", "nvidia-smi")
"""A command with one of these in it is not run here."""
WORKER = "l4"
"""The one of its kinds of workers that is taken."""


def lab_cluster_config(
    key: Path, storage: str, resources: dict[str, float], workers: int = 2, idle_minutes: float = 0.2
) -> dict[str, Any]:
    """`ray_cluster.yaml` for the laboratory.

    Args:
        key: the user's SSH key, on the desk.
        storage: what stands in the place of `s3://BUCKET`.
        resources: what a worker says that it has.
        workers: how many there may be at a time.
        idle_minutes: after which time without work one leaves.
    """
    text = SHIPPED.read_text().replace("s3://{bucket}", storage)
    shipped: dict[str, Any] = yaml.safe_load(text)
    kinds = shipped["available_node_types"]
    head = shipped["head_node_type"]
    worker = {**kinds[WORKER], "resources": resources, "max_workers": workers}
    commands = {
        name: [each for each in shipped[name] if _can_run(each)] for name in shipped if name.endswith("commands")
    }
    return {
        **shipped,
        **commands,
        "provider": {
            "type": "external",
            "module": "namespace_provider.NamespaceProvider",
            "api": f"{OFFICE}.{ROUTER}:{PORT}",
        },
        "auth": {"ssh_user": "root", "ssh_private_key": str(key)},
        "available_node_types": {head: kinds[head], WORKER: worker},
        "max_workers": workers,
        "idle_timeout_minutes": idle_minutes,
    }


def project_folder() -> str:
    """The folder that the cluster file brings the packages to, on every machine."""
    mounts = yaml.safe_load(SHIPPED.read_text())["file_mounts"]
    (there,) = [far.removesuffix("/xfer") for far, near in mounts.items() if near == "xfer"]
    return there.replace("~", "/root")


def _can_run(command: str) -> bool:
    return not any(each in command for each in SKIPPED_COMMANDS)
