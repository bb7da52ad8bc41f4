"""What must be in place before machines are started: looked at, and said with what to do where it is missing.

Nothing is made or changed here. What cannot be known for certain is a note, and stops nobody.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import yaml

from sweeps.cluster.settings import ClusterSettings, find_placeholders, parse_settings

AWS_PROVIDER = "sweeps.cluster.aws.NodeProvider"
PUBLIC_IP_URL = "https://checkip.amazonaws.com"


@dataclass(frozen=True)
class CheckResult:
    """Something that was looked at."""

    name: str
    status: Literal["ok", "missing", "note"]
    said: str
    """What was found; where something is missing, what to do."""


def run_checks(file: Path) -> Iterator[CheckResult]:
    """Look at all that a cluster file needs, one thing after the other; those of AWS only once the file is filled in.

    Raises:
        ValueError: this is no cluster file of Ray's launcher.
    """
    config = load_cluster_file(file)
    yield from _schema(config)
    yield from _programs()
    yield from _mounts(config)
    yield from _key(config)
    missing = list(find_placeholders(config))
    for path in missing:
        yield CheckResult(path, "missing", f"fill it in in {file}")
    if config["provider"]["type"] == "gcp" and not importlib.util.find_spec("googleapiclient"):
        yield CheckResult("gcp", "missing", "pip install -c constraints.txt -e '.[gcp]'")
    if config["provider"].get("module") != AWS_PROVIDER:
        if not missing:
            yield CheckResult("filled in", "ok", f"nothing is left to fill in in {file}")
        return
    try:
        settings = parse_settings(config)
    except ValueError as error:
        if not missing:
            yield CheckResult("settings", "missing", str(error))
        yield CheckResult("AWS", "note", "is asked once the file is filled in")
        return
    yield CheckResult("filled in", "ok", f"{settings.region}, SSH from {settings.ssh_from}, bucket {settings.bucket}")
    yield _address(settings)
    if not importlib.util.find_spec("boto3"):
        yield CheckResult("boto3", "missing", "pip install -c constraints.txt -e '.[aws]'")
        return
    from sweeps.cluster.account import make_client_factory, run_aws_checks

    yield from run_aws_checks(config, settings, make_client_factory(settings))


def load_cluster_file(file: Path) -> dict[str, Any]:
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


# --- on this machine -----------------------------------------------------------------------------------------------


def _schema(config: dict[str, Any]) -> Iterator[CheckResult]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    # Of every external provider it says that it drops two fields which it put there itself.
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(config))
    except Exception as error:  # jsonschema's, or whatever came of a section that is missing
        where = ".".join(str(each) for each in getattr(error, "absolute_path", ()))
        yield CheckResult("file", "missing", f"Ray does not take it: {where} {getattr(error, 'message', error)}")
    else:
        yield CheckResult("file", "ok", "Ray's schema takes it")


def _programs() -> Iterator[CheckResult]:
    absent = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    if absent:
        yield CheckResult("programs", "missing", f"install {' and '.join(absent)}: Ray sets machines up with them")
    else:
        yield CheckResult("programs", "ok", "ssh and rsync")


def _mounts(config: dict[str, Any]) -> Iterator[CheckResult]:
    """The files that machines get, the token first of all."""
    mounts = {remote: Path(local).expanduser() for remote, local in config.get("file_mounts", {}).items()}
    token = mounts.pop("~/.ray/auth_token", None)
    absent = [str(local) for local in mounts.values() if not local.exists()]
    if absent:
        yield CheckResult("files", "missing", f"{', '.join(absent)}: give the command in the project's folder")
    else:
        yield CheckResult("files", "ok", f"{len(mounts)} to bring to every machine")
    if token is None:
        yield CheckResult(
            "token", "missing", "file_mounts must bring ~/.ray/auth_token, or anybody inside may run anything"
        )
    elif not token.is_file() or not token.read_text().strip():
        yield CheckResult("token", "missing", f"ray get-auth-token --generate > /dev/null && chmod 600 {token}")
    elif stat.S_IMODE(token.stat().st_mode) & 0o077:
        yield CheckResult("token", "missing", f"others on this machine can read it: chmod 600 {token}")
    else:
        yield CheckResult("token", "ok", str(token))


def _key(config: dict[str, Any]) -> Iterator[CheckResult]:
    written = config.get("auth", {}).get("ssh_private_key")
    if written is None:
        yield CheckResult("key", "ok", "Ray makes a key pair, or uses the one that it made before")
        return
    key = Path(written).expanduser()
    if not key.is_file():
        yield CheckResult("key", "missing", f"auth.ssh_private_key names {written}, which does not exist")
    elif stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield CheckResult("key", "missing", f"ssh refuses a key that others can read: chmod 600 {written}")
    else:
        yield CheckResult("key", "ok", written)


def _address(settings: ClusterSettings) -> CheckResult:
    try:
        with urlopen(PUBLIC_IP_URL, timeout=5) as answer:
            own = ip_address(answer.read().decode().strip())
    except (OSError, ValueError) as error:
        return CheckResult("address", "note", f"your public address could not be found out ({error})")
    if own in ip_network(settings.ssh_from):
        return CheckResult("address", "ok", f"{own} is in {settings.ssh_from}")
    return CheckResult("address", "note", f"you seem to come from {own}, which is not in {settings.ssh_from}")


def ray_cli_environment() -> dict[str, str]:
    """The environment for Ray's own commands on this machine."""
    return os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
