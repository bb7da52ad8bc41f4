"""`python -m sweeps.cluster` checks everything first, and starts nothing if something is missing."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from sweeps.cluster import __main__ as commands
from sweeps.cluster import preflight
from sweeps.cluster.aws_checks import run_aws_checks
from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.preflight import check_public_address, run_checks
from sweeps.cluster.settings import parse_settings
from tests.cluster.mock_aws import BUCKET, CLUSTER_FILE, REGION, ROOT, filled_cluster_config, mock_aws_account


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
    """Client factory of the mock account, with a fake service for quotas, which default to 64 virtual CPUs."""

    def __init__(self, **quotas: float) -> None:
        self.quotas = quotas

    def __call__(self, service: str) -> Any:
        return self if service == "service-quotas" else boto3.client(service, region_name=REGION)

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
    assert f"missing  provider.bucket      fill it in in {CLUSTER_FILE}" in printed.out
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
    assert {"provider.project_id", "setup_commands.0", "head_start_ray_commands.1"} <= gcp.keys()
    assert {"provider.head_ip", "auth.ssh_user"} <= missing(run_checks(ROOT / "clusters" / "on_premises.yaml")).keys()
    with pytest.raises(ValueError, match=r"kubectl apply -f clusters/kubernetes\.yaml"):
        list(run_checks(Path("clusters/kubernetes.yaml")))
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
    assert "quota spot           64 virtual CPUs of G and VT: 8 machines at a time" in printed
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
    checks = check_aws(AWS(L_3819A6DF=0.0, L_1216C47A=2.0))
    assert checks["quota spot"].status == checks["quota on demand"].status == "missing"
    assert "--quota-code L-3819A6DF --desired-value 64" in checks["quota spot"].message
    checks = check_aws(AWS(L_3819A6DF=24.0))
    assert checks["quota spot"].status == "note"
    assert "3 machines at a time, not max_workers 8" in checks["quota spot"].message


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

    assert check_aws(Denied())["quota spot"].status == "note"


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
