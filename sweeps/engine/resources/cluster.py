"""Cluster: whether there is one to join, and which machines it may start. Asked without Ray, which takes a second.

Ray knows which machines are up. Which others it may start stands in the cluster file, of which the launcher leaves a
copy on the head; where there is none, as on Kubernetes, XFER_GROWS_TO says it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` puts the cluster file on the head."""

MAX_WORKERS_ENV = "XFER_GROWS_TO"


@dataclass(frozen=True)
class NodeType:
    """Machines of one kind that a cluster may start."""

    resources: Mapping[str, float]
    """What one has: CPU, GPU."""
    most: int
    """How many there may be."""


def has_cluster_address() -> bool:
    """Whether RAY_ADDRESS names a cluster; otherwise Ray is started on this machine, and only when it is needed."""
    return bool(os.environ.get("RAY_ADDRESS"))


def worker_node_types() -> tuple[list[NodeType], int | None]:
    """The workers that the cluster may start, and how many at most of all kinds together; none where nobody says so."""
    if said := os.environ.get(MAX_WORKERS_ENV):
        return parse_worker_types(said), None
    file = BOOTSTRAP_CONFIG.expanduser()
    if not file.is_file():
        return [], None
    import yaml

    return worker_types_from_config(yaml.safe_load(file.read_text()))


def parse_worker_types(text: str) -> list[NodeType]:
    """What XFER_GROWS_TO says.

    >>> parse_worker_types("8 x CPU=8,GPU=1; 2 x CPU=16")
    [NodeType(resources={'CPU': 8.0, 'GPU': 1.0}, most=8), NodeType(resources={'CPU': 16.0}, most=2)]

    Raises:
        ValueError: it cannot be read.
    """
    found = []
    try:
        for part in filter(None, (part.strip() for part in text.split(";"))):
            most, _, resources = part.partition("x")
            pairs = (pair.partition("=") for pair in resources.split(","))
            found.append(NodeType({name.strip(): float(amount) for name, _, amount in pairs}, int(most)))
    except ValueError:
        raise ValueError(f"{MAX_WORKERS_ENV}={text}: write it as 8 x CPU=8,GPU=1; 2 x CPU=16") from None
    return found


def worker_types_from_config(config: Mapping[str, Any]) -> tuple[list[NodeType], int | None]:
    """The workers in a cluster file, and how many there may be of all kinds together.

    >>> worker_types_from_config({"max_workers": 2, "head_node_type": "head", "available_node_types": {"head": {}, "l4": {
    ...     "resources": {"CPU": 8, "GPU": 1}, "max_workers": 8}}})
    ([NodeType(resources={'CPU': 8.0, 'GPU': 1.0}, most=8)], 2)
    """
    most = config.get("max_workers")
    types = dict(config.get("available_node_types", {}))
    types.pop(config.get("head_node_type"), None)
    found = []
    for each in types.values():
        resources = {name: float(each.get("resources", {}).get(name, 0)) for name in ("CPU", "GPU")}
        found.append(NodeType(resources, int(each.get("max_workers", most if most is not None else 0))))
    return found, most


def max_resource(resource: str, types: Sequence[NodeType], most: int | None) -> float:
    """How much of a resource the workers can come to, if the machines that have the most of it are started.

    >>> l4, large = NodeType({"GPU": 1, "CPU": 8}, 8), NodeType({"GPU": 4, "CPU": 48}, 1)
    >>> max_resource("GPU", [l4, large], most=4), max_resource("GPU", [l4, large], None)
    (7.0, 12.0)
    """
    left, found = sum(each.most for each in types) if most is None else most, 0.0
    for each in sorted(types, key=lambda each: -each.resources.get(resource, 0.0)):
        count = min(left, each.most)
        left, found = left - count, found + count * each.resources.get(resource, 0.0)
    return found
