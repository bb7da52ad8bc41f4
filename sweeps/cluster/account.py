"""The part of the preflight that only AWS can answer: credentials, bucket, image, network, quotas, the spot market."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sweeps.cluster.aws import find_image_id
from sweeps.cluster.network import find_vpc
from sweeps.cluster.preflight import CheckResult
from sweeps.cluster.settings import ClusterSettings

ClientFactory = Callable[[str], Any]
"""From the name of one of AWS's services to boto3's client of it."""

STANDARD_FAMILIES = "ACDHIMRTZ"
QUOTA_CODES = {  # https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html
    ("on demand", "standard"): "L-1216C47A",
    ("on demand", "G and VT"): "L-DB2E81BA",
    ("on demand", "P"): "L-417A185B",
    ("spot", "standard"): "L-34B43A08",
    ("spot", "G and VT"): "L-3819A6DF",
    ("spot", "P"): "L-7212CCBC",
}
"""AWS limits how many virtual CPUs of a family run at a time, on demand and as spot machines apart."""


def run_aws_checks(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    """Look at all of it, one thing after the other; without credentials at nothing."""
    try:
        caller = client_factory("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        yield CheckResult("credentials", "missing", f"{error}: aws configure, aws sso login, or AWS_PROFILE")
        return
    yield CheckResult("credentials", "ok", f"{caller['Arn']}")
    for name, look in (("bucket", _bucket), ("image", _image), ("network", _network), ("machines", _machines)):
        try:
            yield from look(config, settings, client_factory)
        except ClientError as error:
            refused = "AccessDenied" in str(error) or "Unauthorized" in str(error)
            yield CheckResult(name, "note" if refused else "missing", f"could not be asked: {_line(error)}")
        except (BotoCoreError, ValueError) as error:
            yield CheckResult(name, "missing", str(error))


def make_client_factory(settings: ClusterSettings) -> ClientFactory:
    """Clients for the region, with the credentials at hand; they do not wait long for an answer."""
    impatient = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
    session = boto3.Session(region_name=settings.region)
    return lambda service: session.client(service, config=impatient)


def _bucket(config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory) -> Iterator[CheckResult]:
    s3, name = client_factory("s3"), settings.bucket
    make = f"aws s3 mb s3://{name} --region {settings.region}"
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
            yield CheckResult("bucket", "missing", f"{name} does not exist: {make}")
        elif error.response["Error"]["Code"] in ("403", "AccessDenied"):
            yield CheckResult(
                "bucket", "missing", f"{name} is somebody else's, or closed to you: choose another, {make}"
            )
        else:
            raise
        return
    region = s3.get_bucket_location(Bucket=name)["LocationConstraint"] or "us-east-1"
    if region != settings.region:
        yield CheckResult(
            "bucket", "missing", f"{name} is in {region}, the cluster in {settings.region}: make both the same"
        )
        return
    try:
        blocks = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchPublicAccessBlockConfiguration":
            raise
        blocks = {}
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    if all(blocks.get(each) for each in names):
        yield CheckResult("bucket", "ok", f"{name} is in {region} and private")
    else:
        command = f"aws s3api put-public-access-block --bucket {name} --public-access-block-configuration "
        yield CheckResult(
            "bucket", "missing", f"{name} can be made public: {command}{','.join(f'{n}=true' for n in names)}"
        )


def _image(config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory) -> Iterator[CheckResult]:
    ec2 = client_factory("ec2")
    own = {node["node_config"].get("ImageId") for node in config["available_node_types"].values()}
    if None in own:
        yield CheckResult("image", "ok", f"{find_image_id(ec2, settings.image)} is {settings.image}")
    for each in sorted(image for image in own if image):
        [image] = ec2.describe_images(ImageIds=[each])["Images"]
        yield CheckResult("image", "ok", f"{each} is {image['Name']}")


def _network(config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory) -> Iterator[CheckResult]:
    node_configs = [node["node_config"] for node in config["available_node_types"].values()]
    subnets = [subnet for node_config in node_configs for subnet in node_config.get("SubnetIds", [])]
    yield CheckResult("network", "ok", find_vpc(client_factory("ec2"), subnets))


def quota_family(instance_type: str) -> str:
    """The family that AWS counts a type under.

    >>> quota_family("g6.2xlarge"), quota_family("m6i.xlarge"), quota_family("p5.48xlarge")
    ('G and VT', 'standard', 'P')
    """
    letters = instance_type[:2].upper() if instance_type.startswith("vt") else instance_type[0].upper()
    return {"G": "G and VT", "VT": "G and VT"}.get(letters, "standard" if letters in STANDARD_FAMILIES else letters)


def _machines(
    config: dict[str, Any], settings: ClusterSettings, client_factory: ClientFactory
) -> Iterator[CheckResult]:
    """The quota for them, and what spot machines cost now."""
    nodes = config["available_node_types"]
    types = sorted({node["node_config"]["InstanceType"] for node in nodes.values()})
    described = client_factory("ec2").describe_instance_types(InstanceTypes=types)["InstanceTypes"]
    vcpus = {each["InstanceType"]: each["VCpuInfo"]["DefaultVCpus"] for each in described}
    wanted: dict[tuple[str, str], set[str]] = {}
    for node in nodes.values():
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        kind = node["node_config"]["InstanceType"]
        wanted.setdefault(("spot" if spot else "on demand", quota_family(kind)), set()).add(kind)
    for (market, family), kinds in sorted(wanted.items()):
        yield _quota(market, family, {kind: vcpus[kind] for kind in kinds}, config["max_workers"], client_factory)
    if spot_kinds := sorted(kind for (market, _), kinds in wanted.items() if market == "spot" for kind in kinds):
        yield from _spot(spot_kinds, client_factory)


def _quota(market: str, family: str, vcpus: dict[str, int], most: int, client_factory: ClientFactory) -> CheckResult:
    name, code = f"quota {market}", QUOTA_CODES.get((market, family))
    if code is None:
        return CheckResult(name, "note", f"{', '.join(sorted(vcpus))}: not looked up for this family")
    quotas = client_factory("service-quotas")
    try:
        limit = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except ClientError as error:
        return CheckResult(name, "note", f"could not be asked: {_line(error)}")
    room = int(limit // min(vcpus.values()))
    enough = min(vcpus.values()) * (most if market == "spot" else 1)  # the head is the one machine on demand
    ask = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code}"
    said = f"{limit:g} virtual CPUs of {family}: {room} machines at a time"
    if room < 1:
        return CheckResult(name, "missing", f"{said}; {ask} --desired-value {enough}")
    if market == "spot" and room < most:
        return CheckResult(name, "note", f"{said}, not max_workers {most}; {ask} --desired-value {enough}")
    return CheckResult(name, "ok", said)


def _spot(kinds: list[str], client_factory: ClientFactory) -> Iterator[CheckResult]:
    """What they cost now; a price is no promise that there are any."""
    history = client_factory("ec2").describe_spot_price_history(
        InstanceTypes=kinds, ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC)
    )["SpotPriceHistory"]
    offered = 0
    for kind in kinds:
        rows = [row for row in history if row["InstanceType"] == kind]
        if rows:
            price, zone = min((float(row["SpotPrice"]), row["AvailabilityZone"]) for row in rows)
            yield CheckResult(f"spot {kind}", "ok", f"{price:.4f} dollars an hour now in {zone}, the cheapest zone")
            offered += 1
        else:
            yield CheckResult(f"spot {kind}", "note", "is not offered in this region now")
    if not offered:
        yield CheckResult(
            "spot", "missing", "no kind of worker is offered: take other instance types or another region"
        )


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).splitlines()[0]
