"""MLflow on the head of a cluster runs in the background, for its own machine only, with most features disabled."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.cluster.tracking_server import start_tracking_server
from sweeps.engine.tracking.server import is_listening


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answer(port: int, path: str, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A mock S3 with a bucket `results`, for this process and its children."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_port())
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="results")
    yield s3
    server.stop()


@pytest.mark.slow
def test_it_answers_only_for_its_own_machine_keeps_files_in_the_bucket_and_is_started_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], bucket: Any
) -> None:
    import mlflow

    port = free_port()
    server = start_tracking_server("s3://results/mlartifacts", tmp_path / "mlflow", port=port)
    assert server is not None
    try:
        assert f"http://127.0.0.1:{port}" in capfd.readouterr().out
        assert os.getsid(server.pid) == server.pid  # it outlives the connection that started it
        assert answer(port, "/", f"localhost:{port}") == answer(port, "/", f"127.0.0.1:{port}") == 200
        assert answer(port, "/", "evil.example") == answer(port, "/", f"10.evil.example:{port}") == 403
        for other in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}:
            if other != "127.0.0.1":
                with pytest.raises(OSError, match="refused"):
                    socket.create_connection((other, port), timeout=5)
        assert start_tracking_server("ignored", tmp_path / "ignored", port=port) is None
        client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
        run = client.create_run("0").info.run_id
        (tmp_path / "report.md").write_text("found")
        client.log_artifact(run, str(tmp_path / "report.md"))
        [kept] = bucket.list_objects_v2(Bucket="results")["Contents"]
        assert kept["Key"] == f"mlartifacts/0/{run}/artifacts/report.md"
        assert (tmp_path / "mlflow" / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_an_error_about_a_server_that_exits_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match=r"MLflow did not answer at http://127\.0\.0\.1:\d+\. The end of its log"):
        start_tracking_server("s3://bucket/mlartifacts", tmp_path, port=free_port())


def test_postgres_without_its_driver_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="psycopg2"):
        start_tracking_server("s3://bucket/mlartifacts", tmp_path, "postgresql://host/mlflow", free_port())
    assert not is_listening(free_port())
