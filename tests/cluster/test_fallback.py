"""A machine of another type is started if AWS has none of the requested type."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from ray.autoscaler.node_launch_exception import NodeLaunchException

from sweeps.cluster.aws import NodeProvider
from sweeps.cluster.fallback import alternatives
from tests.cluster.mock_aws import IMAGE, REGION, filled_cluster_config, mock_aws_account, prepared_by_ray


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The configuration on the head, whose home directory holds it, as far as EC2 needs it to start machines."""
    home = tmp_path / "home"
    with mock_aws_account(home):
        config = prepared_by_ray(filled_cluster_config())
        [subnet, *_] = boto3.client("ec2", REGION).describe_subnets()["Subnets"]
        for node in config["available_node_types"].values():
            node["node_config"] |= {"ImageId": IMAGE, "SubnetIds": [subnet["SubnetId"]]}
        (home / "ray_bootstrap_config.yaml").write_text(json.dumps(config), encoding="utf-8")
        yield config


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Errors with which EC2 refuses to start machines, by market and instance type; empty at first."""
    errors: dict[str, str] = {}
    make_api_call = BaseClient._make_api_call

    def call(client: Any, operation: str, arguments: Any) -> Any:
        if operation == "RunInstances":
            market = "spot" if "InstanceMarketOptions" in arguments else "on demand"
            code = errors.get(f"{market} {arguments['InstanceType']}")
            if code:
                raise ClientError({"Error": {"Code": code, "Message": "We have none."}}, operation)
        return make_api_call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    return errors


def request(config: dict[str, Any], kind: str = "l4", count: int = 1, node_kind: str = "worker") -> None:
    """Do what Ray's autoscaler does for a machine of a type."""
    node = config["available_node_types"][kind]
    tags = {"ray-node-type": node_kind, "ray-user-node-type": kind, "ray-node-name": "w", "ray-launch-request": "1"}
    NodeProvider(config["provider"], config["cluster_name"]).create_node_with_resources_and_labels(
        node["node_config"], tags, count, node["resources"], node["labels"]
    )


def running() -> dict[str, int]:
    """How many machines run, by node type as Ray sees it, and by market."""
    reservations = boto3.client("ec2", REGION).describe_instances()["Reservations"]
    found: Counter[str] = Counter()
    for machine in (instance for reservation in reservations for instance in reservation["Instances"]):
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        assert "ray-launch-request" not in tags or machine.get("InstanceLifecycle") == "spot"
        found[f"{tags['ray-user-node-type']}, {machine.get('InstanceLifecycle', 'on demand')}"] += 1
    return dict(found)


CAPACITY, QUOTA = "InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded"


def test_without_a_refusal_the_requested_type_starts(head: dict[str, Any], refused: dict[str, str]) -> None:
    request(head)
    assert running() == {"l4, spot": 1}


def test_another_spot_type_starts_first(head: dict[str, Any], refused: dict[str, str]) -> None:
    refused["spot g6.2xlarge"] = CAPACITY
    with pytest.raises(NodeLaunchException, match=CAPACITY):  # so that Ray does not wait for this type
        request(head)
    assert running() == {"a10g, spot": 1}


@pytest.mark.parametrize("code", [QUOTA, "UnfulfillableCapacity"])
def test_without_spot_machines_one_on_demand_starts(head: dict[str, Any], refused: dict[str, str], code: str) -> None:
    refused |= {"spot g6.2xlarge": code, "spot g5.2xlarge": code}
    with pytest.raises(NodeLaunchException, match=code):
        request(head)
    assert running() == {"l4_on_demand, on demand": 1}


def test_if_fewer_start_than_requested_the_rest_are_of_the_next_type(
    head: dict[str, Any], refused: dict[str, str]
) -> None:
    refused["spot g6.2xlarge"] = CAPACITY
    with pytest.raises(NodeLaunchException):
        request(head, count=2)  # moto starts one machine per request
    assert running() == {"a10g, spot": 1, "l4_on_demand, on demand": 1}


def test_no_more_machines_of_a_type_start_than_the_file_allows(head: dict[str, Any], refused: dict[str, str]) -> None:
    types = head["available_node_types"]
    types["a10g"]["max_workers"], types["l4_on_demand"]["max_workers"] = 1, 2
    Path("~/ray_bootstrap_config.yaml").expanduser().write_text(json.dumps(head), encoding="utf-8")
    refused["spot g6.2xlarge"] = CAPACITY
    for _ in range(5):
        with pytest.raises(NodeLaunchException):
            request(head)
    assert running() == {"a10g, spot": 1, "l4_on_demand, on demand": 2}


@pytest.mark.parametrize("code", ["UnauthorizedOperation", "RequestLimitExceeded"])
def test_an_error_that_concerns_every_type_starts_nothing(
    head: dict[str, Any], refused: dict[str, str], code: str
) -> None:
    refused["spot g6.2xlarge"] = code
    with pytest.raises(NodeLaunchException, match=code):
        request(head)
    assert running() == {}


def test_the_head_is_never_replaced_by_a_worker(head: dict[str, Any], refused: dict[str, str]) -> None:
    refused["on demand m6i.xlarge"] = CAPACITY
    with pytest.raises(NodeLaunchException, match=CAPACITY):
        request(head, "head", node_kind="head")
    assert running() == {}


def test_alternatives_are_at_least_as_large_and_in_the_order_of_their_priority() -> None:
    sizes = {"small": 4, "same": 8, "large": 16, "last": 8, "first": 8}
    priorities = {"last": -1, "first": 1}
    types: dict[str, Any] = {
        name: {"resources": {"CPU": cpus, "GPU": 1}, "priority": priorities.get(name, 0)}
        for name, cpus in sizes.items()
    }
    config = {"head_node_type": "head", "available_node_types": {"head": {"resources": {"CPU": 99, "GPU": 9}}, **types}}
    found = [name for name, _ in alternatives(config, "same", {"CPU": 8, "GPU": 1, "memory": 5})]
    assert found == ["first", "large", "last"]
