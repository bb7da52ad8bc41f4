"""Validates every cluster file without a cloud: Ray's own schema, and a stricter check of what Ray accepts unseen."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from sweeps.engine.trials.ray_tune import RAY_ENVIRONMENT
from tests.cluster.mock_aws import ROOT

CLOUDS = {"aws": ROOT / "ray_cluster.yaml", "gcp": ROOT / "clusters" / "gcp.yaml"}
LAUNCHED = CLOUDS | {"on premises": ROOT / "clusters" / "on_premises.yaml"}
KUBERNETES = ROOT / "clusters" / "kubernetes.yaml"
ALL = [*LAUNCHED.values(), KUBERNETES, ROOT / "clusters" / "Dockerfile"]

launched = pytest.mark.parametrize("name", LAUNCHED)
clouds = pytest.mark.parametrize("name", CLOUDS)


def read(name: str) -> dict[str, Any]:
    """Load a file, with a copy instead of a reference for each YAML alias."""
    config: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(LAUNCHED[name].read_text())))
    return config


# --- the keys of provider and machines: Ray accepts them all, and a cloud rejects them much later --------------------

PROVIDER = {
    "aws": {"type", "module", "region", "ssh_from", "bucket", "data_buckets", "image", "cache_stopped_nodes"},
    "gcp": {"type", "region", "availability_zone", "project_id"},
    "on premises": {"type", "head_ip", "worker_ips"},
}
ANY: Any = object()
"""Shape of a value that is not checked."""

GCP_NODE = {  # https://cloud.google.com/compute/docs/reference/rest/v1/instances/insert
    "machineType": str,
    "scheduling": {
        "provisioningModel": str,
        "instanceTerminationAction": str,
        "onHostMaintenance": str,
        "automaticRestart": bool,
    },
    "labels": ANY,
    "metadata": {"items": [{"key": str, "value": str}]},
    "disks": [
        {
            "boot": bool,
            "autoDelete": bool,
            "type": str,
            "initializeParams": {"diskSizeGb": int, "sourceImage": str, "diskType": str},
        }
    ],
    "networkInterfaces": [{"subnetwork": str, "accessConfigs": [{"name": str, "type": str}]}],
    "serviceAccounts": [{"email": str, "scopes": [str]}],
}


def mismatches(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Yield unknown keys and values of the wrong type. A shape is a dictionary, a list with one item, or a type."""
    if shape is ANY:
        return
    if isinstance(shape, dict):
        for key in value if isinstance(value, dict) else ():
            if key in shape:
                yield from mismatches(value[key], shape[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is not known"
        if not isinstance(value, dict):
            yield f"{path} is not a mapping"
    elif isinstance(shape, list):
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from mismatches(item, shape[0], f"{path}.{index}")
        if not isinstance(value, list):
            yield f"{path} is not a list"
    elif type(value) is not shape:
        yield f"{path} is {value!r}, not a {shape.__name__}"


def unknown_to_cloud(name: str, config: dict[str, Any]) -> list[str]:
    """The errors that a cloud would report about the file's provider and machines."""
    errors = [f"provider.{key} is not known" for key in sorted(config["provider"].keys() - PROVIDER[name])]
    for kind, node in config.get("available_node_types", {}).items():
        if name == "aws":
            errors += [f"{kind}: {error}" for error in botocore_errors(node["node_config"])]
        else:
            errors += mismatches(node["node_config"], GCP_NODE, kind)
    return errors


def botocore_errors(node_config: dict[str, Any]) -> list[str]:
    """The errors of the validation that precedes the call which starts a machine, and values that no enum contains."""
    from botocore.validate import ParamValidator

    call = node_config | {"MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(call, run_instances()).generate_report()
    return [*report.splitlines(), *not_in_enum(node_config, run_instances())]


@functools.cache
def run_instances() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def not_in_enum(value: Any, shape: Any) -> Iterator[str]:
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, member in value.items():
            if key in shape.members:
                yield from not_in_enum(member, shape.members[key])
    elif shape.type_name == "list" and isinstance(value, list):
        for item in value:
            yield from not_in_enum(item, shape.member)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{value!r} is not a {shape.name}"


@launched
def test_rays_own_schema_accepts_the_file(name: str, caplog: pytest.LogCaptureFixture) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    caplog.set_level(logging.ERROR)
    validate_config(prepare_config(read(name)))


@launched
def test_a_cloud_knows_every_key_and_value(name: str) -> None:
    assert unknown_to_cloud(name, read(name)) == []


@pytest.mark.parametrize(
    ("name", "path", "key", "value"),
    [
        ("aws", "provider", "ssh_form", "203.0.113.7/32"),
        ("aws", "l4.InstanceMarketOptions", "MarketTyp", "spot"),
        ("aws", "l4.InstanceMarketOptions", "MarketType", "sport"),
        ("aws", "l4", "InstanceTyp", "g6.2xlarge"),
        ("aws", "head", "InstanceType", "m6i.xxlarge"),
        ("aws", "head.BlockDeviceMappings.0.Ebs", "Encrypted", "true"),
        ("aws", "head.BlockDeviceMappings.0.Ebs", "VolumeSize", "100 GB"),
        ("gcp", "l4.scheduling", "provisioningMode", "SPOT"),
        ("gcp", "l4.disks.0.initializeParams", "diskSizeGb", "200"),
        ("gcp", "head", "serviceAccount", "me"),
        ("on premises", "provider", "workers_ips", []),
    ],
)
def test_a_typo_in_provider_or_machine_is_found(name: str, path: str, key: str, value: Any) -> None:
    config = read(name)
    first, *rest = path.split(".")
    section = config["provider"] if first == "provider" else config["available_node_types"][first]["node_config"]
    for part in rest:
        section = section[int(part) if part.isdigit() else part]
    section[key] = value
    assert len(unknown_to_cloud(name, config)) == 1


# --- what is true of every file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.name)
def test_nothing_is_open_to_the_internet_and_no_file_contains_a_secret(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"0\.0\.0\.0|::/0|LoadBalancer|NodePort|hostPort|hostNetwork|privileged: true", text)
    assert not re.search(r"AKIA|ASIA|BEGIN .*KEY|aws_secret|password|AUTH_TOKEN=|auth_token: [^~]", text)
    assert not re.search(r"usr/local|/tmp/", text)


@clouds
def test_workers_are_spot_machines_scaled_from_zero_and_the_head_runs_no_trial(name: str) -> None:
    config = read(name)
    nodes = config["available_node_types"]
    for kind, node in nodes.items():
        machine = node["node_config"]
        market = machine.get("InstanceMarketOptions", {}).get("MarketType")
        spot = market == "spot" or machine.get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert spot == (kind != config["head_node_type"])
        assert node["min_workers"] == 0
        assert node["max_workers"] <= config["max_workers"]
        assert float(node["labels"]["xfer/usd-per-hour"]) > 0
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert nodes["head"]["max_workers"] == 0
    assert {kind: node["resources"]["GPU"] for kind, node in nodes.items() if kind != "head"} == dict.fromkeys(
        sorted(nodes.keys() - {"head"}), 1
    )
    assert 0 < config["idle_timeout_minutes"] <= 10


def test_disks_on_aws_are_encrypted_and_machine_metadata_requires_a_token() -> None:
    for node in read("aws")["available_node_types"].values():
        machine = node["node_config"]
        assert all(disk["Ebs"]["Encrypted"] is True for disk in machine["BlockDeviceMappings"])
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert {item["ResourceType"] for item in machine["TagSpecifications"]} == {"instance", "volume"}


def test_machines_on_gcp_have_their_own_service_accounts_and_network() -> None:
    for kind, node in read("gcp")["available_node_types"].items():
        [account] = node["node_config"]["serviceAccounts"]
        assert account["email"] == f"xfer-{'head' if kind == 'head' else 'worker'}@FILL-IN.iam.gserviceaccount.com"
        [interface] = node["node_config"]["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/xfer")
        [disk] = node["node_config"]["disks"]
        assert "family" not in disk["initializeParams"]["sourceImage"]  # a family names a different image next month


@launched
def test_every_machine_sets_the_environment_that_ray_tune_needs_before_ray_starts(name: str, tmp_path: Path) -> None:
    config = read(name)
    for kind in ("head", "worker"):
        home = tmp_path / kind
        (home / ".xfer").mkdir(parents=True)
        commands = [
            command
            for command in config["setup_commands"] + config[f"{kind}_setup_commands"]
            if "environment.sh" in command
        ]
        for command in commands + commands:  # Ray repeats them on workers
            if "mountpoint" not in command:
                subprocess.run(["bash", "-c", command], check=True, env={"HOME": str(home), "PATH": os.environ["PATH"]})
        assert (home / ".bashrc").read_text() == ". ~/.xfer/environment.sh\n"
        script = f". {home}/.xfer/environment.sh; env -0"
        shell = {"HOME": str(home), "OMP_NUM_THREADS": "1"}
        printed = subprocess.run(["bash", "-c", script], check=True, env=shell, stdout=subprocess.PIPE).stdout
        environment = dict(line.split("=", 1) for line in printed.decode().split("\0") if line)
        assert environment.items() >= RAY_ENVIRONMENT.items()
        assert "OMP_NUM_THREADS" not in environment
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["XFER_STORAGE"].endswith("/runs")
        on_head = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "RAY_ADDRESS": "auto"}
        assert (environment.items() >= on_head.items()) == (kind == "head")
        *_, start = config[f"{kind}_start_ray_commands"]
        assert start.startswith(". ~/.xfer/environment.sh; ")


@clouds
def test_workers_get_what_torch_compile_needs_unless_they_have_it(name: str, tmp_path: Path) -> None:
    [command] = [command for command in read(name)["worker_setup_commands"] if "g++" in command]
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()

    def add_program(name: str, script: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    def installed() -> str:
        calls.write_text("")
        subprocess.run(["/bin/bash", "-c", command], check=True, env={"PATH": str(programs)}, stdout=subprocess.DEVNULL)
        return calls.read_text()

    add_program("python3", f"echo {tmp_path}")  # where its headers would be
    add_program("sudo", f'echo "$@" >> {calls}')
    add_program("g++", "")
    assert installed().endswith(" install -y -qq g++ python3-dev\n")
    (tmp_path / "Python.h").touch()
    assert installed() == ""
    (programs / "g++").unlink()
    assert installed().endswith(" install -y -qq g++ python3-dev\n")
    add_program("sudo", "exit 1")
    installed()  # the machine joins without a compiler


def test_the_image_for_kubernetes_has_a_compiler() -> None:
    dockerfile = (ROOT / "clusters" / "Dockerfile").read_text()
    assert re.search(r"^RUN apt-get update && apt-get install .* g\+\+ ", dockerfile, re.M)
    assert "FROM python:" in dockerfile  # with Python's headers


@launched
def test_the_head_starts_mlflow_then_ray_with_a_local_dashboard_and_quick_health_checks(name: str) -> None:
    stop, mlflow, start = read(name)["head_start_ray_commands"]
    assert stop == "ray stop"
    assert "python -m sweeps.cluster mlflow --artifacts " in mlflow
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    for setting in ("initial_delay_ms=1000", "period_ms=1000", "timeout_ms=1000", "failure_threshold=3"):
        assert f"RAY_health_check_{setting}" in start


@launched
def test_machines_get_the_project_its_pinned_versions_the_token_and_nothing_else(name: str) -> None:
    config = read(name)
    mounts = dict(config["file_mounts"])
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert sorted(mounts.values()) == ["README.md", "constraints.txt", "pyproject.toml", "sweeps", "xfer"]
    assert all((ROOT / local).exists() for local in mounts.values())
    [install] = [command for command in config["setup_commands"] if "pip install" in command]
    assert "-c ~/.xfer/project/constraints.txt -e" in install
    assert {"__pycache__", ".git", ".venv", "runs"} <= set(config["rsync_exclude"])


@pytest.mark.parametrize("extra", ["aws", "gcp"])
def test_machines_install_rays_dashboard_which_accepts_jobs_and_all_requirements_are_pinned(extra: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("ray[default]") for requirement in extras[extra])
    pinned = {normalized(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    requirements = [Requirement(line) for line in [*extras[extra], *(metadata.requires("ray") or [])]]
    required = {
        normalized(item.name)
        for item in requirements
        if item.marker is None or item.marker.evaluate({"extra": "default"})
    }
    assert required <= pinned


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_aws_file_has_three_values_to_fill_in() -> None:
    from sweeps.cluster.settings import find_placeholders

    assert list(find_placeholders(read("aws"))) == ["provider.region", "provider.ssh_from", "provider.bucket"]


# --- Kubernetes ----------------------------------------------------------------------------------------------------

SECURITY = {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "securityContext": SECURITY,
    "envFrom": [{"configMapRef": {"name": str}}],
    "env": [{"name": str, "value": str}],
    "resources": {
        "requests": {"cpu": str, "memory": str},
        "limits": {"cpu": str, "memory": str, "nvidia.com/gpu": str},
    },
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "spec": {
        "serviceAccountName": str,
        "automountServiceAccountToken": bool,
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "fsGroup": int, "seccompProfile": {"type": str}},
        "nodeSelector": ANY,
        "tolerations": [{"key": str, "operator": str, "effect": str}],
        "terminationGracePeriodSeconds": int,
        "containers": [CONTAINER],
        "volumes": [{"name": str, "emptyDir": {"medium": str, "sizeLimit": str}}],
    }
}
METADATA = {"name": str, "namespace": str, "annotations": ANY}
SELECTOR = {"matchLabels": ANY}
KINDS: dict[str, Any] = {
    "ServiceAccount": {"automountServiceAccountToken": bool},
    "ConfigMap": {"data": dict.fromkeys([*RAY_ENVIRONMENT, "XFER_STORAGE", "XFER_CACHE", "XFER_GROWS_TO"], str)},
    "NetworkPolicy": {
        "spec": {
            "podSelector": SELECTOR,
            "policyTypes": [str],
            "ingress": [{"from": [{"podSelector": SELECTOR}]}],
        }
    },
    "RayCluster": {  # https://docs.ray.io/en/master/kuberay/references/api.html, of KubeRay 1.7
        "spec": {
            "rayVersion": str,
            "authOptions": {"mode": str, "secretName": str},
            "enableInTreeAutoscaling": bool,
            "autoscalerOptions": {
                "version": str,
                "idleTimeoutSeconds": int,
                "upscalingMode": str,
                "securityContext": SECURITY,
            },
            "headGroupSpec": {"serviceType": str, "labels": ANY, "rayStartParams": ANY, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "labels": ANY,
                    "rayStartParams": ANY,
                    "template": POD,
                }
            ],
        }
    },
}


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def of_kind(kind: str) -> dict[str, Any]:
    [document] = [document for document in documents() if document["kind"] == kind]
    return document


def containers() -> dict[str, dict[str, Any]]:
    cluster = of_kind("RayCluster")["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    specs = [group["template"]["spec"] for group in groups]
    return {container["name"]: container for spec in specs for container in spec["containers"]}


def test_kubernetes_knows_every_key() -> None:
    for document in documents():
        shape = KINDS[document["kind"]] | {"apiVersion": str, "kind": str, "metadata": METADATA}
        assert list(mismatches(document, shape, document["kind"])) == []
        assert document["metadata"]["namespace"] == "xfer"


def test_pods_have_the_pinned_ray_the_environment_and_the_token_secret() -> None:
    cluster = of_kind("RayCluster")["spec"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    assert cluster["authOptions"] == {"mode": "token", "secretName": "xfer-token"}
    assert of_kind("ConfigMap")["data"].items() >= RAY_ENVIRONMENT.items()
    for name in ("ray-head", "ray-worker"):
        assert containers()[name]["envFrom"] == [{"configMapRef": {"name": "xfer-environment"}}]
    dockerfile = (ROOT / "clusters" / "Dockerfile").read_text()
    assert "pip install --no-cache-dir -c constraints.txt -e" in dockerfile


def test_pods_accept_connections_only_from_each_other_and_run_unprivileged() -> None:
    cluster, policy = of_kind("RayCluster")["spec"], of_kind("NetworkPolicy")["spec"]
    own = {"podSelector": {"matchLabels": {"ray.io/cluster": "xfer"}}}
    assert policy == own | {"policyTypes": ["Ingress"], "ingress": [{"from": [own]}]}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "dashboard-host": "127.0.0.1"}
    [workers] = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == 0
    assert workers["template"]["spec"]["automountServiceAccountToken"] is False
    for group in (cluster["headGroupSpec"], workers):
        assert float(group["labels"]["xfer/usd-per-hour"]) > 0
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in containers().values():
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert containers()["ray-worker"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
