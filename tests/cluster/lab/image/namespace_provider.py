"""Ray's node provider for the cloud of the laboratory; `provider: {type: external}` names it."""

from __future__ import annotations

import json
import socket
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME


class NamespaceProvider(NodeProvider):
    """Opens a connection for each request, so that any thread may call it.

    Its own setting is `api`, HOST:PORT of the cloud.
    """

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """See NodeProvider."""
        wanted = tag_filters.items()
        return [name for name, each in self._all().items() if _lives(each) and wanted <= each["tags"].items()]

    def is_running(self, node_id: str) -> bool:
        """See NodeProvider."""
        return bool(self._all()[node_id]["state"] == "running")

    def is_terminated(self, node_id: str) -> bool:
        """See NodeProvider."""
        return not _lives(self._all()[node_id])

    def node_tags(self, node_id: str) -> dict[str, str]:
        """See NodeProvider."""
        return dict(self._all()[node_id]["tags"])

    def external_ip(self, node_id: str) -> str:
        """See NodeProvider."""
        return str(self._all()[node_id]["public"])

    def internal_ip(self, node_id: str) -> str:
        """See NodeProvider."""
        return str(self._all()[node_id]["address"])

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> Any:
        """See NodeProvider."""
        tags = {TAG_RAY_CLUSTER_NAME: self.cluster_name, **tags}
        return self._ask("create", cluster=self.cluster_name, node_config=node_config, tags=tags, count=count)

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """See NodeProvider."""
        self._ask("tag", machine=node_id, tags=tags)

    def terminate_node(self, node_id: str) -> None:
        """See NodeProvider."""
        self._ask("terminate", machine=node_id)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """See NodeProvider: nothing to add."""
        return cluster_config

    def _all(self) -> dict[str, Any]:
        machines: dict[str, Any] = self._ask("describe", cluster=self.cluster_name)
        return machines

    def _ask(self, request: str, **arguments: Any) -> Any:
        host, port = self.provider_config["api"].split(":")
        with socket.create_connection((host, int(port)), timeout=30) as cloud, cloud.makefile("rw") as lines:
            lines.write(json.dumps({"do": request, **arguments}) + "\n")
            lines.flush()
            answer = json.loads(lines.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["is"]


def _lives(machine: dict[str, Any]) -> bool:
    return bool(machine["state"] != "terminated")
