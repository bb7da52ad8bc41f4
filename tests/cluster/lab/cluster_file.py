"""The cluster file that the project ships, adapted to the machines of the laboratory.

Commands that a machine of the laboratory does not need or cannot run are left out: it has the packages already, no GPU,
and no systemd (test_idle_shutdown.py runs its check there). Everything else runs as shipped, so that the tests see what
a user gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.cluster.lab.cloud import OFFICE, PORT, ROUTER
from tests.cluster.lab.laboratory import ROOT

SHIPPED = ROOT / "ray_cluster.yaml"
SKIPPED_COMMANDS = ("/pip ", "/uv ", "nvidia-smi", "idle_shutdown.py")
"""Commands that contain one of these are not run."""
WORKER = "l4"
"""The node type of the workers."""


def lab_cluster_config(
    key: Path, storage: str, resources: dict[str, float], workers: int = 2, idle_minutes: float = 0.2
) -> dict[str, Any]:
    """`ray_cluster.yaml` for the laboratory.

    Args:
        key: SSH key of the user, on the desk.
        storage: Replaces `s3://{bucket}`.
        resources: Resources that a worker reports to Ray.
        workers: Maximum number of workers.
        idle_minutes: Idle time after which a worker is terminated.
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
    """The folder on every machine to which the cluster file copies the packages."""
    mounts = yaml.safe_load(SHIPPED.read_text())["file_mounts"]
    (folder,) = [remote.removesuffix("/xfer") for remote, local in mounts.items() if local == "xfer"]
    return folder.replace("~", "/root")


def _can_run(command: str) -> bool:
    return not any(each in command for each in SKIPPED_COMMANDS)
