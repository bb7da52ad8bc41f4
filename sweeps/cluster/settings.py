"""What a person fills in in a cluster file, read and refused with a reason."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PLACEHOLDER = "FILL-IN"

MIN_PREFIX_LENGTH = {4: 16, 6: 32}
"""The shortest prefix that `ssh_from` may have: more than an organisation's network is a slip, or the whole world."""

COMMAND_KEYS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)

PROVIDER_KEYS = {"type", "module", "region", "ssh_from", "bucket", "data_buckets", "image"}
PROVIDER_KEYS |= {"cache_stopped_nodes", "availability_zone", "use_internal_ips", "key_pair"}
"""The keys of `provider`: ours, then those of Ray's AWS provider. Not `aws_credentials`: no secret belongs here."""


@dataclass(frozen=True)
class ClusterSettings:
    """The `provider` section of ray_cluster.yaml."""

    cluster: str
    """Name of the cluster."""
    region: str
    ssh_from: str
    """The network that may connect, as CIDR."""
    bucket: str
    """Name of the bucket that results go to."""
    data_buckets: tuple[str, ...]
    """Names of further buckets, which are only read."""
    image: str
    """Name of the image, the same in every region; empty where all node types name an ImageId."""


def find_placeholders(config: Any, path: str = "") -> Iterator[str]:
    """Where something is still to be filled in, as dotted paths.

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
    """The settings of a cluster file for `sweeps.cluster.aws.NodeProvider`.

    Raises:
        ValueError: something is missing or cannot be meant; the message says what to write instead.
    """
    provider = config["provider"]
    for name in ("region", "ssh_from", "bucket"):
        value = provider.get(name)
        if not isinstance(value, str) or not value or PLACEHOLDER in value:
            raise ValueError(f"provider.{name} is {value!r}: {_EXPLAINED[name]}")
    known = {"type", "module", "region", "ssh_from", "bucket", "data_buckets", "image", "cache_stopped_nodes"}
    # What Ray itself adds, and what its AWS provider reads besides; not `aws_credentials`, for no secret belongs here.
    known |= {"_config_cache_path", "availability_zone", "use_internal_ips", "key_pair"}
    if unknown := sorted(provider.keys() - known):
        raise ValueError(
            f"provider.{unknown[0]} is not known here; what is: {', '.join(sorted(known - {'_config_cache_path'}))}"
        )
    data = provider.get("data_buckets", [])
    if not isinstance(data, list):
        raise ValueError(f"provider.data_buckets is {data!r}: a list of names, such as [my-photos]")
    for name in (provider["bucket"], *data):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", str(name)):
            raise ValueError(f"{name!r} is no name of an S3 bucket: write my-results, without s3:// and without a path")
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", provider["region"]):
        raise ValueError(f"provider.region is {provider['region']!r}: {_EXPLAINED['region']}")
    if not re.fullmatch(r"[A-Za-z0-9-]{1,30}", config["cluster_name"]):
        raise ValueError(f"cluster_name is {config['cluster_name']!r}: at most 30 letters, digits and -")
    return ClusterSettings(
        cluster=config["cluster_name"],
        region=provider["region"],
        ssh_from=_network(provider["ssh_from"]),
        bucket=provider["bucket"],
        data_buckets=tuple(data),
        image=provider.get("image", ""),
    )


def substitute_bucket(config: dict[str, Any], bucket: str) -> dict[str, Any]:
    """The same configuration, with {bucket} in its commands replaced."""
    commands = {key: [each.replace("{bucket}", bucket) for each in config.get(key, [])] for key in COMMAND_KEYS}
    return config | commands


def _network(written: str) -> str:
    try:
        network = ipaddress.ip_network(written)
    except ValueError as error:
        raise ValueError(f"provider.ssh_from is {written!r} ({error}): {_EXPLAINED['ssh_from']}") from None
    if network.prefixlen < MIN_PREFIX_LENGTH[network.version]:
        raise ValueError(
            f"provider.ssh_from is {written}, {network.num_addresses} addresses. Name yours, or a network of at most "
            f"/{MIN_PREFIX_LENGTH[network.version]}: {_EXPLAINED['ssh_from']}"
        )
    return str(network)


_EXPLAINED = {
    "region": "write the AWS region where the bucket is, such as us-east-1",
    "ssh_from": "write your own public address, such as 203.0.113.7/32; curl https://checkip.amazonaws.com says it",
    "bucket": "write the name of a private S3 bucket for the results, such as my-results",
}
