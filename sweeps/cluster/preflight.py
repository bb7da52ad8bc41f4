"""What must be in place before machines are started: looked at, and said with what to do where it is missing.

Nothing is made or changed here. What cannot be known for certain is a note, and stops nobody.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import yaml

from sweeps.cluster.settings import Settings, placeholders, settings_of

AWS_PROVIDER = "sweeps.cluster.aws.NodeProvider"
WHAT_IS_MY_ADDRESS = "https://checkip.amazonaws.com"

Clients = Callable[[str], Any]
"""From the name of one of AWS's services to boto3's client of it."""


@dataclass(frozen=True)
class Check:
    """Something that was looked at."""

    name: str
    status: Literal["ok", "missing", "note"]
    said: str
    """What was found; where something is missing, what to do."""


def checks(file: Path) -> Iterator[Check]:
    """Look at all that a cluster file needs, one thing after the other; those of AWS only once the file is filled in.

    Raises:
        ValueError: this is no cluster file of Ray's launcher.
    """
    config = read(file)
    yield from _schema(config)
    yield from _programs()
    yield from _mounts(config)
    yield from _key(config)
    missing = list(placeholders(config))
    for path in missing:
        yield Check(path, "missing", f"fill it in in {file}")
    if config["provider"]["type"] == "gcp" and not importlib.util.find_spec("googleapiclient"):
        yield Check("gcp", "missing", "pip install -c constraints.txt -e '.[gcp]'")
    if config["provider"].get("module") != AWS_PROVIDER:
        if not missing:
            yield Check("filled in", "ok", f"nothing is left to fill in in {file}")
        return
    try:
        settings = settings_of(config)
    except ValueError as error:
        if not missing:
            yield Check("settings", "missing", str(error))
        yield Check("AWS", "note", "is asked once the file is filled in")
        return
    yield Check("filled in", "ok", f"{settings.region}, SSH from {settings.ssh_from}, bucket {settings.bucket}")
    yield _address(settings)
    if not importlib.util.find_spec("boto3"):
        yield Check("boto3", "missing", "pip install -c constraints.txt -e '.[aws]'")
        return
    yield from aws_checks(config, settings, _clients(settings))


def read(file: Path) -> dict[str, Any]:
    """A cluster file as it is written.

    Raises:
        ValueError: there is none, or it is for somebody else than Ray's cluster launcher.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}: give the commands in the project's folder")
    try:
        config, *others = yaml.safe_load_all(file.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if any(isinstance(each, dict) and each.get("kind") == "RayCluster" for each in (config, *others)):
        raise ValueError(f"{file} is for Kubernetes: kubectl apply -f {file}, see its first lines")
    if not isinstance(config, dict) or "provider" not in config:
        raise ValueError(f"{file} is no cluster file: it has no provider")
    return config


def aws_checks(config: dict[str, Any], settings: Settings, clients: Clients) -> Iterator[Check]:
    """What only AWS knows, asked with the credentials at hand."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        caller = clients("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        yield Check("credentials", "missing", f"{error}: aws configure, aws sso login, or AWS_PROFILE")
        return
    yield Check("credentials", "ok", f"{caller['Arn']}")
    for name, look in (("bucket", _bucket), ("image", _image), ("network", _network), ("machines", _machines)):
        try:
            yield from look(config, settings, clients)
        except ClientError as error:
            refused = "AccessDenied" in str(error) or "Unauthorized" in str(error)
            yield Check(name, "note" if refused else "missing", f"could not be asked: {_line(error)}")
        except (BotoCoreError, ValueError) as error:
            yield Check(name, "missing", str(error))


# --- on this machine -----------------------------------------------------------------------------------------------


def _schema(config: dict[str, Any]) -> Iterator[Check]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    # Of every external provider it says that it drops two fields which it put there itself.
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(config))
    except Exception as error:  # jsonschema's, or whatever came of a section that is missing
        where = ".".join(str(each) for each in getattr(error, "absolute_path", ()))
        yield Check("file", "missing", f"Ray does not take it: {where} {getattr(error, 'message', error)}")
    else:
        yield Check("file", "ok", "Ray's schema takes it")


def _programs() -> Iterator[Check]:
    absent = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    if absent:
        yield Check("programs", "missing", f"install {' and '.join(absent)}: Ray sets machines up with them")
    else:
        yield Check("programs", "ok", "ssh and rsync")


def _mounts(config: dict[str, Any]) -> Iterator[Check]:
    """The files that machines get, the token first of all."""
    mounts = {remote: Path(local).expanduser() for remote, local in config.get("file_mounts", {}).items()}
    token = mounts.pop("~/.ray/auth_token", None)
    absent = [str(local) for local in mounts.values() if not local.exists()]
    if absent:
        yield Check("files", "missing", f"{', '.join(absent)}: give the command in the project's folder")
    else:
        yield Check("files", "ok", f"{len(mounts)} to bring to every machine")
    if token is None:
        yield Check("token", "missing", "file_mounts must bring ~/.ray/auth_token, or anybody inside may run anything")
    elif not token.is_file() or not token.read_text().strip():
        yield Check("token", "missing", f"ray get-auth-token --generate > /dev/null && chmod 600 {token}")
    elif stat.S_IMODE(token.stat().st_mode) & 0o077:
        yield Check("token", "missing", f"others on this machine can read it: chmod 600 {token}")
    else:
        yield Check("token", "ok", str(token))


def _key(config: dict[str, Any]) -> Iterator[Check]:
    written = config.get("auth", {}).get("ssh_private_key")
    if written is None:
        yield Check("key", "ok", "Ray makes a key pair, or uses the one that it made before")
        return
    key = Path(written).expanduser()
    if not key.is_file():
        yield Check("key", "missing", f"auth.ssh_private_key names {written}, which does not exist")
    elif stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield Check("key", "missing", f"ssh refuses a key that others can read: chmod 600 {written}")
    else:
        yield Check("key", "ok", written)


def _address(settings: Settings) -> Check:
    try:
        with urlopen(WHAT_IS_MY_ADDRESS, timeout=5) as answer:
            own = ip_address(answer.read().decode().strip())
    except (OSError, ValueError) as error:
        return Check("address", "note", f"your public address could not be found out ({error})")
    if own in ip_network(settings.ssh_from):
        return Check("address", "ok", f"{own} is in {settings.ssh_from}")
    return Check("address", "note", f"you seem to come from {own}, which is not in {settings.ssh_from}")


# --- at AWS --------------------------------------------------------------------------------------------------------


def _clients(settings: Settings) -> Clients:
    import boto3
    from botocore.config import Config

    impatient = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
    session = boto3.Session(region_name=settings.region)
    return lambda service: session.client(service, config=impatient)


def _bucket(config: dict[str, Any], settings: Settings, clients: Clients) -> Iterator[Check]:
    from botocore.exceptions import ClientError

    s3, name = clients("s3"), settings.bucket
    make = f"aws s3 mb s3://{name} --region {settings.region}"
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
            yield Check("bucket", "missing", f"{name} does not exist: {make}")
        elif error.response["Error"]["Code"] in ("403", "AccessDenied"):
            yield Check(
                "bucket", "missing", f"{name} is somebody else's, or you may not use it: choose another, {make}"
            )
        else:
            raise
        return
    region = s3.get_bucket_location(Bucket=name)["LocationConstraint"] or "us-east-1"
    if region != settings.region:
        yield Check("bucket", "missing", f"{name} is in {region}, the cluster in {settings.region}: make both the same")
        return
    try:
        blocks = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchPublicAccessBlockConfiguration":
            raise
        blocks = {}
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    if all(blocks.get(each) for each in names):
        yield Check("bucket", "ok", f"{name} is in {region} and private")
    else:
        command = f"aws s3api put-public-access-block --bucket {name} --public-access-block-configuration "
        yield Check("bucket", "missing", f"{name} can be made public: {command}{','.join(f'{n}=true' for n in names)}")


def _image(config: dict[str, Any], settings: Settings, clients: Clients) -> Iterator[Check]:
    from sweeps.cluster.aws import image_id

    ec2 = clients("ec2")
    own = {node["node_config"].get("ImageId") for node in config["available_node_types"].values()}
    if None in own:
        yield Check("image", "ok", f"{image_id(ec2, settings.image)} is {settings.image}")
    for each in sorted(image for image in own if image):
        [image] = ec2.describe_images(ImageIds=[each])["Images"]
        yield Check("image", "ok", f"{each} is {image['Name']}")


def _network(config: dict[str, Any], settings: Settings, clients: Clients) -> Iterator[Check]:
    from sweeps.cluster.network import vpc_of

    node_configs = [node["node_config"] for node in config["available_node_types"].values()]
    subnets = [subnet for node_config in node_configs for subnet in node_config.get("SubnetIds", [])]
    yield Check("network", "ok", vpc_of(clients("ec2"), subnets))


STANDARD = "ACDHIMRTZ"
QUOTAS = {  # https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html
    ("on demand", "standard"): "L-1216C47A",
    ("on demand", "G and VT"): "L-DB2E81BA",
    ("on demand", "P"): "L-417A185B",
    ("spot", "standard"): "L-34B43A08",
    ("spot", "G and VT"): "L-3819A6DF",
    ("spot", "P"): "L-7212CCBC",
}
"""AWS limits how many virtual CPUs of a family run at a time, on demand and as spot machines apart."""


def family_of(instance_type: str) -> str:
    """The family that AWS counts a type under.

    >>> family_of("g6.2xlarge"), family_of("m6i.xlarge"), family_of("p5.48xlarge")
    ('G and VT', 'standard', 'P')
    """
    letters = instance_type[:2].upper() if instance_type.startswith("vt") else instance_type[0].upper()
    return {"G": "G and VT", "VT": "G and VT"}.get(letters, "standard" if letters in STANDARD else letters)


def _machines(config: dict[str, Any], settings: Settings, clients: Clients) -> Iterator[Check]:
    """The quota for them, and what spot machines cost now."""
    nodes = config["available_node_types"]
    types = sorted({node["node_config"]["InstanceType"] for node in nodes.values()})
    described = clients("ec2").describe_instance_types(InstanceTypes=types)["InstanceTypes"]
    vcpus = {each["InstanceType"]: each["VCpuInfo"]["DefaultVCpus"] for each in described}
    wanted: dict[tuple[str, str], set[str]] = {}
    for node in nodes.values():
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        kind = node["node_config"]["InstanceType"]
        wanted.setdefault(("spot" if spot else "on demand", family_of(kind)), set()).add(kind)
    for (market, family), kinds in sorted(wanted.items()):
        yield _quota(market, family, {kind: vcpus[kind] for kind in kinds}, config["max_workers"], clients)
    if spot_kinds := sorted(kind for (market, _), kinds in wanted.items() if market == "spot" for kind in kinds):
        yield from _spot(spot_kinds, clients)


def _quota(market: str, family: str, vcpus: dict[str, int], most: int, clients: Clients) -> Check:
    from botocore.exceptions import ClientError

    name, code = f"quota {market}", QUOTAS.get((market, family))
    if code is None:
        return Check(name, "note", f"{', '.join(sorted(vcpus))}: not looked up for this family")
    quotas = clients("service-quotas")
    try:
        limit = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except ClientError as error:
        return Check(name, "note", f"could not be asked: {_line(error)}")
    room = int(limit // min(vcpus.values()))
    ask = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code} --desired-value "
    said = f"{limit:g} virtual CPUs of {family}: {room} machines at a time"
    if room < 1:
        return Check(name, "missing", f"{said}; {ask}{min(vcpus.values()) * most}")
    if market == "spot" and room < most:
        return Check(name, "note", f"{said}, not max_workers {most}; {ask}{min(vcpus.values()) * most}")
    return Check(name, "ok", said)


def _spot(kinds: list[str], clients: Clients) -> Iterator[Check]:
    """What they cost now; a price is no promise that there are any."""
    from datetime import UTC, datetime

    history = clients("ec2").describe_spot_price_history(
        InstanceTypes=kinds, ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC)
    )["SpotPriceHistory"]
    offered = 0
    for kind in kinds:
        prices = {
            each["AvailabilityZone"]: float(each["SpotPrice"]) for each in history if each["InstanceType"] == kind
        }
        if prices:
            zone = min(prices, key=lambda name: prices[name])
            yield Check(
                f"spot {kind}", "ok", f"{prices[zone]:.4f} dollars an hour now, in {zone} of {len(prices)} zones"
            )
            offered += 1
        else:
            yield Check(f"spot {kind}", "note", "is not offered in this region now")
    if not offered:
        yield Check("spot", "missing", "no kind of worker is offered: take other instance types or another region")


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).splitlines()[0]


def environment() -> dict[str, str]:
    """The environment for Ray's own commands on this machine."""
    return os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
