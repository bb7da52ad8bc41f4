"""What `python -m sweeps.cluster` says before it starts anything; where something is missing it starts nothing."""

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
from sweeps.cluster.account import run_aws_checks
from sweeps.cluster.preflight import CheckResult, run_checks
from sweeps.cluster.settings import parse_settings
from tests.cluster.mock_aws import BUCKET, CLUSTER_FILE, REGION, ROOT, filled_cluster_config, mock_aws_account


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The project's folder, an empty home, and an address that needs no network."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(preflight, "_address", lambda _: CheckResult("address", "ok", "is yours"))
    monkeypatch.setattr("sweeps.cluster.account.make_client_factory", lambda _: AWS())
    monkeypatch.setattr(preflight.shutil, "which", lambda name: name)


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Any]:
    """S3 in an account with a private bucket in the right region."""
    with mock_aws_account(tmp_path):
        s3 = boto3.client("s3", REGION)
        s3.create_bucket(Bucket=BUCKET)
        s3.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=dict.fromkeys(PRIVATE, True))
        yield s3


PRIVATE = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


class AWS:
    """Clients of a stand-in, in which quotas are what a test says: 64 virtual CPUs unless it says otherwise."""

    def __init__(self, **quotas: float) -> None:
        self.quotas = quotas

    def __call__(self, service: str) -> Any:
        return self if service == "service-quotas" else boto3.client(service, region_name=REGION)

    def get_service_quota(self, ServiceCode: str, QuotaCode: str) -> Any:  # noqa: N803
        assert ServiceCode == "ec2"
        return {"Quota": {"Value": self.quotas.get(QuotaCode.replace("-", "_"), 64.0)}}


def asked(clients: Any = None, **provider: Any) -> dict[str, CheckResult]:
    config = filled_cluster_config(**provider)
    return {check.name: check for check in run_aws_checks(config, parse_settings(config), clients or AWS())}


def write(tmp_path: Path, config: dict[str, Any]) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def a_token(home: Path) -> Path:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a token")
    token.chmod(0o600)
    return token


def missing(looked: Any) -> dict[str, str]:
    return {check.name: check.said for check in looked if check.status == "missing"}


# --- on this machine -----------------------------------------------------------------------------------------------


def test_of_the_file_as_it_is_shipped_the_three_values_and_the_token_are_missing() -> None:
    assert missing(run_checks(CLUSTER_FILE)).keys() == {
        "token",
        "provider.region",
        "provider.ssh_from",
        "provider.bucket",
    }


def test_what_is_not_filled_in_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_token(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    assert commands.up(CLUSTER_FILE) == 1
    said = capsys.readouterr()
    assert f"missing  provider.bucket      fill it in in {CLUSTER_FILE}" in said.out
    assert "Nothing was started" in said.err


def test_a_token_that_others_can_read_or_a_key_that_is_not_there_is_said(tmp_path: Path) -> None:
    token = a_token(tmp_path)
    assert "token" not in missing(run_checks(CLUSTER_FILE))
    token.chmod(0o644)
    config = filled_cluster_config(bucket="FILL-IN")
    config["auth"]["ssh_private_key"] = "~/.ssh/mine.pem"
    said = missing(run_checks(write(tmp_path, config)))
    assert said["token"] == f"others on this machine can read it: chmod 600 {token}"
    assert said["key"] == "auth.ssh_private_key names ~/.ssh/mine.pem, which does not exist"
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/mine.pem").touch(mode=0o600)
    token.unlink()
    said = missing(run_checks(write(tmp_path, config)))
    assert said["token"] == f"ray get-auth-token --generate > /dev/null && chmod 600 {token}"
    assert "key" not in said


def test_programs_that_ray_calls_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None if name == "rsync" else name)
    assert missing(run_checks(CLUSTER_FILE))["programs"] == "install rsync: Ray sets machines up with them"


def test_a_file_that_ray_does_not_take_or_that_brings_nothing_along_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = filled_cluster_config(region="FILL-IN")
    config["max_worker"] = 3
    del config["file_mounts"]["~/.ray/auth_token"]
    monkeypatch.chdir(tmp_path)
    said = missing(run_checks(write(tmp_path, config)))
    assert "'max_worker' was unexpected" in said["file"]
    assert said["files"].endswith("give the command in the project's folder")
    assert "file_mounts must bring ~/.ray/auth_token" in said["token"]


def test_files_of_other_clouds_are_looked_at_too_and_kubernetes_has_its_own_tool() -> None:
    said = missing(run_checks(ROOT / "clusters" / "gcp.yaml"))
    assert {"provider.project_id", "setup_commands.0", "head_start_ray_commands.1"} <= said.keys()
    assert {"provider.head_ip", "auth.ssh_user"} <= missing(run_checks(ROOT / "clusters" / "on_premises.yaml")).keys()
    with pytest.raises(ValueError, match=r"kubectl apply -f clusters/kubernetes\.yaml"):
        list(run_checks(Path("clusters/kubernetes.yaml")))
    with pytest.raises(ValueError, match="there is no file nowhere"):
        list(run_checks(Path("nowhere.yaml")))
    with pytest.raises(ValueError, match=r"Makefile cannot be read"):
        list(run_checks(Path("Makefile")))


def test_another_address_than_ones_own_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    settings = parse_settings(filled_cluster_config())
    for own, status in ("203.0.113.7", "ok"), ("198.51.100.1", "note"), ("<html>", "note"):
        monkeypatch.setattr(preflight, "urlopen", lambda *_, own=own, **__: Answer(own))
        assert preflight._address(settings).status == status


class Answer:
    def __init__(self, said: str) -> None:
        self.said = said

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> bytes:
        return self.said.encode()


# --- at AWS --------------------------------------------------------------------------------------------------------


def test_where_all_is_in_place_nothing_is_missing_and_ray_up_is_called(
    aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_token(tmp_path)
    called: list[Any] = []
    monkeypatch.setattr(
        commands.subprocess, "run", lambda command, **said: called.append((command, said)) or Ended(command, 0)
    )
    file = write(tmp_path, filled_cluster_config())
    assert commands.up(file) == 0
    said = capsys.readouterr().out
    assert "missing" not in said
    assert f"{BUCKET} is in {REGION} and private" in said
    assert "quota spot           64 virtual CPUs of G and VT: 8 machines at a time" in said
    assert "spot g6.2xlarge" in said
    [(command, options)] = called
    assert command[1:] == ["-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", str(file)]
    assert options["env"]["RAY_UP_enable_autoscaler_v2"] == "1"
    assert options["env"]["RAY_USAGE_STATS_ENABLED"] == "0"


Ended = subprocess.CompletedProcess


def test_a_bucket_that_is_not_there_elsewhere_or_not_private_is_said(aws: Any) -> None:
    assert asked(bucket="nobodys")["bucket"].said == f"nobodys does not exist: aws s3 mb s3://nobodys --region {REGION}"
    aws.create_bucket(Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert "far is in eu-west-1, the cluster in us-east-1" in asked(bucket="far")["bucket"].said
    aws.delete_public_access_block(Bucket=BUCKET)
    check = asked()["bucket"]
    assert check.status == "missing"
    assert f"aws s3api put-public-access-block --bucket {BUCKET}" in check.said


def test_a_quota_without_room_for_one_machine_is_missing_and_a_tight_one_a_note(aws: Any) -> None:
    said = asked(AWS(L_3819A6DF=0.0, L_1216C47A=2.0))
    assert said["quota spot"].status == said["quota on demand"].status == "missing"
    assert "--quota-code L-3819A6DF --desired-value 64" in said["quota spot"].said
    said = asked(AWS(L_3819A6DF=24.0))
    assert said["quota spot"].status == "note"
    assert "3 machines at a time, not max_workers 8" in said["quota spot"].said


def test_an_image_that_is_unknown_here_is_said_with_how_to_find_another(aws: Any) -> None:
    check = asked(image="Windows 95")["image"]
    assert check.status == "missing"
    assert "aws ec2 describe-images --owners amazon" in check.said


def test_without_credentials_only_that_is_said(aws: Any) -> None:
    def refused(service: str) -> Any:
        raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "expired"}}, "GetCallerIdentity")

    said = asked(refused)
    assert list(said) == ["credentials"]
    assert "aws configure" in said["credentials"].said


def test_what_one_may_not_ask_is_a_note(aws: Any) -> None:
    class Denied(AWS):
        def get_service_quota(self, ServiceCode: str, QuotaCode: str) -> Any:  # noqa: N803
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetServiceQuota")

    assert asked(Denied())["quota spot"].status == "note"


# --- the tunnel ----------------------------------------------------------------------------------------------------


def test_the_cluster_s_mlflow_is_opened_through_ray_s_tunnel_if_the_port_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.cluster import tracking_server

    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(tracking_server, "PORT", taken.getsockname()[1])
        with pytest.raises(ValueError, match="is taken on this machine"):
            commands.ui(CLUSTER_FILE)
    called: list[Any] = []
    monkeypatch.setattr(commands.subprocess, "run", lambda command, **_: called.append(command) or Ended(command, 0))
    assert commands.ui(CLUSTER_FILE) == 0
    port = str(tracking_server.PORT)
    assert f"http://localhost:{port}/" in capsys.readouterr().out
    assert called[0][3:] == ["dashboard", "--port", port, "--remote-port", port, str(CLUSTER_FILE)]
