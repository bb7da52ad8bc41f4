"""What the AWS provider creates in an account, as seen in a mock of AWS."""

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

from sweeps.cluster.aws import NodeProvider, is_bootstrapped
from sweeps.cluster.iam import CLUSTER_TAG, AwsAccount, head_policy, worker_policy
from sweeps.cluster.network import ensure_security_group
from sweeps.cluster.settings import ClusterSettings, parse_settings
from sweeps.engine.trials.ray_connection import RAY_ENVIRONMENT
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
    """EC2 client of an empty mock account."""
    with mock_aws_account(tmp_path / "home"):
        yield boto3.client("ec2", REGION)


def bootstrap(**provider: Any) -> dict[str, Any]:
    return NodeProvider.bootstrap_config(prepared_by_ray(filled_cluster_config(**provider)))


def ingress_rules(ec2: Any) -> set[tuple[str, Any, str]]:
    """Protocol, port and source of every ingress rule of the cluster's group; its own id reads 'the group'."""
    [group] = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["xfer-ray"]}])["SecurityGroups"]
    rules = set()
    for permission in group["IpPermissions"]:
        sources = [source["CidrIp"] for source in permission["IpRanges"]]
        sources += [source["CidrIpv6"] for source in permission["Ipv6Ranges"]]
        pairs = permission["UserIdGroupPairs"]
        sources += [pair["GroupId"].replace(group["GroupId"], "the group") for pair in pairs]
        assert permission.get("FromPort") == permission.get("ToPort")
        rules |= {(permission["IpProtocol"], permission.get("FromPort"), source) for source in sources}
    return rules


def policy(role: str) -> list[dict[str, Any]]:
    """The statements of a role's only policy."""
    iam = boto3.client("iam")
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    assert iam.list_role_policies(RoleName=role)["PolicyNames"] == ["xfer"]
    statements: list[dict[str, Any]] = iam.get_role_policy(RoleName=role, PolicyName="xfer")["PolicyDocument"][
        "Statement"
    ]
    return statements


def created_resources(ec2: Any) -> tuple[Any, ...]:
    """The names or counts of all resources that a provider could have created."""
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


def test_only_ssh_from_one_address_and_the_cluster_itself_are_allowed_and_a_second_bootstrap_changes_nothing(
    aws: Any,
) -> None:
    first = bootstrap()
    assert ingress_rules(aws) == {("tcp", 22, OFFICE), ("-1", None, "the group")}
    before = created_resources(aws), ingress_rules(aws), policy(HEAD), policy(WORKER)
    assert bootstrap() == first
    assert (created_resources(aws), ingress_rules(aws), policy(HEAD), policy(WORKER)) == before


@pytest.mark.slow
def test_a_finished_configuration_is_bootstrapped_again_on_the_head_without_a_request_and_unchanged(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray exec --stop` and `ray submit --stop` run `ray teardown ~/ray_bootstrap_config.yaml` there."""
    from ray.autoscaler._private.commands import _bootstrap_config

    monkeypatch.chdir(ROOT)
    finished = _bootstrap_config(filled_cluster_config(), no_config_cache=True)
    on_head = json.loads(json.dumps(finished)) | {"file_mounts": {"~/.xfer/project/xfer": "~/.xfer/project/xfer"}}
    on_head["auth"] = {**on_head["auth"], "ssh_private_key": "~/ray_bootstrap_key.pem"}
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BaseClient, "_make_api_call", lambda *_: pytest.fail("AWS was asked"))
    first = _bootstrap_config(on_head, no_config_cache=True)
    second = _bootstrap_config(first, no_config_cache=True)
    for config in (on_head, first, second):
        config.pop("head_node", None)  # Ray adds and drops it by itself
        config["provider"].pop("_config_cache_path", None)
    assert first == on_head
    assert second == on_head


def test_the_file_itself_is_not_taken_for_a_finished_configuration() -> None:
    config = filled_cluster_config()
    assert not is_bootstrapped(config)
    for node in config["available_node_types"].values():
        node["node_config"] |= {"SecurityGroupIds": ["sg-mine"], "IamInstanceProfile": {"Arn": "arn:...:mine"}}
    assert not is_bootstrapped(config)


def test_a_machine_that_shuts_itself_down_is_terminated(aws: Any) -> None:
    for node in bootstrap()["available_node_types"].values():
        assert node["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_a_group_that_was_opened_manually_is_closed_again(aws: Any) -> None:
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
    assert ingress_rules(aws) == {("tcp", 22, OFFICE), ("-1", None, "the group")}
    assert config["available_node_types"]["head"]["node_config"]["SecurityGroupIds"] == [group]


def test_a_new_address_replaces_the_previous_one(aws: Any) -> None:
    [vpc] = aws.describe_vpcs()["Vpcs"]
    for address in (OFFICE, "198.51.100.0/24", "2001:db8::/48"):
        ensure_security_group(aws, vpc["VpcId"], "xfer-ray", "xfer", address)
        assert ingress_rules(aws) == {("tcp", 22, address), ("-1", None, "the group")}


# --- what machines may do ------------------------------------------------------------------------------------------


SETTINGS = ClusterSettings("xfer", REGION, OFFICE, BUCKET, ("photos",), "")
GROUP = "sg-0123456789abcdef0"
POLICIES = {
    "head": head_policy(SETTINGS, AwsAccount("aws", ACCOUNT), GROUP, ["m6i.xlarge", "g6.2xlarge", "g6.2xlarge"]),
    "worker": worker_policy(SETTINGS, AwsAccount("aws", ACCOUNT)),
}


def test_no_action_is_a_wildcard_and_only_describing_applies_to_every_resource() -> None:
    for statement in POLICIES["head"]["Statement"] + POLICIES["worker"]["Statement"]:
        assert statement["Effect"] == "Allow"
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) for action in statement["Action"])
        if "*" in statement["Resource"]:
            assert statement["Action"] == ["ec2:DescribeInstances"]


def test_workers_may_use_the_bucket_and_read_data_and_nothing_else() -> None:
    statements = POLICIES["worker"]["Statement"]
    allowed = {(action, resource) for item in statements for action in item["Action"] for resource in item["Resource"]}
    own, data = f"arn:aws:s3:::{BUCKET}", "arn:aws:s3:::photos"
    writing = {"PutObject", "DeleteObject", "AbortMultipartUpload", "ListMultipartUploadParts"}
    assert allowed == (
        {(f"s3:{action}", bucket) for action in ("ListBucket", "GetBucketLocation") for bucket in (own, data)}
        | {("s3:GetObject", f"{own}/*"), ("s3:GetObject", f"{data}/*")}
        | {(f"s3:{action}", f"{own}/*") for action in writing}
    )


def test_the_head_starts_only_its_own_instance_types_and_terminates_only_its_own_machines() -> None:
    statements = {statement["Sid"]: statement for statement in POLICIES["head"]["Statement"]}

    def allowing(action: str, resource: str) -> list[str]:
        return [sid for sid, item in statements.items() if action in item["Action"] and resource in item["Resource"]]

    machines = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*"
    assert [sid for sid, item in statements.items() if "ec2:TerminateInstances" in item["Action"]] == ["OwnMachines"]
    assert statements["OwnMachines"]["Condition"] == {"StringEquals": {f"aws:ResourceTag/{CLUSTER_TAG}": "xfer"}}
    assert allowing("ec2:RunInstances", machines) == ["Start"]
    assert statements["Start"]["Condition"]["StringEquals"] == {
        f"aws:RequestTag/{CLUSTER_TAG}": "xfer",
        "ec2:InstanceType": ["g6.2xlarge", "m6i.xlarge"],
    }
    assert statements["StartDisks"]["Condition"]["Bool"] == {"ec2:Encrypted": "true"}
    groups = [arn for arn in statements["StartWith"]["Resource"] if ":security-group/" in arn]
    assert groups == [f"arn:aws:ec2:{REGION}:{ACCOUNT}:security-group/{GROUP}"]
    assert statements["WorkerRole"]["Resource"] == [f"arn:aws:iam::{ACCOUNT}:role/{WORKER}"]
    assert statements["WorkerRole"]["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_machines_start_with_their_own_role_in_the_closed_group_with_encrypted_disks(aws: Any) -> None:
    config = bootstrap()
    [group] = aws.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["xfer-ray"]}])["SecurityGroups"]
    account = AwsAccount("aws", ACCOUNT)
    settings = parse_settings(filled_cluster_config())
    assert policy(WORKER) == worker_policy(settings, account)["Statement"]
    kinds = ["m6i.xlarge", "g6.2xlarge", "g5.2xlarge"]
    assert policy(HEAD) == head_policy(settings, account, group["GroupId"], kinds)["Statement"]
    provider = NodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "l4", "a10g", "l4_on_demand"):
        started = provider.create_node(
            config["available_node_types"][kind]["node_config"], {"ray-node-type": "worker", "ray-node-name": kind}, 1
        )
        [machine] = aws.describe_instances(InstanceIds=list(started))["Reservations"][0]["Instances"]
        role = HEAD if kind == "head" else WORKER
        assert machine["IamInstanceProfile"]["Arn"] == f"arn:aws:iam::{ACCOUNT}:instance-profile/{role}"
        assert [item["GroupId"] for item in machine["SecurityGroups"]] == [group["GroupId"]]
        assert {CLUSTER_TAG: "xfer", "project": "xfer"}.items() <= {
            tag["Key"]: tag["Value"] for tag in machine["Tags"]
        }.items()
        [disk] = aws.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": list(started)}])["Volumes"]
        assert disk["Encrypted"]
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert (machine.get("InstanceLifecycle") == "spot") == (kind in ("l4", "a10g"))


# --- what is rejected before anything is created ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ({"region": "FILL-IN"}, "provider.region is 'FILL-IN': write the AWS region"),
        ({"region": "us-east"}, "provider.region is 'us-east': write the AWS region"),
        ({"ssh_from": "FILL-IN"}, "such as 203.0.113.7/32"),
        ({"bucket": None}, "write the name of a private S3 bucket"),
        ({"ssh_from": "0.0.0.0/0"}, "4294967296 addresses"),
        ({"ssh_from": "::/0"}, "or a prefix of at least /32"),
        ({"ssh_from": "203.0.113.7/24"}, "has host bits set"),
        ({"bucket": "s3://my-results/runs"}, "without s3://"),
        ({"data_buckets": "photos"}, "write a list of names"),
        ({"sssh_from": OFFICE}, "provider.sssh_from is not a known key"),
        ({"aws_credentials": {}}, "provider.aws_credentials is not a known key"),
    ],
)
def test_invalid_settings_are_rejected(invalid: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_settings(filled_cluster_config(**invalid))


def test_a_request_that_aws_denies_is_reported_in_one_line(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> Any:
        raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "not you"}}, "DescribeImages")

    monkeypatch.setattr(BaseClient, "_make_api_call", denied)
    with pytest.raises(click.ClickException, match="calling the DescribeImages operation: not you"):
        bootstrap()


def test_nothing_is_created_for_an_incomplete_file_or_an_unknown_image(aws: Any) -> None:
    before = created_resources(aws)
    for invalid, message in (
        ({"bucket": "FILL-IN"}, "provider.bucket"),
        ({"image": "Windows 95"}, "is called 'Windows 95'"),
    ):
        with pytest.raises(click.ClickException, match=message):
            bootstrap(**invalid)
    assert created_resources(aws) == before


def test_a_security_group_set_by_the_user_is_not_silently_replaced(aws: Any) -> None:
    config = filled_cluster_config()
    config["available_node_types"]["l4"]["node_config"]["SecurityGroupIds"] = ["sg-mine"]
    with pytest.raises(click.ClickException, match=r"l4\.node_config\.SecurityGroupIds"):
        NodeProvider.bootstrap_config(prepared_by_ray(config))


# --- the whole `ray up` --------------------------------------------------------------------------------------------


class Recorder:
    """Replaces Python's subprocess: records what Ray would run over SSH, and copies what it would rsync."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self, home: Path) -> None:
        self.home = home
        self.commands: list[str] = []

    def check_call(self, command: list[str], *_: Any, **__: Any) -> int:
        if command[0] == "rsync":
            source, target = command[-2], command[-1].partition(":")[2]
            self.commands.append(f"rsync {source} {target} {' '.join(command[3:-2])}".replace(str(ROOT) + "/", ""))
            copied = self.home / target.removeprefix("~/").rstrip("/")
            if source.endswith("/"):
                shutil.copytree(source, copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, copied)
            return 0
        shell = shlex.split(command[-1])[0]
        script = shell.split("PYTHONWARNINGS=ignore && (", 1)[1].removesuffix(")")
        self.commands.append(script)
        if script.startswith("mkdir -p ~/"):
            (self.home / script.removeprefix("mkdir -p ~/")).mkdir(parents=True, exist_ok=True)
        return 0

    def check_output(self, command: list[str], *_: Any, **__: Any) -> bytes:
        self.check_call(command)
        return b""

    def index(self, part: str) -> int:
        """Index of the only command that contains `part`."""
        [index] = [index for index, command in enumerate(self.commands) if part in command]
        return index


@pytest.mark.slow
def test_the_whole_ray_up_and_the_start_of_a_worker_as_recorded(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.commands import _bootstrap_config, get_or_create_head_node, teardown_cluster
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
    all_commands = "\n".join(recorder.commands)
    assert "FILL-IN" not in all_commands
    assert "{bucket}" not in all_commands
    steps = [
        recorder.index("rsync xfer/ ~/.xfer/project/xfer/"),
        recorder.index("rsync pyproject.toml ~/.xfer/project/pyproject.toml"),
        recorder.index("idle_shutdown.py install"),
        recorder.index("cat > ~/.xfer/environment.sh"),
        recorder.index("uv pip install"),
        recorder.index("export MLFLOW_TRACKING_URI=http://127.0.0.1:5000"),
        recorder.index(f"python -m sweeps.cluster mlflow --artifacts s3://{BUCKET}/mlartifacts"),
        recorder.index("ray start --head"),
    ]
    assert steps == sorted(steps)
    assert f"rsync {token} ~/.ray/auth_token" in all_commands
    assert (head_home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert "a token" not in all_commands  # the token is copied as a file and is not part of any command
    for name, value in RAY_ENVIRONMENT.items():
        assert f"export {name}={value}\n" in all_commands
    assert f"export XFER_STORAGE=s3://{BUCKET}/runs\n" in all_commands
    start = recorder.commands[recorder.index("ray start --head")]
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_OVERRIDE_RESOURCES='{\"CPU\":0}'" in start
    assert 'RAY_OVERRIDE_LABELS=\'{"xfer/usd-per-hour":"0.192"}\'' in start
    assert "RAY_health_check_failure_threshold=4" in start
    # Ray exports its own choice before the command; the file is read after it.
    assert start.index("RAY_USAGE_STATS_ENABLED") < start.index(". ~/.xfer/environment.sh")
    copied = sorted(path.name for path in (head_home / ".xfer/project").iterdir())
    assert copied == ["README.md", "constraints.txt", "pyproject.toml", "sweeps", "xfer"]

    # On the head: what its autoscaler does with the uploaded configuration, and which operations it requests from AWS.
    operations: set[str] = set()
    allowed = {action for statement in POLICIES["head"]["Statement"] for action in statement["Action"]}
    make_api_call = BaseClient._make_api_call

    def record_call(client: Any, operation: str, arguments: Any) -> Any:
        action = f"{client.meta.service_model.service_name}:{operation}"
        operations.add(action)
        if action not in allowed:
            raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": action}}, operation)
        return make_api_call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", record_call)
    monkeypatch.setenv("HOME", str(head_home))
    monkeypatch.chdir(head_home)
    head_config = json.loads((head_home / "ray_bootstrap_config.yaml").read_text())
    on_head = AutoscalingConfig(head_config)
    provider = NodeProvider(head_config["provider"], head_config["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-node-name": "ray-xfer-worker", "ray-user-node-type": "l4"}
    [machine] = provider.create_node(on_head.get_cloud_node_config("l4"), tags, 1)
    provider.non_terminated_nodes({})
    worker = Recorder(worker_home)
    RayInstaller(provider, on_head, process_runner=worker).install_ray(
        Instance(instance_id="1", cloud_instance_id=machine, instance_type="l4"), "10.0.0.1"
    )
    # What `ray exec --stop` runs there before it shuts the head down.
    teardown_cluster(str(head_home / "ray_bootstrap_config.yaml"), True, True, None, False)
    states = {
        instance["InstanceId"]: instance["State"]["Name"]
        for reservation in aws.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    }
    assert states.pop(machine) == "terminated"
    assert list(states.values()) == ["running"]  # the head
    assert operations == {"ec2:RunInstances", "ec2:CreateTags", "ec2:DescribeInstances", "ec2:TerminateInstances"}
    all_commands = "\n".join(worker.commands)
    assert (worker_home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert sum("uv pip install" in command for command in worker.commands) == 1  # Ray would do it twice
    steps = [
        worker.index("idle_shutdown.py install"),
        worker.index("cat > ~/.xfer/environment.sh"),
        worker.index("uv pip install"),
        worker.index("nvidia-smi"),
        worker.index("ray start --address=$RAY_HEAD_IP:6379"),
    ]
    assert steps == sorted(steps)
    for name, value in RAY_ENVIRONMENT.items():
        assert f"export {name}={value}\n" in all_commands
    start = worker.commands[-1]
    assert "RAY_HEAD_IP=10.0.0.1" in start
    assert 'RAY_OVERRIDE_LABELS=\'{"xfer/usd-per-hour":"0.9776"}\'' in start
    assert '"GPU":1' in start
    assert "mlflow" not in all_commands.lower()
    assert "ray_bootstrap_key" not in all_commands  # the key to the machines stays on the head
