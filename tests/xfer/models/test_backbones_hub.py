"""Weights from the hub: the real client with a local fake server, and errors without a hub."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm

from xfer.models.backbones import fetch_weights

COMMIT = "c" * 40
BOUND = 90  # seconds: the client retries for half a minute, and importing torch is slow on a busy machine
FETCH = """
import sys
from xfer.models.backbones import fetch_weights
try:
    print("path", fetch_weights(sys.argv[1]))
except ValueError as error:
    print("refused", error)
"""


@pytest.fixture
def hub():
    """A server that serves `files` (path in a repository to content) like the hub, and records the requests."""

    class Hub(BaseHTTPRequestHandler):
        files: dict = {}  # noqa: RUF012
        requests: list = []  # noqa: RUF012
        status = 200

        def respond(self, with_content):
            Hub.requests.append((self.command, self.path))
            content = Hub.files.get(self.path) if Hub.status == 200 else None
            self.send_response(200 if content is not None else 404 if Hub.status == 200 else Hub.status)
            self.send_header("X-Repo-Commit", COMMIT)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound" if Hub.status == 200 else "Broken")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if with_content:
                self.wfile.write(content or b"")

        def do_HEAD(self):
            self.respond(with_content=False)

        def do_GET(self):
            self.respond(with_content=True)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Hub
    server.shutdown()
    server.server_close()


def fetch(name, home, **environment):
    """Call `fetch_weights` in a new process, because the client reads its settings at import."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    settings = {**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = [sys.executable, "-c", FETCH, name]
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=BOUND + 30, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().split(" ", 1)


REPOSITORY = "/timm/test_resnet.r160_in1k/resolve/main"


@pytest.mark.slow
def test_weights_are_downloaded_once_and_then_read_from_the_cache(hub, weights, tmp_path):
    hub.files[f"{REPOSITORY}/model.safetensors"] = weights.read_bytes()
    kind, path = fetch("test_resnet", tmp_path, HF_ENDPOINT=hub.url)
    assert kind == "path"
    with open(path, "rb") as file:  # noqa: PTH123
        assert file.read() == weights.read_bytes()
    assert path.startswith(str(tmp_path))
    downloads = [request for request in hub.requests if request[0] == "GET"]
    assert len(downloads) == 1
    assert fetch("test_resnet.r160_in1k", tmp_path, HF_ENDPOINT=hub.url) == ["path", path]
    assert [request for request in hub.requests if request[0] == "GET"] == downloads
    assert fetch("test_resnet", tmp_path, HF_HUB_OFFLINE="1") == ["path", path], "cached weights need no network"


@pytest.mark.slow
def test_without_a_safetensors_file_the_other_format_is_downloaded(hub, tmp_path):
    hub.files[f"{REPOSITORY}/pytorch_model.bin"] = b"some state dict"
    kind, path = fetch("test_resnet", tmp_path, HF_ENDPOINT=hub.url)
    assert kind == "path"
    assert path.endswith("pytorch_model.bin")


@pytest.mark.slow
@pytest.mark.parametrize(
    "status",
    [
        pytest.param(200, id="no such file"),
        pytest.param(403, id="forbidden"),
        pytest.param(500, id="server error", marks=pytest.mark.nightly),  # the client retries for half a minute
    ],
)
def test_a_failed_download_is_reported_in_bounded_time(hub, tmp_path, status):
    hub.status = status
    start = time.monotonic()
    kind, message = fetch("test_resnet", tmp_path, HF_ENDPOINT=hub.url)
    assert kind == "refused"
    assert message.startswith("the weights of test_resnet could not be downloaded from the hub")
    assert hub.requests
    assert time.monotonic() - start < BOUND


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="offline mode"),
        # The client retries for half a minute.
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, id="no server", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.slow
def test_without_a_hub_a_local_file_is_suggested_in_bounded_time(tmp_path, environment):
    start = time.monotonic()
    kind, message = fetch("test_resnet", tmp_path, **environment)
    assert kind == "refused"
    assert "could not be downloaded from the hub (timm/test_resnet.r160_in1k)" in message
    assert message.endswith("Without a network, give a local file with --weights FILE")
    assert time.monotonic() - start < BOUND


def test_a_network_without_weights_is_refused_without_a_request(monkeypatch):
    def download(*args, **options):
        raise AssertionError("a request was sent")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    name = next(name for name in timm.list_models("resnet*") if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(
        ValueError, match=f"timm knows no pretrained weights for {name}: give a file with --weights FILE"
    ):
        fetch_weights(name)
