"""Whether there is a Ray cluster to join, and which workers it may start; does not import Ray, which takes a second.

Ray only knows the machines that are up. The others are described in the cluster file, of which the launcher leaves a
copy on the head. Without a file, as on Kubernetes, the variable XFER_GROWS_TO describes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Copy of the cluster file that `ray up` leaves on the head."""

MAX_WORKERS_ENV = "XFER_GROWS_TO"
"""Environment variable that describes the workers if there is no cluster file; see `parse_worker_types`."""


@dataclass(frozen=True)
class NodeType:
    """A kind of worker that a cluster may start."""

    resources: Mapping[str, float]
    """Amount of each resource, CPU and GPU, of one machine."""
    max_workers: int
    """Maximum number of such machines."""


def cluster_address() -> str:
    """Return the address of the cluster to join, from RAY_ADDRESS; "" if Ray is started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address  # Ray's own word for it


def has_cluster_address() -> bool:
    """Return whether there is a cluster to join; otherwise Ray is started on this machine, and only if needed."""
    return bool(cluster_address())


def worker_node_types() -> tuple[list[NodeType], int | None]:
    """Return the workers that the cluster may start.

    Returns:
        The node types, empty if unknown, and the maximum number of workers of all types together, None for no limit.

    Raises:
        ValueError: XFER_GROWS_TO is malformed.
    """
    if text := os.environ.get(MAX_WORKERS_ENV):
        return parse_worker_types(text), None
    file = BOOTSTRAP_CONFIG.expanduser()
    if not file.is_file():
        return [], None
    import yaml

    return worker_types_from_config(yaml.safe_load(file.read_text(encoding="utf-8")))


def parse_worker_types(text: str) -> list[NodeType]:
    """Parse the value of XFER_GROWS_TO.

    >>> parse_worker_types("8 x CPU=8,GPU=1; 2 x CPU=16")
    [NodeType(resources={'CPU': 8.0, 'GPU': 1.0}, max_workers=8), NodeType(resources={'CPU': 16.0}, max_workers=2)]

    Raises:
        ValueError: the text is malformed.
    """
    types = []
    try:
        for part in filter(None, (part.strip() for part in text.split(";"))):
            count, _, resources = part.partition("x")
            pairs = (pair.partition("=") for pair in resources.split(","))
            types.append(NodeType({name.strip(): float(amount) for name, _, amount in pairs}, int(count)))
    except ValueError:
        raise ValueError(f"{MAX_WORKERS_ENV}={text}: write it as 8 x CPU=8,GPU=1; 2 x CPU=16") from None
    return types


def worker_types_from_config(config: Mapping[str, Any]) -> tuple[list[NodeType], int | None]:
    """Return the worker types of a cluster file, and the maximum number of workers of all types together.

    >>> l4 = {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 8}
    >>> nodes = {"head": {}, "l4": l4}
    >>> worker_types_from_config({"max_workers": 2, "head_node_type": "head", "available_node_types": nodes})
    ([NodeType(resources={'CPU': 8.0, 'GPU': 1.0}, max_workers=8)], 2)
    """
    max_workers = config.get("max_workers")
    nodes = dict(config.get("available_node_types", {}))
    nodes.pop(config.get("head_node_type"), None)
    types = []
    for node in nodes.values():
        resources = {name: float(node.get("resources", {}).get(name, 0)) for name in ("CPU", "GPU")}
        types.append(NodeType(resources, int(node.get("max_workers", max_workers if max_workers is not None else 0))))
    return types, max_workers


def max_resource(resource: str, types: Sequence[NodeType], max_workers: int | None) -> float:
    """Return the largest total amount of a resource that the workers can have.

    Args:
        resource: `CPU` or `GPU`.
        types: worker types that the cluster may start.
        max_workers: maximum number of workers of all types together; None for no limit.

    >>> l4, large = NodeType({"GPU": 1, "CPU": 8}, 8), NodeType({"GPU": 4, "CPU": 48}, 1)
    >>> max_resource("GPU", [l4, large], max_workers=4), max_resource("GPU", [l4, large], None)
    (7.0, 12.0)
    """
    remaining = sum(node.max_workers for node in types) if max_workers is None else max_workers
    total = 0.0
    for node in sorted(types, key=lambda node: -node.resources.get(resource, 0.0)):
        count = min(remaining, node.max_workers)
        remaining -= count
        total += count * node.resources.get(resource, 0.0)
    return total
