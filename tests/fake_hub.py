"""A fake of the Hugging Face hub: serves folders to the `datasets` library, and files of models to its client.

    with serve(folder) as hub:      # folder/<owner>/<name>/README.md, data/train-00000-of-00001.parquet, ...
        env = hub.environment(home) # for a new process: `datasets` reads it once, at import

Every repository has one state. A branch resolves to COMMIT, and any other commit is accepted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"

ROUTES = {
    "info": r"/api/datasets/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?",
    "tree": r"/api/datasets/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.*))?",
    "file": r"(/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.*)",
}


@dataclass
class Hub:
    """A running fake."""

    url: str
    requests: list[str] = field(default_factory=list)
    """Every request so far, as `METHOD /path`."""
    unavailable: set[str] = field(default_factory=set)
    """Names of existing files whose download fails."""

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a process that uses this hub and keeps its cache in `home`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return {**inherited, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}

    def use_in_process(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let the client of this process, which read its settings at import, use this hub and this cache folder."""
        from huggingface_hub import constants

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve the repositories in `folder` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.folder, server.hub = folder, hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hub, folder = self.server.hub, self.server.folder  # type: ignore[attr-defined]
        path, self.commit = unquote(urlsplit(self.path).path), COMMIT
        hub.requests.append(f"{self.command} {path}")
        for name, route in ROUTES.items():
            match = re.fullmatch(route, path)
            if match and (folder / match["repo"]).is_dir():
                self.repo, self.root = match["repo"], folder / match["repo"]
                if re.fullmatch("[0-9a-f]{40}", match["revision"] or ""):
                    self.commit = match["revision"]
                getattr(self, name)(match.groupdict().get("path") or "")
                return
        self.missing("RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def info(self, _: str) -> None:
        files = [{"rfilename": _name(path, self.root)} for path in _files(self.root)]
        metadata = {"id": self.repo, "sha": self.commit, "private": False, "disabled": False, "gated": False}
        self.send(
            {**metadata, "lastModified": "2026-01-01T00:00:00.000Z", "tags": [], "downloads": 0, "siblings": files}
        )

    def tree(self, path: str) -> None:
        top = self.root / path
        if not top.is_dir():
            return self.missing("EntryNotFound")
        paths = top.rglob("*") if "recursive=true" in self.path.lower() else top.iterdir()
        return self.send([self.entry(path) for path in sorted(paths)])

    def file(self, path: str) -> None:
        if not (self.root / path).is_file():
            return self.missing("EntryNotFound")
        if Path(path).name in self.server.hub.unavailable and self.command == "GET":  # type: ignore[attr-defined]
            return self.send({"error": "not now"}, status=403)
        content = (self.root / path).read_bytes()
        return self.send_bytes(content, {"ETag": f'"{_digest(content)}"'})

    def entry(self, path: Path) -> dict[str, Any]:
        name = _name(path, self.root)
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": self.commit, "size": 0}
        return {"type": "file", "path": name, "oid": _digest(path.read_bytes()), "size": path.stat().st_size}

    def missing(self, code: str) -> None:
        self.send({"error": code}, status=404, headers={"X-Error-Code": code})

    def send(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def send_bytes(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": self.commit, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing; `Hub.requests` has all requests."""


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
