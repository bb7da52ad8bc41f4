"""Checks everything that must be in place before machines are started, and says how to fix what is missing.

The checks read only: they create and change nothing. Whatever cannot be verified is reported as a note and does not
stop the start.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.settings import ClusterSettings, find_placeholders, parse_settings

AWS_PROVIDER = "sweeps.cluster.aws.NodeProvider"
PUBLIC_IP_URL = "https://checkip.amazonaws.com"


def run_checks(file: Path) -> Iterator[CheckResult]:
    """Run all checks for a cluster file, one at a time; those that ask a cloud run only once the file is filled in.

    Args:
        file: the cluster file.

    Yields:
        One result per check, as soon as it is known.

    Raises:
        ValueError: the file is not a cluster file for Ray's launcher.
    """
    config = load_cluster_file(file)
    yield from _check_schema(config)
    yield from _check_programs()
    yield from _check_file_mounts(config)
    yield from _check_ssh_key(config)
    placeholders = list(find_placeholders(config))
    for path in placeholders:
        yield CheckResult(path, "missing", f"fill it in in {file}")
    if config["provider"]["type"] == "gcp" and not importlib.util.find_spec("googleapiclient"):
        yield CheckResult("gcp", "missing", "pip install -c constraints.txt -e '.[gcp]'")
    if config["provider"].get("module") != AWS_PROVIDER:
        if not placeholders:
            yield CheckResult("filled in", "ok", f"no placeholder is left in {file}")
            if config["provider"]["type"] == "gcp" and importlib.util.find_spec("googleapiclient"):
                from sweeps.cluster.gcp_checks import run_gcp_checks

                yield from run_gcp_checks(config)
        return
    try:
        settings = parse_settings(config)
    except ValueError as error:
        if not placeholders:
            yield CheckResult("settings", "missing", str(error))
        yield CheckResult("AWS", "note", "not checked until the file is filled in")
        return
    yield CheckResult("filled in", "ok", f"{settings.region}, SSH from {settings.ssh_from}, bucket {settings.bucket}")
    yield check_public_address(settings)
    if not importlib.util.find_spec("boto3"):
        yield CheckResult("boto3", "missing", "pip install -c constraints.txt -e '.[aws]'")
        return
    from sweeps.cluster.aws_checks import make_client_factory, run_aws_checks

    yield from run_aws_checks(config, settings, make_client_factory(settings))


def load_cluster_file(file: Path) -> dict[str, Any]:
    """Load a cluster file, with its placeholders as they are.

    Raises:
        ValueError: the file does not exist, or is not meant for Ray's cluster launcher.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist: run the command in the project's folder")
    try:
        config, *others = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    kinds = {document.get("kind") for document in (config, *others) if isinstance(document, dict)}
    if kinds & {"RayCluster", "RayJob"}:
        raise ValueError(f"{file} is for Kubernetes: run kubectl apply -f {file}, see its first lines")
    if isinstance(config, dict) and "resources" in config and "run" in config:
        raise ValueError(f"{file} is for SkyPilot: run sky launch -c xfer {file}, see its first lines")
    if not isinstance(config, dict) or "provider" not in config:
        raise ValueError(f"{file} is not a cluster file: it has no provider section")
    return config


# --- on this machine -----------------------------------------------------------------------------------------------


def _check_schema(config: dict[str, Any]) -> Iterator[CheckResult]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    # For every external provider it warns that it drops two fields, which it has added itself.
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(config))
    except Exception as error:  # a jsonschema error, or any error that a missing section causes
        where = ".".join(str(key) for key in getattr(error, "absolute_path", ()))
        yield CheckResult("file", "missing", f"Ray's schema rejects it: {where} {getattr(error, 'message', error)}")
    else:
        yield CheckResult("file", "ok", "Ray's schema accepts it")


def _check_programs() -> Iterator[CheckResult]:
    absent = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    if absent:
        yield CheckResult("programs", "missing", f"install {' and '.join(absent)}: Ray sets machines up with them")
    else:
        yield CheckResult("programs", "ok", "ssh and rsync")


def _check_file_mounts(config: dict[str, Any]) -> Iterator[CheckResult]:
    """Check the files that are copied to the machines, and the access rights of the token."""
    mounts = {remote: Path(local).expanduser() for remote, local in config.get("file_mounts", {}).items()}
    token = mounts.pop("~/.ray/auth_token", None)
    absent = [str(local) for local in mounts.values() if not local.exists()]
    if absent:
        yield CheckResult("files", "missing", f"{', '.join(absent)}: run the command in the project's folder")
    else:
        yield CheckResult("files", "ok", f"{len(mounts)} to copy to every machine")
    if token is None:
        yield CheckResult(
            "token",
            "missing",
            "file_mounts must include ~/.ray/auth_token: without it everyone in the network can run code",
        )
    elif not token.is_file() or not token.read_text(encoding="utf-8").strip():
        yield CheckResult("token", "missing", f"ray get-auth-token --generate > /dev/null && chmod 600 {token}")
    elif stat.S_IMODE(token.stat().st_mode) & 0o077:
        yield CheckResult("token", "missing", f"other users of this machine can read it: chmod 600 {token}")
    else:
        yield CheckResult("token", "ok", str(token))


def _check_ssh_key(config: dict[str, Any]) -> Iterator[CheckResult]:
    path = config.get("auth", {}).get("ssh_private_key")
    if path is None:
        yield CheckResult("key", "ok", "Ray creates a key pair, or uses the one that it created before")
        return
    key = Path(path).expanduser()
    if not key.is_file():
        yield CheckResult("key", "missing", f"auth.ssh_private_key names {path}, which does not exist")
    elif stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield CheckResult("key", "missing", f"ssh refuses a key that other users can read: chmod 600 {path}")
    else:
        yield CheckResult("key", "ok", path)


def check_public_address(settings: ClusterSettings) -> CheckResult:
    """Compare the public address of this machine with the network that SSH will be allowed from."""
    try:
        with urlopen(PUBLIC_IP_URL, timeout=5) as response:
            address = ip_address(response.read().decode().strip())
    except (OSError, ValueError) as error:
        return CheckResult("address", "note", f"could not determine your public address ({error})")
    if address in ip_network(settings.ssh_from):
        return CheckResult("address", "ok", f"{address} is in {settings.ssh_from}")
    return CheckResult("address", "note", f"your public address seems to be {address}, not in {settings.ssh_from}")


def ray_cli_environment() -> dict[str, str]:
    """Return the environment for Ray's own commands on this machine, with usage statistics switched off."""
    return os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
