"""The preflight checks that ask AWS: credentials, bucket, image, network, quotas and spot prices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sweeps.cluster.aws import find_image_id
from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.network import find_vpc
from sweeps.cluster.settings import ClusterSettings

ClientFactory = Callable[[str], Any]
"""Returns boto3's client for the AWS service of that name."""

STANDARD_FAMILIES = "ACDHIMRTZ"
"""Instance families that share the quota called standard."""
QUOTA_CODES = {  # https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html
    ("on demand", "standard"): "L-1216C47A",
    ("on demand", "G and VT"): "L-DB2E81BA",
    ("on demand", "P"): "L-417A185B",
    ("spot", "standard"): "L-34B43A08",
    ("spot", "G and VT"): "L-3819A6DF",
    ("spot", "P"): "L-7212CCBC",
}
"""Quota codes by market and instance family. AWS limits the virtual CPUs that run at a time in each of them."""


def run_aws_checks(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    """Run all checks that ask AWS, one at a time; without valid credentials only that check runs.

    Args:
        config: the cluster file.
        settings: its parsed settings.
        client_factory: makes the clients.

    Yields:
        One result per check. A request that AWS denies is a note, any other failure is `missing`.
    """
    try:
        caller = client_factory("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        yield CheckResult("credentials", "missing", f"{error}: aws configure, aws sso login, or AWS_PROFILE")
        return
    yield CheckResult("credentials", "ok", f"{caller['Arn']}")
    checks = {"bucket": _check_bucket, "image": _check_image, "network": _check_network, "machines": _check_machines}
    for name, check in checks.items():
        try:
            yield from check(config, settings, client_factory)
        except ClientError as error:
            denied = "AccessDenied" in str(error) or "Unauthorized" in str(error)
            yield CheckResult(name, "note" if denied else "missing", f"could not be checked: {_first_line(error)}")
        except (BotoCoreError, ValueError) as error:
            yield CheckResult(name, "missing", str(error))


def make_client_factory(settings: ClusterSettings) -> ClientFactory:
    """Return a factory of clients for the region, with the user's credentials and short timeouts."""
    short_timeouts = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
    session = boto3.Session(region_name=settings.region)
    return lambda service: session.client(service, config=short_timeouts)


def _check_bucket(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    s3, name = client_factory("s3"), settings.bucket
    create_command = f"aws s3 mb s3://{name} --region {settings.region}"
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
            yield CheckResult("bucket", "missing", f"{name} does not exist: {create_command}")
        elif error.response["Error"]["Code"] in ("403", "AccessDenied"):
            yield CheckResult(
                "bucket", "missing", f"you have no access to {name}: choose another name, {create_command}"
            )
        else:
            raise
        return
    region = s3.get_bucket_location(Bucket=name)["LocationConstraint"] or "us-east-1"
    if region != settings.region:
        yield CheckResult(
            "bucket",
            "missing",
            f"{name} is in {region}, the cluster in {settings.region}: use the same region for both",
        )
        return
    try:
        blocks = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchPublicAccessBlockConfiguration":
            raise
        blocks = {}
    required = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    if all(blocks.get(block) for block in required):
        yield CheckResult("bucket", "ok", f"{name} is in {region} and private")
    else:
        command = f"aws s3api put-public-access-block --bucket {name} --public-access-block-configuration "
        yield CheckResult(
            "bucket",
            "missing",
            f"{name} can be made public: {command}{','.join(f'{block}=true' for block in required)}",
        )


def _check_image(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    ec2 = client_factory("ec2")
    image_ids = {node["node_config"].get("ImageId") for node in config["available_node_types"].values()}
    if None in image_ids:
        yield CheckResult("image", "ok", f"{find_image_id(ec2, settings.image)} is {settings.image}")
    for image_id in sorted(filter(None, image_ids)):
        [image] = ec2.describe_images(ImageIds=[image_id])["Images"]
        yield CheckResult("image", "ok", f"{image_id} is {image['Name']}")


def _check_network(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    node_configs = [node["node_config"] for node in config["available_node_types"].values()]
    subnets = [subnet for node_config in node_configs for subnet in node_config.get("SubnetIds", [])]
    yield CheckResult("network", "ok", find_vpc(client_factory("ec2"), subnets))


def quota_family(instance_type: str) -> str:
    """Return the family under whose quota AWS counts an instance type.

    >>> quota_family("g6.2xlarge"), quota_family("m6i.xlarge"), quota_family("p5.48xlarge")
    ('G and VT', 'standard', 'P')
    """
    letters = instance_type[:2].upper() if instance_type.startswith("vt") else instance_type[0].upper()
    return {"G": "G and VT", "VT": "G and VT"}.get(letters, "standard" if letters in STANDARD_FAMILIES else letters)


def _check_machines(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    """Check the quota of every market and family in the file, and today's spot prices."""
    nodes = config["available_node_types"]
    types = sorted({node["node_config"]["InstanceType"] for node in nodes.values()})
    described = client_factory("ec2").describe_instance_types(InstanceTypes=types)["InstanceTypes"]
    vcpus = {row["InstanceType"]: row["VCpuInfo"]["DefaultVCpus"] for row in described}
    types_by_quota: dict[tuple[str, str], set[str]] = {}
    for node in nodes.values():
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        instance_type = node["node_config"]["InstanceType"]
        quota = "spot" if spot else "on demand", quota_family(instance_type)
        types_by_quota.setdefault(quota, set()).add(instance_type)
    for (market, family), instance_types in sorted(types_by_quota.items()):
        used_vcpus = {instance_type: vcpus[instance_type] for instance_type in instance_types}
        yield _check_quota(market, family, used_vcpus, config["max_workers"], client_factory)
    spot_types = sorted(name for (market, _), names in types_by_quota.items() if market == "spot" for name in names)
    if spot_types:
        yield from _check_spot_prices(spot_types, client_factory)


def _check_quota(
    market: str, family: str, vcpus: dict[str, int], max_workers: int, client_factory: ClientFactory
) -> CheckResult:
    """Check whether the quota of a market and family allows the machines of the file.

    Args:
        market: `spot` or `on demand`.
        family: as `quota_family` returns it.
        vcpus: virtual CPUs of each instance type of that family in the file.
        max_workers: the most workers that the cluster may have.
        client_factory: makes the clients.
    """
    name, code = f"quota {market}", QUOTA_CODES.get((market, family))
    if code is None:
        return CheckResult(name, "note", f"{', '.join(sorted(vcpus))}: the quota of this family is not checked")
    quotas = client_factory("service-quotas")
    try:
        limit = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except ClientError as error:
        return CheckResult(name, "note", f"could not be checked: {_first_line(error)}")
    machines = int(limit // min(vcpus.values()))
    needed = min(vcpus.values()) * (max_workers if market == "spot" else 1)  # the head is the only one on demand
    command = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code}"
    message = f"{limit:g} virtual CPUs of {family}: {machines} machines at a time"
    if machines < 1:
        return CheckResult(name, "missing", f"{message}; {command} --desired-value {needed}")
    if market == "spot" and machines < max_workers:
        return CheckResult(
            name, "note", f"{message}, not max_workers {max_workers}; {command} --desired-value {needed}"
        )
    return CheckResult(name, "ok", message)


def _check_spot_prices(instance_types: list[str], client_factory: ClientFactory) -> Iterator[CheckResult]:
    """Report current spot prices. A price does not guarantee that machines are available."""
    history = client_factory("ec2").describe_spot_price_history(
        InstanceTypes=instance_types, ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC)
    )["SpotPriceHistory"]
    offered = 0
    for instance_type in instance_types:
        rows = [row for row in history if row["InstanceType"] == instance_type]
        if rows:
            price, zone = min((float(row["SpotPrice"]), row["AvailabilityZone"]) for row in rows)
            message = f"{price:.4f} dollars an hour now in {zone}, the cheapest zone"
            yield CheckResult(f"spot {instance_type}", "ok", message)
            offered += 1
        else:
            yield CheckResult(f"spot {instance_type}", "note", "not offered in this region now")
    if not offered:
        yield CheckResult(
            "spot", "missing", "no worker's instance type is offered: choose other types or another region"
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
