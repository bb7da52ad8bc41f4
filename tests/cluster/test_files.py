"""Validates every cluster file without a cloud: Ray's own schema, and a stricter check of what Ray accepts unseen."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from sweeps.engine.trials.ray_connection import RAY_ENVIRONMENT
from tests.cluster.mock_aws import ROOT

CLOUDS = {"aws": ROOT / "ray_cluster.yaml", "gcp": ROOT / "clusters" / "gcp.yaml"}
LAUNCHED = CLOUDS | {"on premises": ROOT / "clusters" / "on_premises.yaml"}
KUBERNETES = ROOT / "clusters" / "kubernetes.yaml"
RAY_JOB = ROOT / "clusters" / "rayjob.yaml"
SKYPILOT = ROOT / "clusters" / "skypilot.yaml"
ALL = [*LAUNCHED.values(), KUBERNETES, RAY_JOB, SKYPILOT, ROOT / "clusters" / "Dockerfile"]

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
        on_demand = kind.endswith("_on_demand")
        assert spot == (kind != config["head_node_type"] and not on_demand)
        assert node.get("priority", 0) == (-1 if on_demand else 0)  # Ray takes spot machines first
        assert node["min_workers"] == 0
        assert node["max_workers"] <= config["max_workers"]
        assert float(node["labels"]["xfer/usd-per-hour"]) > 0
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert nodes["head"]["max_workers"] == 0
    assert {kind: node["resources"]["GPU"] for kind, node in nodes.items() if kind != "head"} == dict.fromkeys(
        sorted(nodes.keys() - {"head"}), 1
    )
    assert any(kind.endswith("_on_demand") for kind in nodes)
    # Longer than the start of a worker, 6 to 10 minutes with pip: otherwise machines leave and return between stages.
    assert 10 < config["idle_timeout_minutes"] <= 20


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
def test_the_head_starts_mlflow_then_ray_with_a_local_dashboard_and_patient_health_checks(
    name: str,
) -> None:
    stop, mlflow, start = read(name)["head_start_ray_commands"]
    assert stop == "ray stop"
    assert "python -m sweeps.cluster mlflow --artifacts " in mlflow
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    for setting in ("initial_delay_ms=3000", "period_ms=3000", "timeout_ms=5000", "failure_threshold=4"):
        assert f"RAY_health_check_{setting}" in start


@launched
def test_machines_get_the_project_its_pinned_versions_the_token_and_nothing_else(name: str) -> None:
    config = read(name)
    mounts = dict(config["file_mounts"])
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert sorted(mounts.values()) == ["README.md", "constraints.txt", "pyproject.toml", "sweeps", "xfer"]
    assert all((ROOT / local).exists() for local in mounts.values())
    install_uv, install = [command for command in config["setup_commands"] if "pip install" in command]
    assert install_uv.endswith("/pip install --quiet -c ~/.xfer/project/constraints.txt uv")
    assert "/uv pip install --quiet --python ~/.xfer/venv/bin/python -c ~/.xfer/project/constraints.txt -e" in install
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


@clouds
def test_machines_of_a_cloud_shut_down_when_nothing_uses_them(name: str) -> None:
    config = read(name)
    [first, *_] = config["setup_commands"]  # also if a later command fails
    words = shlex.split(first)
    assert words[:4] == ["sudo", "python3", "~/.xfer/project/sweeps/cluster/idle_shutdown.py", "install"]
    assert words[4:] == ["--home", "$HOME", "--worker-minutes", "30", "--head-hours", "12"]
    assert config["file_mounts"]["~/.xfer/project/sweeps"] == "sweeps"


def test_hosts_of_ones_own_are_shut_down_only_if_the_user_says_so() -> None:
    text = LAUNCHED["on premises"].read_text()
    [line] = [line for line in text.splitlines() if "idle_shutdown.py" in line]
    assert line.startswith("  # - sudo python3 ~/.xfer/project/sweeps/cluster/idle_shutdown.py install ")
    enabled: dict[str, Any] = yaml.safe_load(text.replace(line, line.replace("  # - ", "  - ")))
    assert enabled["setup_commands"][0] == line.removeprefix("  # - ")


def test_kubernetes_waits_as_long_before_a_worker_counts_as_lost_or_idle() -> None:
    environment = {item["name"]: item["value"] for item in containers()["ray-head"]["env"]}
    prefix = "RAY_health_check_"
    assert {name.removeprefix(prefix): value for name, value in environment.items() if name.startswith(prefix)} == {
        "initial_delay_ms": "3000",
        "period_ms": "3000",
        "timeout_ms": "5000",
        "failure_threshold": "4",
    }
    assert of_kind("RayCluster")["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 900


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


PODS_OF_JOB = {**POD, "metadata": {"labels": ANY}, "spec": {**POD["spec"], "restartPolicy": str}}
CLUSTER_SPEC = KINDS["RayCluster"]["spec"]
JOB_KINDS: dict[str, Any] = {
    # https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta2/
    "ResourceFlavor": {},
    "LocalQueue": {"spec": {"clusterQueue": str}},
    "ClusterQueue": {
        "spec": {
            "namespaceSelector": SELECTOR,
            "resourceGroups": [
                {
                    "coveredResources": [str],
                    "flavors": [{"name": str, "resources": [{"name": str, "nominalQuota": str}]}],
                }
            ],
        }
    },
    "NetworkPolicy": {
        "spec": {
            "podSelector": SELECTOR,
            "policyTypes": [str],
            "ingress": [
                {
                    "from": [{"podSelector": SELECTOR, "namespaceSelector": SELECTOR}],
                    "ports": [{"protocol": str, "port": int}],
                }
            ],
        }
    },
    "RayJob": {
        "spec": {
            "entrypoint": str,
            "submissionMode": str,
            "shutdownAfterJobFinishes": bool,
            "ttlSecondsAfterFinished": int,
            "rayClusterSpec": {
                **CLUSTER_SPEC,
                "headGroupSpec": {**CLUSTER_SPEC["headGroupSpec"], "template": PODS_OF_JOB},
                "workerGroupSpecs": [{**CLUSTER_SPEC["workerGroupSpecs"][0], "template": PODS_OF_JOB}],
            },
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


# --- a sweep as a RayJob in a queue -----------------------------------------------------------------------------------


def job_documents() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(RAY_JOB.read_text())}


def test_kuberay_and_kueue_know_every_key_of_the_job() -> None:
    found = job_documents()
    assert found.keys() == JOB_KINDS.keys()
    for kind, document in found.items():
        shape = JOB_KINDS[kind] | {"apiVersion": str, "kind": str, "metadata": {**METADATA, "labels": ANY}}
        assert list(mismatches(document, shape, kind)) == []


def test_the_job_goes_through_the_queue_and_its_cluster_ends_with_it() -> None:
    found = job_documents()
    job = found["RayJob"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == found["LocalQueue"]["metadata"]["name"]
    assert found["LocalQueue"]["spec"]["clusterQueue"] == found["ClusterQueue"]["metadata"]["name"]
    [group] = found["ClusterQueue"]["spec"]["resourceGroups"]
    [flavor] = group["flavors"]
    assert flavor["name"] == found["ResourceFlavor"]["metadata"]["name"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    [workers] = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["maxReplicas"] == workers["replicas"]
    # The quota admits the whole job; otherwise Kueue would never start it.
    requests = [(1, cluster["headGroupSpec"]), (workers["replicas"], workers)]
    needed = {"cpu": 0.0, "memory": 0.0, "nvidia.com/gpu": 0.0}
    for count, part in requests:
        [container] = part["template"]["spec"]["containers"]
        resources = {**container["resources"]["limits"], **container["resources"]["requests"]}
        for name in needed:
            needed[name] += count * float(str(resources.get(name, 0)).removesuffix("Gi"))
    quota = {one["name"]: float(one["nominalQuota"].removesuffix("Gi")) for one in flavor["resources"]}
    assert quota.keys() == needed.keys() == set(group["coveredResources"])
    assert all(needed[name] <= quota[name] for name in needed), (needed, quota)


def test_pods_of_the_job_have_the_token_the_environment_and_a_policy_and_run_unprivileged() -> None:
    found = job_documents()
    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    assert cluster["authOptions"] == {"mode": "token", "secretName": "xfer-token"}
    own = found["NetworkPolicy"]["spec"]["podSelector"]
    from_own, from_operator = found["NetworkPolicy"]["spec"]["ingress"]
    assert from_own == {"from": [{"podSelector": own}]}
    assert from_operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = group["template"]
        assert template["metadata"]["labels"] == own["matchLabels"]
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        [container] = template["spec"]["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["envFrom"] == [{"configMapRef": {"name": "xfer-environment"}}]
    assert cluster["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"


# --- SkyPilot --------------------------------------------------------------------------------------------------------

SKYPILOT_TASK = {  # https://docs.skypilot.co/en/latest/reference/yaml-spec.html
    "name": str,
    "num_nodes": int,
    "resources": {
        "accelerators": ANY,
        "cpus": str,
        "disk_size": int,
        "any_of": [{"infra": str, "use_spot": bool}],
        "autostop": {"idle_minutes": int, "down": bool},
    },
    "envs": ANY,
    "workdir": str,
    "file_mounts": ANY,
    "setup": str,
    "run": str,
}


def skypilot() -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load(SKYPILOT.read_text())
    return task


def test_skypilot_knows_every_key_and_ends_the_machines() -> None:
    assert list(mismatches(skypilot(), SKYPILOT_TASK, "task")) == []
    assert skypilot()["resources"]["autostop"] == {"idle_minutes": 10, "down": True}
    assert skypilot()["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "uv pip install --quiet --python ~/xfer-venv/bin/python -c constraints.txt -e" in skypilot()["setup"]


SHELL_PROGRAMS = {
    "ray": 'echo "ray $*" >> $LOG; [[ $1 == start ]] && env > $LOG.env; [[ $1 != status ]] || echo "0.0/8.0 GPU"',
    "python": 'echo "python $* at $RAY_ADDRESS" >> $LOG',
    "timeout": "true",
}


@pytest.mark.parametrize("rank", [0, 3])
def test_the_commands_of_skypilot_start_a_cluster_with_the_environment_and_the_sweep_on_its_head(
    rank: int, tmp_path: Path
) -> None:
    programs = tmp_path / "xfer-venv" / "bin"
    programs.mkdir(parents=True)
    for name, script in SHELL_PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    node = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": "8"}
    shell = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LOG": str(tmp_path / "log"), "OMP_NUM_THREADS": "1"}
    envs = {**skypilot()["envs"], "BUCKET": "s3://mine", "SWEEP": "python -m sweeps.folder"}
    done = subprocess.run(
        ["bash", "-c", skypilot()["run"]], env={**shell, **node, **envs}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text()
    if rank:
        assert log == f"ray start --block --address=10.0.0.1:6379 --temp-dir={tmp_path}/ray-xfer\n"
    else:
        assert (
            f"ray start --head --block --port=6379 --dashboard-host=127.0.0.1 --temp-dir={tmp_path}/ray-xfer\n" in log
        )
        assert log.endswith("python -m sweeps.folder --data s3://mine/cars at 10.0.0.1:6379\n")
    environment = dict(line.split("=", 1) for line in (tmp_path / "log.env").read_text().splitlines() if "=" in line)
    assert environment.items() >= RAY_ENVIRONMENT.items()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["XFER_STORAGE"] == "s3://mine/runs"
    assert not {"OMP_NUM_THREADS", "RAY_ADDRESS"} & environment.keys()
