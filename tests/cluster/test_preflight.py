"""`python -m sweeps.cluster` checks everything first, and starts nothing if something is missing."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami

from sweeps.cluster import __main__ as commands
from sweeps.cluster import iam, preflight
from sweeps.cluster.aws import NodeProvider
from sweeps.cluster.aws_checks import run_aws_checks
from sweeps.cluster.aws_permissions import check_head_role, check_user
from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.iam import AwsAccount
from sweeps.cluster.preflight import check_public_address, run_checks
from sweeps.cluster.settings import parse_settings
from tests.cluster.mock_aws import (
    ACCOUNT,
    BUCKET,
    CLUSTER_FILE,
    REGION,
    ROOT,
    filled_cluster_config,
    mock_aws_account,
    prepared_by_ray,
)

pytestmark = pytest.mark.slow  # every check asks a stand-in for AWS


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The project's folder, an empty home directory, and a check of the public address that needs no network."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(preflight, "check_public_address", lambda _: CheckResult("address", "ok", "in the network"))
    monkeypatch.setattr("sweeps.cluster.aws_checks.make_client_factory", lambda _: AWS())
    monkeypatch.setattr(preflight.shutil, "which", lambda name: name)


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Any]:
    """S3 client of a mock account that has a private bucket in the right region."""
    with mock_aws_account(tmp_path):
        s3 = boto3.client("s3", REGION)
        s3.create_bucket(Bucket=BUCKET)
        s3.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=dict.fromkeys(ACCESS_BLOCKS, True))
        yield s3


ACCESS_BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


class AWS:
    """Client factory of the mock account, with fakes of what moto lacks: IAM's simulator, and quotas.

    Args:
        simulator: IAM's simulator.
        quotas: quotas in virtual CPUs by code, 64 by default.
    """

    def __init__(self, simulator: Simulator | None = None, **quotas: float) -> None:
        self.simulator = simulator or Simulator()
        self.quotas = quotas

    def __call__(self, service: str) -> Any:
        if service == "service-quotas":
            return self
        client = boto3.client(service, region_name=REGION)
        if service == "iam":
            client.simulate_custom_policy = self.simulator.simulate_custom_policy
            client.simulate_principal_policy = self.simulator.simulate_principal_policy
        return client

    def get_service_quota(self, ServiceCode: str, QuotaCode: str) -> Any:  # noqa: N803
        assert ServiceCode == "ec2"
        return {"Quota": {"Value": self.quotas.get(QuotaCode.replace("-", "_"), 64.0)}}


def check_aws(clients: Any = None, **provider: Any) -> dict[str, CheckResult]:
    config = filled_cluster_config(**provider)
    return {check.name: check for check in run_aws_checks(config, parse_settings(config), clients or AWS())}


def write_config(tmp_path: Path, config: dict[str, Any]) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def write_token(home: Path) -> Path:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a token")
    token.chmod(0o600)
    return token


def missing(results: Any) -> dict[str, str]:
    """The messages of failed checks, by name."""
    return {check.name: check.message for check in results if check.status == "missing"}


# --- on this machine -----------------------------------------------------------------------------------------------


def test_the_shipped_file_lacks_only_three_values_and_the_token() -> None:
    assert missing(run_checks(CLUSTER_FILE)).keys() == {
        "token",
        "provider.region",
        "provider.ssh_from",
        "provider.bucket",
    }


def test_an_incomplete_file_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_token(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a command was started"))
    assert commands.up(CLUSTER_FILE) == 1
    printed = capsys.readouterr()
    assert f"missing  provider.bucket          fill it in in {CLUSTER_FILE}" in printed.out
    assert "Nothing was started" in printed.err


def test_a_readable_token_and_an_absent_key_are_reported(tmp_path: Path) -> None:
    token = write_token(tmp_path)
    assert "token" not in missing(run_checks(CLUSTER_FILE))
    token.chmod(0o644)
    config = filled_cluster_config(bucket="FILL-IN")
    config["auth"]["ssh_private_key"] = "~/.ssh/mine.pem"
    messages = missing(run_checks(write_config(tmp_path, config)))
    assert messages["token"] == f"other users of this machine can read it: chmod 600 {token}"
    assert messages["key"] == "auth.ssh_private_key names ~/.ssh/mine.pem, which does not exist"
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/mine.pem").touch(mode=0o600)
    token.unlink()
    messages = missing(run_checks(write_config(tmp_path, config)))
    assert messages["token"] == f"ray get-auth-token --generate > /dev/null && chmod 600 {token}"
    assert "key" not in messages


def test_absent_programs_that_ray_calls_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None if name == "rsync" else name)
    assert missing(run_checks(CLUSTER_FILE))["programs"] == "install rsync: Ray sets machines up with them"


def test_a_file_that_rays_schema_rejects_or_whose_mounts_are_absent_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = filled_cluster_config(region="FILL-IN")
    config["max_worker"] = 3
    del config["file_mounts"]["~/.ray/auth_token"]
    monkeypatch.chdir(tmp_path)
    messages = missing(run_checks(write_config(tmp_path, config)))
    assert "'max_worker' was unexpected" in messages["file"]
    assert messages["files"].endswith("run the command in the project's folder")
    assert "file_mounts must include ~/.ray/auth_token" in messages["token"]


def test_files_of_other_clouds_are_checked_too_and_kubernetes_needs_kubectl() -> None:
    gcp = missing(run_checks(ROOT / "clusters" / "gcp.yaml"))
    assert {"provider.project_id", "setup_commands.1", "head_start_ray_commands.1"} <= gcp.keys()
    assert {"provider.head_ip", "auth.ssh_user"} <= missing(run_checks(ROOT / "clusters" / "on_premises.yaml")).keys()
    with pytest.raises(ValueError, match=r"kubectl apply -f clusters/kubernetes\.yaml"):
        list(run_checks(Path("clusters/kubernetes.yaml")))
    with pytest.raises(ValueError, match=r"kubectl apply -f clusters/rayjob\.yaml"):
        list(run_checks(Path("clusters/rayjob.yaml")))
    with pytest.raises(ValueError, match=r"sky launch -c xfer clusters/skypilot\.yaml"):
        list(run_checks(Path("clusters/skypilot.yaml")))
    with pytest.raises(ValueError, match=r"nowhere\.yaml does not exist"):
        list(run_checks(Path("nowhere.yaml")))
    with pytest.raises(ValueError, match=r"Makefile cannot be read"):
        list(run_checks(Path("Makefile")))


def test_an_address_outside_the_ssh_network_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    settings = parse_settings(filled_cluster_config())
    for own, status in ("203.0.113.7", "ok"), ("198.51.100.1", "note"), ("<html>", "note"):
        monkeypatch.setattr(preflight, "urlopen", lambda *_, own=own, **__: Response(own))
        assert check_public_address(settings).status == status


class Response:
    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> bytes:
        return self.text.encode()


# --- at AWS --------------------------------------------------------------------------------------------------------


def test_a_complete_setup_passes_all_checks_and_calls_ray_up(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_token(tmp_path)
    called: list[Any] = []
    monkeypatch.setattr(
        commands.subprocess,
        "run",
        lambda command, **options: called.append((command, options)) or Completed(command, 0),
    )
    file = write_config(tmp_path, filled_cluster_config())
    assert commands.up(file) == 0
    printed = capsys.readouterr().out
    assert "missing" not in printed
    assert f"{BUCKET} is in {REGION} and private" in printed
    assert "quota spot G/VT          64 virtual CPUs of G and VT: 8 machines at a time" in printed
    assert "quota on demand standard 64 virtual CPUs of standard: 16 machines at a time" in printed
    assert "start l4_on_demand       EC2 would start one g6.2xlarge for you" in printed
    assert "spot g6.2xlarge" in printed
    [(command, options)] = called
    assert command[1:] == ["-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", str(file)]
    assert options["env"]["RAY_UP_enable_autoscaler_v2"] == "1"
    assert options["env"]["RAY_USAGE_STATS_ENABLED"] == "0"


Completed = subprocess.CompletedProcess


def test_a_bucket_that_does_not_exist_is_in_another_region_or_is_public_is_reported(aws: Any) -> None:
    absent = check_aws(bucket="absent")["bucket"]
    assert absent.message == f"absent does not exist: aws s3 mb s3://absent --region {REGION}"
    aws.create_bucket(Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert "far is in eu-west-1, the cluster in us-east-1" in check_aws(bucket="far")["bucket"].message
    aws.delete_public_access_block(Bucket=BUCKET)
    check = check_aws()["bucket"]
    assert check.status == "missing"
    assert f"aws s3api put-public-access-block --bucket {BUCKET}" in check.message


def test_a_quota_below_one_machine_is_missing_and_one_below_max_workers_is_a_note(aws: Any) -> None:
    checks = check_aws(AWS(L_3819A6DF=0.0, L_1216C47A=2.0, L_DB2E81BA=0.0))
    names = ("quota spot G/VT", "quota on demand standard", "quota on demand G/VT")
    assert {checks[name].status for name in names} == {"missing"}
    assert "--quota-code L-3819A6DF --desired-value 64" in checks["quota spot G/VT"].message
    checks = check_aws(AWS(L_3819A6DF=24.0))
    assert checks["quota spot G/VT"].status == "note"
    assert "3 machines at a time, not 8" in checks["quota spot G/VT"].message


@pytest.mark.parametrize(("code", "name"), [("L_3819A6DF", "spot"), ("L_DB2E81BA", "on demand")])
def test_one_market_without_a_quota_is_a_note_if_the_other_has_one(aws: Any, code: str, name: str) -> None:
    checks = check_aws(AWS(**{code: 0.0}))
    assert checks[f"quota {name} G/VT"].status == "note"
    assert "request-service-quota-increase" in checks[f"quota {name} G/VT"].message
    assert missing(checks.values()) == {}


def test_the_quota_of_a_type_that_may_not_start_does_not_matter(aws: Any) -> None:
    config = filled_cluster_config()
    config["available_node_types"]["l4_on_demand"]["max_workers"] = 0
    names = {check.name for check in run_aws_checks(config, parse_settings(config), AWS(L_DB2E81BA=0.0))}
    assert "quota spot G/VT" in names
    assert not names & {"quota on demand G/VT", "start l4_on_demand"}


# --- image, disks and zones ------------------------------------------------------------------------------------------


def check_changed(change: Any, clients: Any = None) -> dict[str, CheckResult]:
    """The checks of a file whose configuration was changed in place."""
    config = filled_cluster_config()
    config = json.loads(json.dumps(config))  # without YAML's aliases, so that a change concerns one node type
    change(config["available_node_types"])
    return {check.name: check for check in run_aws_checks(config, parse_settings(config), clients or AWS())}


def test_a_disk_that_is_not_the_images_root_device_is_reported(aws: Any) -> None:
    def change(nodes: Any) -> None:
        nodes["a10g"]["node_config"]["BlockDeviceMappings"][0]["DeviceName"] = "/dev/xvda"

    checks = check_changed(change)
    message = "/dev/xvda is not the image's root device: write DeviceName: /dev/sda1, or the root disk is not encrypted"
    assert missing(checks.values()) == {"disk a10g": message}


def test_a_disk_that_is_smaller_than_the_images_snapshot_is_reported(aws: Any) -> None:
    def change(nodes: Any) -> None:
        nodes["head"]["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] = 10

    message = "VolumeSize 10 is smaller than the image's snapshot: write at least 15"
    assert missing(check_changed(change).values()) == {"disk head": message}


def test_the_newest_image_is_taken_if_the_name_has_a_wildcard(aws: Any) -> None:
    backend = ec2_backends[ACCOUNT][REGION]
    for day, image_id in ((2, "ami-00000000000000002"), (3, "ami-00000000000000003"), (1, "ami-00000000000000001")):
        backend.amis[image_id] = Ami(
            backend,
            image_id,
            name=f"Another Image {day}",
            owner_alias="amazon",
            public=True,
            creation_date=datetime(2026, 11, day, tzinfo=UTC),
        )
    assert check_aws(image="Another *")["image"].message == "ami-00000000000000003 is Another Image 3"


def test_an_image_of_ones_own_that_does_not_exist_in_the_region_is_reported(aws: Any) -> None:
    def change(nodes: Any) -> None:
        nodes["l4"]["node_config"]["ImageId"] = "ami-99999999999999999"

    assert "ami-99999999999999999" in missing(check_changed(change).values())["image"]


def test_an_instance_type_offered_in_one_zone_or_none_is_reported(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = {"g6.2xlarge": ["us-east-1b"], "g5.2xlarge": ["us-east-1x"]}

    class Offers(AWS):
        def __call__(self, service: str) -> Any:
            client = super().__call__(service)
            if service == "ec2":
                client.describe_instance_type_offerings = offers
            return client

    def offers(LocationType: str, Filters: Any) -> Any:  # noqa: N803
        zones = offered[Filters[0]["Values"][0]]
        return {"InstanceTypeOfferings": [{"Location": zone} for zone in zones]}

    checks = check_aws(Offers())
    assert checks["zones g6.2xlarge"].status == "note"
    assert "in one zone of your subnets only, us-east-1b" in checks["zones g6.2xlarge"].message
    assert checks["zones g5.2xlarge"].status == "missing"
    command = "aws ec2 create-default-subnet --availability-zone us-east-1x"
    assert checks["zones g5.2xlarge"].message.endswith(f"add a subnet in us-east-1x: {command}")


def test_zones_of_all_default_subnets_are_reported(aws: Any) -> None:
    checks = check_aws()
    assert "us-east-1a, us-east-1b" in checks["network"].message
    assert checks["zones g5.2xlarge"].status == "ok"


# --- permissions -----------------------------------------------------------------------------------------------------


class Simulator:
    """A stand-in for IAM's policy simulator, which evaluates our policies.

    Args:
        user_denied: actions that the user may not use.
        role_denied: actions that an organization denies to every role.
        conditions: condition keys that the user's denied actions depend on.
    """

    def __init__(
        self, user_denied: Sequence[str] = (), role_denied: Sequence[str] = (), conditions: Sequence[str] = ()
    ) -> None:
        self.user_denied, self.role_denied, self.conditions = user_denied, role_denied, list(conditions)
        self.simulated: list[str] = []

    def get_role(self, RoleName: str) -> Any:  # noqa: N803
        raise ClientError({"Error": {"Code": "NoSuchEntity", "Message": f"{RoleName} does not exist"}}, "GetRole")

    def simulate_custom_policy(self, PolicyInputList: list[str], **request: Any) -> Any:  # noqa: N803
        [policy] = PolicyInputList
        return self._answer(request, lambda action, arn, context: is_allowed(json.loads(policy), action, arn, context))

    def simulate_principal_policy(
        self,
        PolicySourceArn: str,  # noqa: N803
        PolicyInputList: Sequence[str] = (),  # noqa: N803
        **request: Any,
    ) -> Any:
        self.simulated.append(PolicySourceArn)
        denied = self.role_denied if ":role/" in PolicySourceArn else self.user_denied
        return self._answer(request, lambda action, *_: action not in denied)

    def _answer(self, request: Any, decide: Any) -> Any:
        entries = request.get("ContextEntries", [])
        context = {entry["ContextKeyName"]: entry["ContextKeyValues"][0] for entry in entries}
        results = []
        for action, arn in itertools.product(request["ActionNames"], request.get("ResourceArns", ["*"])):
            allowed = decide(action, arn, context)
            results.append({"EvalActionName": action, "EvalResourceName": arn})
            results[-1]["EvalDecision"] = "allowed" if allowed else "implicitDeny"
            results[-1]["MissingContextValues"] = [] if allowed else self.conditions
        return {"EvaluationResults": results}


def is_allowed(policy: Any, action: str, arn: str, context: dict[str, str]) -> bool:
    """Evaluate a policy without `Deny`, as IAM does: a missing condition key is not equal to anything."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        conditions = statement.get("Condition", {})
        assert conditions.keys() <= {"StringEquals", "Bool"}
        pairs = [pair for operator in conditions.values() for pair in operator.items()]
        if (
            action in statement["Action"]
            and any(fnmatchcase(arn, pattern) for pattern in statement["Resource"])
            and all(context.get(key) in (value if isinstance(value, list) else [value]) for key, value in pairs)
        ):
            return True
    return False


HEAD_ROLE = "head's role"


def test_the_policy_of_the_head_allows_all_that_its_autoscaler_does(aws: Any) -> None:
    checks = check_aws()
    assert checks[HEAD_ROLE].status == checks["your rights"].status == "ok", checks
    assert "its policy allows all 12 kinds of requests" in checks[HEAD_ROLE].message


@pytest.mark.parametrize(
    ("statement", "denied"),
    [
        ("Start", "ec2:RunInstances on arn:aws:ec2:us-east-1:123456789012:instance/"),
        ("StartDisks", "ec2:RunInstances on arn:aws:ec2:us-east-1:123456789012:volume/"),
        ("StartWith", "ec2:RunInstances on arn:aws:ec2:us-east-1::image/"),
        ("TagAtStart", "ec2:CreateTags"),
        ("OwnMachines", "ec2:TerminateInstances"),
        ("WorkerRole", "iam:PassRole on arn:aws:iam::123456789012:role/xfer-us-east-1-worker"),
        ("Look", "ec2:DescribeInstances"),
        ("Results", "s3:GetObject on arn:aws:s3:::my-results/"),
    ],
)
def test_a_statement_missing_from_the_heads_policy_is_found(
    monkeypatch: pytest.MonkeyPatch, statement: str, denied: str
) -> None:
    def without(*arguments: Any) -> Any:
        policy = iam.head_policy(*arguments)
        return policy | {"Statement": [one for one in policy["Statement"] if one["Sid"] != statement]}

    monkeypatch.setattr("sweeps.cluster.aws_permissions.head_policy", without)
    settings = parse_settings(filled_cluster_config())
    check = check_head_role(Simulator(), settings, AwsAccount("aws", ACCOUNT), "sg-1", ["g6.2xlarge"])
    assert check.status == "missing"
    assert denied in check.message


def test_a_role_that_exists_is_simulated_with_the_limits_of_its_organization(aws: Any) -> None:
    NodeProvider.bootstrap_config(prepared_by_ray(filled_cluster_config()))
    simulator = Simulator()
    assert check_aws(AWS(simulator))[HEAD_ROLE].status == "ok"
    assert f"arn:aws:iam::{ACCOUNT}:role/xfer-{REGION}-head" in simulator.simulated
    check = check_aws(AWS(Simulator(role_denied=["ec2:RunInstances"])))[HEAD_ROLE]
    assert check.status == "missing"
    assert "an organization policy (SCP) or a permissions boundary forbids it" in check.message


def check_rights(simulator: Simulator, caller: str = "user/me") -> CheckResult:
    settings = parse_settings(filled_cluster_config())
    service = "iam" if caller.startswith(("user", "root")) else "sts"
    return check_user(simulator, settings, AwsAccount("aws", ACCOUNT), f"arn:aws:{service}::{ACCOUNT}:{caller}")


def test_a_user_who_may_not_create_roles_is_told_so_and_conditions_are_a_note() -> None:
    check = check_rights(Simulator(user_denied=["iam:CreateRole", "ec2:CreateKeyPair"]))
    assert check.status == "missing"
    assert "may not ec2:CreateKeyPair, iam:CreateRole: ask your administrator" in check.message
    check = check_rights(Simulator(user_denied=["iam:CreateRole"], conditions=["aws:RequestedRegion"]))
    assert check.status == "note"
    assert "depends on conditions of your policies: iam:CreateRole" in check.message


def test_a_user_who_has_assumed_a_role_is_simulated_as_that_role() -> None:
    class WithPath(Simulator):
        def get_role(self, RoleName: str) -> Any:  # noqa: N803
            return {"Role": {"Arn": f"arn:aws:iam::{ACCOUNT}:role/aws-reserved/{RoleName}"}}

    simulator = WithPath()
    assert check_rights(simulator, "assumed-role/Admin/me").status == "ok"
    assert set(simulator.simulated) == {f"arn:aws:iam::{ACCOUNT}:role/aws-reserved/Admin"}


@pytest.mark.parametrize("caller", ["root", "federated-user/me"])
def test_a_caller_whom_iam_does_not_simulate_is_a_note(caller: str) -> None:
    simulator = Simulator()
    assert check_rights(simulator, caller).status == "note"
    assert simulator.simulated == []


def test_an_answer_that_is_not_awss_own_is_a_note_and_the_other_checks_go_on(aws: Any) -> None:
    class Proxied(AWS):
        def __call__(self, service: str) -> Any:
            client = super().__call__(service)
            if service == "s3":
                client.head_bucket = answer_html
            return client

    class HtmlSimulator(Simulator):
        def simulate_principal_policy(self, **_: Any) -> Any:
            answer_html()

        simulate_custom_policy = simulate_principal_policy

    def answer_html(**_: Any) -> None:
        raise ResponseParserError("Unable to parse response: <html>\n<title>Please log in</title>")

    checks = check_aws(Proxied(HtmlSimulator()))
    for name in ("bucket", "your rights", HEAD_ROLE):
        assert checks[name].status == "note"
        assert checks[name].message.endswith("Unable to parse response: <html>")
    assert checks["start l4"].status == "ok"


def test_without_the_right_to_simulate_permissions_are_a_note_and_the_other_checks_go_on(aws: Any) -> None:
    class Denied(Simulator):
        def simulate_principal_policy(self, **_: Any) -> Any:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SimulatePrincipalPolicy")

        simulate_custom_policy = simulate_principal_policy

    checks = check_aws(AWS(Denied()))
    assert {checks[name].status for name in ("your rights", HEAD_ROLE)} == {"note"}
    assert checks["start l4"].status == "ok"


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("UnauthorizedOperation", "No. Encoded authorization failure message: abc", "--encoded-message abc"),
        ("UnauthorizedOperation", "No.", "ask your administrator for ec2:RunInstances"),
        ("InvalidBlockDeviceMapping", "too small", "too small; the cloud rejects the node_config of this type"),
        ("VcpuLimitExceeded", "limit of 0", "limit of 0; the account's quota is used up"),
        ("PendingVerification", "wait", "wait; see /tmp/ray"),
    ],
)
def test_a_machine_that_ec2_would_not_start_is_reported_without_starting_it(
    aws: Any, monkeypatch: pytest.MonkeyPatch, code: str, message: str, expected: str
) -> None:
    make_api_call = BaseClient._make_api_call

    def call(client: Any, operation: str, arguments: Any) -> Any:
        if operation == "RunInstances":
            assert arguments["DryRun"] is True
            if "InstanceMarketOptions" in arguments:
                raise ClientError({"Error": {"Code": code, "Message": message}}, operation)
        return make_api_call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    checks = check_aws()
    assert {name: checks[name].status for name in checks if name.startswith("start ")} == {
        "start head": "ok",
        "start l4": "missing",
        "start a10g": "missing",
        "start l4_on_demand": "ok",
    }
    assert expected in checks["start l4"].message
    assert boto3.client("ec2", REGION).describe_instances()["Reservations"] == []


def test_an_unknown_image_is_reported_with_the_command_that_lists_others(aws: Any) -> None:
    check = check_aws(image="Windows 95")["image"]
    assert check.status == "missing"
    assert "aws ec2 describe-images --owners amazon" in check.message


def test_without_credentials_only_that_is_reported(aws: Any) -> None:
    def denied(service: str) -> Any:
        raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "expired"}}, "GetCallerIdentity")

    checks = check_aws(denied)
    assert list(checks) == ["credentials"]
    assert "aws configure" in checks["credentials"].message


def test_a_check_that_aws_denies_is_a_note(aws: Any) -> None:
    class Denied(AWS):
        def get_service_quota(self, ServiceCode: str, QuotaCode: str) -> Any:  # noqa: N803
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetServiceQuota")

    assert check_aws(Denied())["quota spot G/VT"].status == "note"


# --- the tunnel ----------------------------------------------------------------------------------------------------


def test_mlflow_is_opened_through_rays_tunnel_if_the_port_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.cluster import tracking_server

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(tracking_server, "PORT", listener.getsockname()[1])
        with pytest.raises(ValueError, match="is in use on this machine"):
            commands.ui(CLUSTER_FILE)
    called: list[Any] = []
    monkeypatch.setattr(
        commands.subprocess, "run", lambda command, **_: called.append(command) or Completed(command, 0)
    )
    assert commands.ui(CLUSTER_FILE) == 0
    port = str(tracking_server.PORT)
    assert f"http://localhost:{port}/" in capsys.readouterr().out
    assert called[0][3:] == ["dashboard", "--port", port, "--remote-port", port, str(CLUSTER_FILE)]
