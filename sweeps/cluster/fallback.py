"""Starts a machine of another type when the cloud has none of the requested type.

Ray's autoscaler (v2, 2.60) prefers node types with a higher `priority`. It avoids a type for a while if its machine was
granted but never came up, but not if the cloud refused the request at once, as EC2 does without spot capacity or quota:
it requests the same type again and again. A provider with this mixin starts the next type by priority instead. Ray
finds the machine among those of the cluster, and sets it up like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from ray.autoscaler._private.util import hash_launch_conf
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_LAUNCH_REQUEST,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)

from sweeps.engine.resources.cluster import BOOTSTRAP_CONFIG
from sweeps.engine.resources.launch_errors import find_problem

log = logging.getLogger(__name__)


class TypeFallback:
    """Mixin for a node provider of Ray's, to be named before it among the base classes."""

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> Any:
        """Start workers; if the cloud has no room for their type, start others of the same size.

        Raises:
            Exception: the provider's own error if the requested type did not start, even if others have: Ray must not
                wait for a machine of the requested type.
        """
        provider: Any = super()
        try:
            return provider.create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
        except Exception as error:
            problem = find_problem(str(error))
            if tags.get(TAG_RAY_NODE_KIND) != NODE_KIND_WORKER or problem is None or not problem.depends_on_type:
                raise
            config = yaml.safe_load(BOOTSTRAP_CONFIG.expanduser().read_text(encoding="utf-8"))
            missing = count
            for name, node in alternatives(config, tags[TAG_RAY_USER_NODE_TYPE], resources):
                missing -= self._start(provider, config, name, node, tags, missing)
                if not missing:
                    break
            raise

    def _start(
        self, provider: Any, config: Mapping[str, Any], name: str, node: Any, tags: Mapping[str, str], count: int
    ) -> int:
        """Start up to `count` workers of a type, within its maximum; return how many have started."""
        running = provider.non_terminated_nodes({TAG_RAY_USER_NODE_TYPE: name})
        count = min(count, node.get("max_workers", 0) - len(running))
        if count < 1:
            return 0
        node_config = node["node_config"]
        own_tags = {key: value for key, value in tags.items() if key != TAG_RAY_LAUNCH_REQUEST}
        own_tags |= {TAG_RAY_USER_NODE_TYPE: name}
        launch_hash = hash_launch_conf(node_config, config.get("auth", {}))  # type: ignore[no-untyped-call]
        own_tags |= {TAG_RAY_LAUNCH_CONFIG: launch_hash}
        try:
            started = provider.create_node_with_resources_and_labels(
                node_config, own_tags, count, node["resources"], node.get("labels", {})
            )
        except Exception as error:
            # The words of Ray's own message, by which `machine_watch` finds it.
            log.info("Failed to launch %d nodes of type %s: %s", count, name, error)
            return 0
        count = len(started) if started else count  # a cloud may start fewer than requested
        log.info("Launched %d nodes of type %s instead of %s", count, name, tags[TAG_RAY_USER_NODE_TYPE])
        return count


def alternatives(
    config: Mapping[str, Any], requested: str, resources: Mapping[str, float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the worker types that can replace a requested one, by descending priority, then as in the file.

    Args:
        config: the cluster file.
        requested: the type that could not be started.
        resources: what a machine of that type has.
    """
    types = config["available_node_types"]
    for name in sorted(types, key=lambda name: -types[name].get("priority", 0)):
        has = types[name].get("resources", {})
        if name not in (requested, config["head_node_type"]) and all(
            has.get(kind, 0) >= amount for kind, amount in resources.items() if kind in ("CPU", "GPU")
        ):
            yield name, types[name]
