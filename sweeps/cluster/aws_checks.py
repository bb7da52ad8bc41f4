"""The preflight checks that ask AWS: credentials, bucket, image, zones, permissions, quotas and spot prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from sweeps.cluster.aws import find_image, tag_volumes
from sweeps.cluster.aws_permissions import check_head_role, check_start, check_user
from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.iam import AwsAccount
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
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        yield CheckResult(
            "credentials", "missing", f"{_first_line(error)}: aws configure, aws sso login, or AWS_PROFILE"
        )
        return
    yield CheckResult("credentials", "ok", f"{caller['Arn']}")
    checks = {
        "bucket": _check_bucket,
        "image": _check_image,
        "network": _check_network,
        "permissions": _check_permissions,
        "machines": _check_machines,
    }
    for name, check in checks.items():
        try:
            yield from check(config, settings, client_factory)
        except ClientError as error:
            denied = "AccessDenied" in str(error) or "Unauthorized" in str(error)
            yield CheckResult(name, "note" if denied else "missing", f"could not be checked: {_first_line(error)}")
        except ResponseParserError as error:  # an answer that is not AWS's own, such as a proxy's
            yield CheckResult(name, "note", f"could not be checked: {_first_line(error)}")
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
    """Check that the image exists, and that the disks in the file fit its root device and its snapshot."""
    ec2 = client_factory("ec2")
    by_id: dict[str | None, dict[str, Any]] = {}
    for name, node in config["available_node_types"].items():
        image_id = node["node_config"].get("ImageId")
        if image_id not in by_id:
            by_id[image_id] = _find_image(ec2, settings, image_id)
            yield CheckResult("image", "ok", f"{by_id[image_id]['ImageId']} is {by_id[image_id]['Name']}")
        if problem := disk_problem(node["node_config"], by_id[image_id]):
            yield CheckResult(f"disk {name}", "missing", problem)


def _find_image(ec2: Any, settings: ClusterSettings, image_id: str | None) -> dict[str, Any]:
    if image_id is None:
        return find_image(ec2, settings.image)
    images = ec2.describe_images(ImageIds=[image_id])["Images"]
    if not images:
        raise ValueError(f"{image_id} does not exist in {settings.region}: an ImageId is valid in one region only")
    found: dict[str, Any] = images[0]
    return found


def disk_problem(node_config: dict[str, Any], image: dict[str, Any]) -> str:
    """Return why the disks of a node type do not fit its image, and what to write instead; "" if they do.

    Args:
        node_config: the node type's, as in the cluster file.
        image: the image, as EC2 describes it.
    """
    root = image.get("RootDeviceName")
    disks = {disk["DeviceName"]: disk.get("Ebs", {}) for disk in node_config.get("BlockDeviceMappings", [])}
    if not disks:
        return ""
    if root not in disks:
        written = ", ".join(sorted(disks))
        return f"{written} is not the image's root device: write DeviceName: {root}, or the root disk is not encrypted"
    snapshots = {disk["DeviceName"]: disk.get("Ebs", {}) for disk in image.get("BlockDeviceMappings", [])}
    minimum, size = snapshots.get(root, {}).get("VolumeSize", 0), disks[root].get("VolumeSize")
    if size is not None and size < minimum:
        return f"VolumeSize {size} is smaller than the image's snapshot: write at least {minimum}"
    return ""


def _check_network(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    """Check the VPC, and how many of its zones offer each worker's instance type: Ray tries one after another."""
    ec2 = client_factory("ec2")
    vpc = find_vpc(ec2, _subnet_ids(config))
    subnets = _usable_subnets(ec2, config, vpc)
    zones = sorted({subnet["AvailabilityZone"] for subnet in subnets})
    if not zones:
        message = f"{vpc} has no subnet for the machines: aws ec2 create-default-subnet --availability-zone ZONE"
        yield CheckResult("network", "missing", message)
        return
    yield CheckResult("network", "ok", f"{vpc}, with subnets in {', '.join(zones)}")
    for instance_type in sorted({node["node_config"]["InstanceType"] for node in _workers(config).values()}):
        offers = ec2.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [instance_type]}]
        )["InstanceTypeOfferings"]
        offered = sorted({offer["Location"] for offer in offers})
        common = [zone for zone in zones if zone in offered]
        others = [zone for zone in offered if zone not in zones]
        name = f"zones {instance_type}"
        if len(common) > 1:
            yield CheckResult(name, "ok", f"offered in {', '.join(common)}")
            continue
        advice = (
            f"add a subnet in {' or '.join(others)}: aws ec2 create-default-subnet --availability-zone {others[0]}"
            if others
            else "choose another instance type or region"
        )
        if not common:
            yield CheckResult(name, "missing", f"not offered in a zone of your subnets; {advice}")
        else:
            message = f"offered in one zone of your subnets only, {common[0]}, which may have no machine free"
            yield CheckResult(name, "note", f"{message}; {advice}")


def _workers(config: dict[str, Any]) -> dict[str, Any]:
    """Return the worker types that may start at all."""
    nodes = config["available_node_types"].items()
    return {name: node for name, node in nodes if name != config["head_node_type"] and node.get("max_workers", 1)}


def _subnet_ids(config: dict[str, Any]) -> list[str]:
    nodes = config["available_node_types"].values()
    return sorted({subnet for node in nodes for subnet in node["node_config"].get("SubnetIds", [])})


def _usable_subnets(ec2: Any, config: dict[str, Any], vpc: str) -> list[dict[str, Any]]:
    """Return the subnets that Ray will use: those in the file, else those of the VPC that are in the file's zones."""
    chosen = _subnet_ids(config)
    if chosen:
        found: list[dict[str, Any]] = ec2.describe_subnets(SubnetIds=chosen)["Subnets"]
        return found
    subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    zones = str(config["provider"].get("availability_zone") or "").split(",")
    return [
        subnet
        for subnet in subnets
        if subnet.get("MapPublicIpOnLaunch") and (zones == [""] or subnet["AvailabilityZone"] in zones)
    ]


def _check_permissions(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    """Check the user's rights and those of the head-to-be, and ask EC2 whether it would start each node type."""
    caller = client_factory("sts").get_caller_identity()
    account = AwsAccount(caller["Arn"].split(":")[1], caller["Account"])
    iam, ec2 = client_factory("iam"), client_factory("ec2")
    vpc = find_vpc(ec2, _subnet_ids(config))
    groups = ec2.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [f"{settings.cluster}-ray"]}]
    )["SecurityGroups"]
    group = groups[0]["GroupId"] if groups else "sg-0123456789abcdef0"
    types = [node["node_config"]["InstanceType"] for node in config["available_node_types"].values()]
    simulations: dict[str, Callable[[], CheckResult]] = {
        "your rights": lambda: check_user(iam, settings, account, caller["Arn"]),
        "head's role": lambda: check_head_role(iam, settings, account, group, types),
    }
    for name, simulate in simulations.items():
        try:
            yield simulate()
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            yield CheckResult(name, "note", f"could not be checked, IAM's simulator says: {_first_line(error)}")
    subnets = _usable_subnets(ec2, config, vpc)
    started = {config["head_node_type"]: config["available_node_types"][config["head_node_type"]], **_workers(config)}
    for name, node in started.items():
        request = {key: value for key, value in node["node_config"].items() if key != "SubnetIds"}
        try:
            request.setdefault("ImageId", _find_image(ec2, settings, request.get("ImageId"))["ImageId"])
        except ValueError:  # reported by _check_image
            continue
        request["TagSpecifications"] = tag_volumes(request.get("TagSpecifications", []), settings.cluster)
        if subnets:
            request["SubnetId"] = subnets[0]["SubnetId"]
        yield check_start(ec2, name, request)


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
    nodes = {config["head_node_type"]: config["available_node_types"][config["head_node_type"]], **_workers(config)}
    types = sorted({node["node_config"]["InstanceType"] for node in nodes.values()})
    described = client_factory("ec2").describe_instance_types(InstanceTypes=types)["InstanceTypes"]
    vcpus = {row["InstanceType"]: row["VCpuInfo"]["DefaultVCpus"] for row in described}
    groups: dict[tuple[str, str], dict[str, int]] = {}
    machines: Counter[tuple[str, str]] = Counter()
    for name, node in nodes.items():
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        instance_type = node["node_config"]["InstanceType"]
        group = "spot" if spot else "on demand", quota_family(instance_type)
        groups.setdefault(group, {})[instance_type] = vcpus[instance_type]
        is_head = name == config["head_node_type"]
        machines[group] += 1 if is_head else node.get("max_workers", config["max_workers"])
    results = {
        group: _check_quota(*group, types, min(machines[group], config["max_workers"]), client_factory)
        for group, types in sorted(groups.items())
    }
    head = nodes[config["head_node_type"]]["node_config"]["InstanceType"]
    workers_start = any(
        result.status != "missing" for group, result in results.items() if group != ("on demand", quota_family(head))
    )
    for group, result in results.items():
        for_workers = head not in groups[group]
        yield replace(result, status="note") if for_workers and workers_start and result.status == "missing" else result
    spot_types = sorted(name for (market, _), names in groups.items() if market == "spot" for name in names)
    if spot_types:
        yield from _check_spot_prices(spot_types, client_factory)


def _check_quota(
    market: str, family: str, vcpus: dict[str, int], needed: int, client_factory: ClientFactory
) -> CheckResult:
    """Check whether the quota of a market and family allows the machines of the file.

    Args:
        market: `spot` or `on demand`.
        family: as `quota_family` returns it.
        vcpus: virtual CPUs of each instance type of that family in the file.
        needed: the most machines of that family that the cluster may have.
        client_factory: makes the clients.
    """
    name, code = f"quota {market} {family.replace(' and ', '/')}", QUOTA_CODES.get((market, family))
    if code is None:
        return CheckResult(name, "note", f"{', '.join(sorted(vcpus))}: the quota of this family is not checked")
    quotas = client_factory("service-quotas")
    try:
        limit = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except ClientError as error:
        return CheckResult(name, "note", f"could not be checked: {_first_line(error)}")
    machines = int(limit // min(vcpus.values()))
    message = f"{limit:g} virtual CPUs of {family}: {machines} machines at a time"
    command = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code}"
    command += f" --desired-value {min(vcpus.values()) * needed}"
    if machines < 1:
        return CheckResult(name, "missing", f"{message}; {command}")
    if machines < needed:
        return CheckResult(name, "note", f"{message}, not {needed}; {command}")
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
    return str(error).splitlines()[0][:300]
