"""What the AWS provider makes in an account: a stand-in of AWS tells."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import click
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from sweeps.cluster.access import CLUSTER_TAG, AwsAccount, head_policy, worker_policy
from sweeps.cluster.aws import NodeProvider
from sweeps.cluster.network import ensure_security_group
from sweeps.cluster.settings import ClusterSettings, parse_settings
from sweeps.engine.trials.ray_tune import RAY_ENVIRONMENT
from tests.cluster.mock_aws import (
    ACCOUNT,
    BUCKET,
    OFFICE,
    REGION,
    ROOT,
    filled_cluster_config,
    mock_aws_account,
    prepared_by_ray,
)

HEAD, WORKER = f"xfer-{REGION}-head", f"xfer-{REGION}-worker"


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Any]:
    """EC2 of an account in which nothing was made yet."""
    with mock_aws_account(tmp_path / "home"):
        yield boto3.client("ec2", REGION)


def bootstrap(**provider: Any) -> dict[str, Any]:
    return NodeProvider.bootstrap_config(prepared_by_ray(filled_cluster_config(**provider)))


def let_in(ec2: Any) -> set[tuple[str, Any, str]]:
    """Protocol, port and source of all that the cluster's group lets in; itself is 'the group'."""
    [group] = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["xfer-ray"]}])["SecurityGroups"]
    rules = set()
    for permission in group["IpPermissions"]:
        sources = [each["CidrIp"] for each in permission["IpRanges"]]
        sources += [each["CidrIpv6"] for each in permission["Ipv6Ranges"]]
        sources += [each["GroupId"].replace(group["GroupId"], "the group") for each in permission["UserIdGroupPairs"]]
        assert permission.get("FromPort") == permission.get("ToPort")
        rules |= {(permission["IpProtocol"], permission.get("FromPort"), source) for source in sources}
    return rules


def policy(role: str) -> list[dict[str, Any]]:
    """The statements of all that a role may do."""
    iam = boto3.client("iam")
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    assert iam.list_role_policies(RoleName=role)["PolicyNames"] == ["xfer"]
    statements: list[dict[str, Any]] = iam.get_role_policy(RoleName=role, PolicyName="xfer")["PolicyDocument"][
        "Statement"
    ]
    return statements


def made(ec2: Any) -> tuple[Any, ...]:
    """All that a provider could have made."""
    iam = boto3.client("iam")
    groups = ec2.describe_security_groups()["SecurityGroups"]
    return (
        sorted(group["GroupName"] for group in groups),
        sorted(role["RoleName"] for role in iam.list_roles()["Roles"]),
        sorted(profile["InstanceProfileName"] for profile in iam.list_instance_profiles()["InstanceProfiles"]),
        len(ec2.describe_key_pairs()["KeyPairs"]),
        len(ec2.describe_instances()["Reservations"]),
    )


# --- the network ---------------------------------------------------------------------------------------------------


def test_only_ssh_from_one_address_and_the_cluster_itself_come_in_and_the_second_time_changes_nothing(aws: Any) -> None:
    first = bootstrap()
    assert let_in(aws) == {("tcp", 22, OFFICE), ("-1", None, "the group")}
    before = made(aws), let_in(aws), policy(HEAD), policy(WORKER)
    assert bootstrap() == first
    assert (made(aws), let_in(aws), policy(HEAD), policy(WORKER)) == before


def test_a_group_that_others_opened_is_closed_again(aws: Any) -> None:
    vpc = aws.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = aws.create_security_group(GroupName="xfer-ray", Description="open", VpcId=vpc)["GroupId"]
    open_to_all = {"IpRanges": [{"CidrIp": "0.0.0.0/0"}], "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    aws.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22} | open_to_all,
            {"IpProtocol": "tcp", "FromPort": 8265, "ToPort": 8265} | open_to_all,
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]},
        ],
    )
    config = bootstrap()
    assert let_in(aws) == {("tcp", 22, OFFICE), ("-1", None, "the group")}
    assert config["available_node_types"]["head"]["node_config"]["SecurityGroupIds"] == [group]


def test_another_address_takes_the_place_of_the_first(aws: Any) -> None:
    [vpc] = aws.describe_vpcs()["Vpcs"]
    for address in (OFFICE, "198.51.100.0/24", "2001:db8::/48"):
        ensure_security_group(aws, vpc["VpcId"], "xfer-ray", "xfer", address)
        assert let_in(aws) == {("tcp", 22, address), ("-1", None, "the group")}


# --- what machines may do ------------------------------------------------------------------------------------------


SETTINGS = ClusterSettings("xfer", REGION, OFFICE, BUCKET, ("photos",), "")
GROUP = "sg-0123456789abcdef0"
MAY = {
    "head": head_policy(SETTINGS, AwsAccount("aws", ACCOUNT), GROUP, ["m6i.xlarge", "g6.2xlarge", "g6.2xlarge"]),
    "worker": worker_policy(SETTINGS, AwsAccount("aws", ACCOUNT)),
}


def test_no_action_is_allowed_by_a_wildcard_and_only_looking_at_everything() -> None:
    for statement in MAY["head"]["Statement"] + MAY["worker"]["Statement"]:
        assert statement["Effect"] == "Allow"
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) for action in statement["Action"])
        if "*" in statement["Resource"]:
            assert statement["Action"] == ["ec2:DescribeInstances"]


def test_workers_may_use_the_bucket_read_data_and_nothing_else() -> None:
    statements = MAY["worker"]["Statement"]
    may = {(action, resource) for each in statements for action in each["Action"] for resource in each["Resource"]}
    own, data = f"arn:aws:s3:::{BUCKET}", "arn:aws:s3:::photos"
    writing = {"PutObject", "DeleteObject", "AbortMultipartUpload", "ListMultipartUploadParts"}
    assert may == (
        {(f"s3:{action}", bucket) for action in ("ListBucket", "GetBucketLocation") for bucket in (own, data)}
        | {("s3:GetObject", f"{own}/*"), ("s3:GetObject", f"{data}/*")}
        | {(f"s3:{action}", f"{own}/*") for action in writing}
    )


def test_the_head_starts_only_its_own_kinds_of_machines_and_ends_only_its_own() -> None:
    may = {statement["Sid"]: statement for statement in MAY["head"]["Statement"]}

    def who(action: str, resource: str) -> list[str]:
        return [sid for sid, each in may.items() if action in each["Action"] and resource in each["Resource"]]

    machines = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*"
    assert [sid for sid, each in may.items() if "ec2:TerminateInstances" in each["Action"]] == ["OwnMachines"]
    assert may["OwnMachines"]["Condition"] == {"StringEquals": {f"aws:ResourceTag/{CLUSTER_TAG}": "xfer"}}
    assert who("ec2:RunInstances", machines) == ["Start"]
    assert may["Start"]["Condition"]["StringEquals"] == {
        f"aws:RequestTag/{CLUSTER_TAG}": "xfer",
        "ec2:InstanceType": ["g6.2xlarge", "m6i.xlarge"],
    }
    assert may["StartDisks"]["Condition"]["Bool"] == {"ec2:Encrypted": "true"}
    groups = [each for each in may["StartWith"]["Resource"] if ":security-group/" in each]
    assert groups == [f"arn:aws:ec2:{REGION}:{ACCOUNT}:security-group/{GROUP}"]
    assert may["WorkerRole"]["Resource"] == [f"arn:aws:iam::{ACCOUNT}:role/{WORKER}"]
    assert may["WorkerRole"]["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_machines_start_with_their_own_role_in_the_closed_group_with_encrypted_disks(aws: Any) -> None:
    config = bootstrap()
    [group] = aws.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["xfer-ray"]}])["SecurityGroups"]
    account_of = AwsAccount("aws", ACCOUNT)
    settings = parse_settings(filled_cluster_config())
    assert policy(WORKER) == worker_policy(settings, account_of)["Statement"]
    kinds = ["m6i.xlarge", "g6.2xlarge", "g5.2xlarge"]
    assert policy(HEAD) == head_policy(settings, account_of, group["GroupId"], kinds)["Statement"]
    provider = NodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "l4", "a10g"):
        started = provider.create_node(
            config["available_node_types"][kind]["node_config"], {"ray-node-type": "worker", "ray-node-name": kind}, 1
        )
        [machine] = aws.describe_instances(InstanceIds=list(started))["Reservations"][0]["Instances"]
        role = HEAD if kind == "head" else WORKER
        assert machine["IamInstanceProfile"]["Arn"] == f"arn:aws:iam::{ACCOUNT}:instance-profile/{role}"
        assert [each["GroupId"] for each in machine["SecurityGroups"]] == [group["GroupId"]]
        assert {CLUSTER_TAG: "xfer", "project": "xfer"}.items() <= {
            tag["Key"]: tag["Value"] for tag in machine["Tags"]
        }.items()
        [disk] = aws.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": list(started)}])["Volumes"]
        assert disk["Encrypted"]
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert (machine.get("InstanceLifecycle") == "spot") == (kind != "head")


# --- what is refused, before anything is made ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"region": "FILL-IN"}, "provider.region is 'FILL-IN': write the AWS region"),
        ({"region": "us-east"}, "provider.region is 'us-east': write the AWS region"),
        ({"ssh_from": "FILL-IN"}, "such as 203.0.113.7/32"),
        ({"bucket": None}, "write the name of a private S3 bucket"),
        ({"ssh_from": "0.0.0.0/0"}, "4294967296 addresses"),
        ({"ssh_from": "::/0"}, "or a network of at most /32"),
        ({"ssh_from": "203.0.113.7/24"}, "has host bits set"),
        ({"bucket": "s3://my-results/runs"}, "without s3://"),
        ({"data_buckets": "photos"}, "a list of names"),
        ({"sssh_from": OFFICE}, "provider.sssh_from is not known here"),
        ({"aws_credentials": {}}, "provider.aws_credentials is not known here"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_settings(filled_cluster_config(**wrong))


def test_what_aws_refuses_is_said_in_a_line(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "not you"}}, "DescribeImages")

    monkeypatch.setattr(BaseClient, "_make_api_call", refused)
    with pytest.raises(click.ClickException, match="calling the DescribeImages operation: not you"):
        bootstrap()


def test_nothing_is_made_for_a_file_that_is_not_filled_in_or_names_an_unknown_image(aws: Any) -> None:
    before = made(aws)
    for wrong, said in ({"bucket": "FILL-IN"}, "provider.bucket"), ({"image": "Windows 95"}, "is called 'Windows 95'"):
        with pytest.raises(click.ClickException, match=said):
            bootstrap(**wrong)
    assert made(aws) == before


def test_a_group_or_role_of_ones_own_is_not_silently_replaced(aws: Any) -> None:
    config = filled_cluster_config()
    config["available_node_types"]["l4"]["node_config"]["SecurityGroupIds"] = ["sg-mine"]
    with pytest.raises(click.ClickException, match=r"l4\.node_config\.SecurityGroupIds"):
        NodeProvider.bootstrap_config(prepared_by_ray(config))


# --- the whole `ray up` --------------------------------------------------------------------------------------------


class Recorder:
    """In the place of Python's subprocess: notes what Ray would run over SSH, and copies what it would rsync."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self, there: Path) -> None:
        self.there = there
        self.said: list[str] = []

    def check_call(self, command: list[str], *_: Any, **__: Any) -> int:
        if command[0] == "rsync":
            source, target = command[-2], command[-1].partition(":")[2]
            self.said.append(f"rsync {source} {target} {' '.join(command[3:-2])}".replace(str(ROOT) + "/", ""))
            copied = self.there / target.removeprefix("~/").rstrip("/")
            if source.endswith("/"):
                shutil.copytree(source, copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, copied)
            return 0
        shell = shlex.split(command[-1])[0]
        told = shell.split("PYTHONWARNINGS=ignore && (", 1)[1].removesuffix(")")
        self.said.append(told)
        if told.startswith("mkdir -p ~/"):
            (self.there / told.removeprefix("mkdir -p ~/")).mkdir(parents=True, exist_ok=True)
        return 0

    def check_output(self, command: list[str], *_: Any, **__: Any) -> bytes:
        self.check_call(command)
        return b""

    def index(self, part: str) -> int:
        """Where the only command with this in it stands."""
        [found] = [index for index, one in enumerate(self.said) if part in one]
        return found


@pytest.mark.slow
def test_the_whole_ray_up_and_the_start_of_a_worker_as_recorded(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.commands import _bootstrap_config, get_or_create_head_node
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
    from ray.core.generated.instance_manager_pb2 import Instance

    monkeypatch.chdir(ROOT)
    token = Path(os.environ["HOME"]) / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a token")
    token.chmod(0o600)
    head_home, worker_home = tmp_path / "head", tmp_path / "worker"
    head_home.mkdir()
    worker_home.mkdir()

    # On the user's machine.
    recorder = Recorder(head_home)
    config = _bootstrap_config(filled_cluster_config(), no_config_cache=True)
    get_or_create_head_node(config, "ray_cluster.yaml", False, False, True, None, _runner=recorder)
    told = "\n".join(recorder.said)
    assert "FILL-IN" not in told
    assert "{bucket}" not in told
    steps = [
        recorder.index("rsync xfer/ ~/.xfer/project/xfer/"),
        recorder.index("rsync pyproject.toml ~/.xfer/project/pyproject.toml"),
        recorder.index("cat > ~/.xfer/environment.sh"),
        recorder.index("-c ~/.xfer/project/constraints.txt"),
        recorder.index("export MLFLOW_TRACKING_URI=http://127.0.0.1:5000"),
        recorder.index(f"python -m sweeps.cluster mlflow --artifacts s3://{BUCKET}/mlartifacts"),
        recorder.index("ray start --head"),
    ]
    assert steps == sorted(steps)
    assert f"rsync {token} ~/.ray/auth_token" in told
    assert (head_home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert "a token" not in told  # it is copied as a file, and stands in no command
    for name, value in RAY_ENVIRONMENT.items():
        assert f"export {name}={value}\n" in told
    assert f"export XFER_STORAGE=s3://{BUCKET}/runs\n" in told
    start = recorder.said[recorder.index("ray start --head")]
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_OVERRIDE_RESOURCES='{\"CPU\":0}'" in start
    assert 'RAY_OVERRIDE_LABELS=\'{"xfer/usd-per-hour":"0.192"}\'' in start
    assert "RAY_health_check_failure_threshold=3" in start
    # Ray exports its own choice before the command; the file is read after it.
    assert start.index("RAY_USAGE_STATS_ENABLED") < start.index(". ~/.xfer/environment.sh")
    kept = sorted(path.name for path in (head_home / ".xfer/project").iterdir())
    assert kept == ["README.md", "constraints.txt", "pyproject.toml", "sweeps", "xfer"]

    # On the head: what its autoscaler does with the configuration that was brought there, and asks AWS for meanwhile.
    asked: set[str] = set()
    call = BaseClient._make_api_call

    def noted(client: Any, operation: str, arguments: Any) -> Any:
        asked.add(f"{client.meta.service_model.service_name}:{operation}")
        return call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    monkeypatch.setenv("HOME", str(head_home))
    monkeypatch.chdir(head_home)
    brought = json.loads((head_home / "ray_bootstrap_config.yaml").read_text())
    on_head = AutoscalingConfig(brought)
    provider = NodeProvider(brought["provider"], brought["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-node-name": "ray-xfer-worker", "ray-user-node-type": "l4"}
    [machine] = provider.create_node(on_head.get_cloud_node_config("l4"), tags, 1)
    provider.non_terminated_nodes({})
    worker = Recorder(worker_home)
    RayInstaller(provider, on_head, process_runner=worker).install_ray(
        Instance(instance_id="1", cloud_instance_id=machine, instance_type="l4"), "10.0.0.1"
    )
    provider.terminate_node(machine)
    may = {action for statement in MAY["head"]["Statement"] for action in statement["Action"]}
    assert asked == {"ec2:RunInstances", "ec2:CreateTags", "ec2:DescribeInstances", "ec2:TerminateInstances"}
    assert asked <= may
    told = "\n".join(worker.said)
    assert (worker_home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert sum("pip install" in command for command in worker.said) == 1  # Ray would do it twice
    steps = [
        worker.index("cat > ~/.xfer/environment.sh"),
        worker.index("-c ~/.xfer/project/constraints.txt"),
        worker.index("nvidia-smi"),
        worker.index("ray start --address=$RAY_HEAD_IP:6379"),
    ]
    assert steps == sorted(steps)
    for name, value in RAY_ENVIRONMENT.items():
        assert f"export {name}={value}\n" in told
    start = worker.said[-1]
    assert "RAY_HEAD_IP=10.0.0.1" in start
    assert 'RAY_OVERRIDE_LABELS=\'{"xfer/usd-per-hour":"0.9776"}\'' in start
    assert '"GPU":1' in start
    assert "mlflow" not in told.lower()
    assert "ray_bootstrap_key" not in told  # the key to the machines stays on the head
