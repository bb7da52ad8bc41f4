"""The settings that a user fills in in a cluster file: reads and validates them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PLACEHOLDER = "FILL-IN"
"""Text that marks a value to be filled in."""

MIN_PREFIX_LENGTH = {4: 16, 6: 32}
"""Shortest prefix allowed in `ssh_from`, by IP version: a larger network than an organization's is a mistake."""

COMMAND_KEYS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
"""Keys of a cluster file that hold shell commands."""

PROVIDER_KEYS = {"type", "module", "region", "ssh_from", "bucket", "data_buckets", "image"}
PROVIDER_KEYS |= {"cache_stopped_nodes", "availability_zone", "use_internal_ips", "key_pair"}
"""Keys allowed in `provider`: ours, then those of Ray's AWS provider, except `aws_credentials`, which is a secret."""


@dataclass(frozen=True)
class ClusterSettings:
    """The name of the cluster and the `provider` section of ray_cluster.yaml."""

    cluster: str
    """Name of the cluster."""
    region: str
    ssh_from: str
    """Network that SSH is allowed from, as CIDR."""
    bucket: str
    """Name of the S3 bucket for results."""
    data_buckets: tuple[str, ...]
    """Names of S3 buckets that are only read."""
    image: str
    """Name of the machine image, the same in every region; empty if every node type sets an ImageId."""


def find_placeholders(config: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every value that is still to be filled in.

    >>> list(find_placeholders({"provider": {"region": "FILL-IN"}, "setup_commands": ["echo FILL-IN"]}))
    ['provider.region', 'setup_commands.0']
    """
    if isinstance(config, dict):
        for key, value in config.items():
            yield from find_placeholders(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from find_placeholders(value, f"{path}.{index}")
    elif isinstance(config, str) and PLACEHOLDER in config:
        yield path


def parse_settings(config: dict[str, Any]) -> ClusterSettings:
    """Read the settings of a cluster file for `sweeps.cluster.aws.NodeProvider`.

    Args:
        config: the cluster file.

    Raises:
        ValueError: a setting is missing or invalid; the message says what to write instead.
    """
    provider = config["provider"]
    for name in ("region", "ssh_from", "bucket"):
        value = provider.get(name)
        if not isinstance(value, str) or not value or PLACEHOLDER in value:
            raise ValueError(f"provider.{name} is {value!r}: {_HINTS[name]}")
    if unknown := sorted(provider.keys() - PROVIDER_KEYS - {"_config_cache_path"}):  # the last one is added by Ray
        raise ValueError(f"provider.{unknown[0]} is not a known key; known keys are {', '.join(sorted(PROVIDER_KEYS))}")
    data = provider.get("data_buckets", [])
    if not isinstance(data, list):
        raise ValueError(f"provider.data_buckets is {data!r}: write a list of names, such as [my-photos]")
    for name in (provider["bucket"], *data):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", str(name)):
            raise ValueError(f"{name!r} is not a bucket name: write a name such as my-results, without s3:// and path")
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", provider["region"]):
        raise ValueError(f"provider.region is {provider['region']!r}: {_HINTS['region']}")
    if not re.fullmatch(r"[A-Za-z0-9-]{1,30}", config["cluster_name"]):
        raise ValueError(f"cluster_name is {config['cluster_name']!r}: use at most 30 letters, digits and -")
    return ClusterSettings(
        cluster=config["cluster_name"],
        region=provider["region"],
        ssh_from=_checked_network(provider["ssh_from"]),
        bucket=provider["bucket"],
        data_buckets=tuple(data),
        image=provider.get("image", ""),
    )


def substitute_bucket(config: dict[str, Any], bucket: str) -> dict[str, Any]:
    """Return the configuration with {bucket} replaced in all its commands."""
    commands = {key: [command.replace("{bucket}", bucket) for command in config.get(key, [])] for key in COMMAND_KEYS}
    return config | commands


def _checked_network(cidr: str) -> str:
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as error:
        raise ValueError(f"provider.ssh_from is {cidr!r} ({error}): {_HINTS['ssh_from']}") from None
    if network.prefixlen < MIN_PREFIX_LENGTH[network.version]:
        raise ValueError(
            f"provider.ssh_from is {cidr}, {network.num_addresses} addresses. Use your own, or a prefix of at least "
            f"/{MIN_PREFIX_LENGTH[network.version]}: {_HINTS['ssh_from']}"
        )
    return str(network)


_HINTS = {
    "region": "write the AWS region where the bucket is, such as us-east-1",
    "ssh_from": "write your own public address, such as 203.0.113.7/32; curl https://checkip.amazonaws.com prints it",
    "bucket": "write the name of a private S3 bucket for the results, such as my-results",
}
