"""Ray's fake node provider, which starts nodes on its own host, for a cloud that refuses to start some node types."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from sweeps.cluster.fallback import TypeFallback


class RefusingProvider(FakeMultiNodeProvider):
    """Its own setting is `refused`: an error code by node type."""

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        """See NodeProvider."""
        code = self.provider_config["refused"].get(tags[TAG_RAY_USER_NODE_TYPE])
        if code:
            raise NodeLaunchException(code, "We have none.", None)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


class ShortOfMachines(TypeFallback, RefusingProvider):
    """As `sweeps.cluster.aws.NodeProvider`, with a cloud that refuses."""
