"""Where the scenarios' sweeps keep their results, the sweep as a job, and what MLflow knows of it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.lab.cloud import PRIVATE, ROUTER
from tests.cluster.lab.cluster import FAST_RAY_SETTINGS, Cluster
from tests.cluster.lab.laboratory import Background, Laboratory, wait_until
from tests.sweep_commands import SweepFolder, only_sweep

SWEEP_FLAGS = [
    *("--backbone", "mobilenetv2_100", "--image-size", "64", "--strategies", "naive", "--no-advise"),
    *("--vary", "learning_rate=1e-3,3e-3,1e-2", "--vary", "batch_size=8,16", "--fix", "optimizer=sgd"),
    *("--fix", "schedule=cosine", "--fix", "augmentation=flip", "--fix", "mixing=none", "--fix", "loss=cross_entropy"),
    *("--fix", "weight_decay=1e-4", "--fix", "clip_norm=1.0", "--sampler", "grid", "--scheduler", "none"),
    *("--trials", "6", "--epochs", "3", "--finalists", "1", "--seeds", "1", "--cpus-per-trial", "1", "--name", "ants"),
]
"""Six trials of three epochs, a few seconds each, and one final. What each comes to is settled before it starts."""
TRIALS = 6
FINALS = 1
EPOCHS = 3

BUCKET = "s3://results"
OBJECT_STORE_URL = f"http://{PRIVATE}.{ROUTER}:9000"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "lab", "AWS_SECRET_ACCESS_KEY": "lab", "AWS_DEFAULT_REGION": "us-east-1"}
"""What a machine on AWS has from its instance profile."""


@dataclass(frozen=True)
class Scenario:
    """A laboratory with a cluster file, photos where the cluster finds them, and a place for results."""

    lab: Laboratory
    cluster: Cluster
    folder: Path
    kind: str
    """`folder`: shared by all machines, as by NFS; `s3`: a bucket."""
    data: str
    weights: str

    @property
    def notes(self) -> Path:
        """The folder of image/sitecustomize.py."""
        return self.folder / "notes"

    def begun(self) -> list[tuple[str, int, str]]:
        """Every epoch that was begun, in that order: trial, epoch, host."""
        words = [path.read_text().split() for path in sorted(self.notes.glob("begun-*"))]
        return [(trial, int(epoch), host) for trial, epoch, host in words]

    def hold(self, trial: str, epoch: int) -> None:
        """Let this trial and those after it wait before this epoch."""
        (self.notes / "hold").write_text(f"{trial} {epoch}")

    def release(self) -> None:
        """Let all go on."""
        (self.notes / "hold").unlink()

    def submit(self) -> Background:
        """The sweep, as a job."""
        flags = [*SWEEP_FLAGS, "--data", self.data, "--weights", self.weights, "--reports", "/tmp/reports"]
        return self.cluster.submit(f"python -m sweeps.folder {shlex.join(flags)}")

    def wait_for_trials(self, epoch: int, count: int, job: Background) -> dict[str, str]:
        """Wait until so many trials wait before an epoch; their hosts, by trial."""

        def found() -> dict[str, str]:
            assert job.is_running(), job.out
            there = {trial: host for trial, number, host in self.begun() if number == epoch}
            return there if len(there) >= count else {}

        what = f"{count} trials waited before epoch {epoch}"
        hosts: dict[str, str] = wait_until(found, what, lambda: job.out + self.cluster.explain())
        return hosts

    def results(self) -> SweepFolder:
        """The sweep's folder, brought to this machine where it is in a bucket."""
        runs = self.folder / "shared" / "runs"
        if self.kind == "s3":
            shutil.rmtree(runs, ignore_errors=True)
            self.lab.run(None, _python(DOWNLOAD_SCRIPT, str(runs)))
        return only_sweep(runs)


@contextmanager
def open_scenario(kind: str, folder: Path, photos: Path, pretrained: Path, **settings: Any) -> Iterator[Scenario]:
    """Lay all out and, whatever happens, clear it away.

    Args:
        kind: see `Scenario`.
        folder: a new one.
        photos: a folder of them.
        pretrained: the file of weights.
        settings: see `shipped.on_the_lab`.
    """
    shared, notes, room = folder / "shared", folder / "notes", folder / "lab"
    for each in (shared, notes, room):
        each.mkdir()
    exports = {"LAB_NOTES": str(notes), "OMP_NUM_THREADS": "1", **FAST_RAY_SETTINGS}
    if kind == "s3":
        exports |= {"AWS_ENDPOINT_URL": OBJECT_STORE_URL, **CREDENTIALS}
    with Laboratory(room, [notes] if kind == "s3" else [notes, shared], exports=exports) as lab:
        place = BUCKET if kind == "s3" else str(shared)
        if kind == "s3":
            server = lab.start(None, f"{_bin('moto_server')} -H {PRIVATE}.{ROUTER} -p 9000")
            wait_until(lambda: "Running on" in server.out, "the object store ran", lambda: server.out)
            lab.run(None, _python(UPLOAD_SCRIPT, str(photos), str(pretrained)))
        else:
            shutil.copytree(photos, shared / "insects")
            shutil.copy(pretrained, shared)
        cluster = Cluster(lab, place, **{"resources": {"CPU": 1}, **settings})
        yield Scenario(lab, cluster, folder, kind, f"{place}/insects", f"{place}/{pretrained.name}")


S3 = """
import pathlib, sys, boto3
bucket = boto3.resource("s3").Bucket("results")
folder = pathlib.Path(sys.argv[1])
"""
UPLOAD_SCRIPT = f"""{S3}
bucket.create()
bucket.upload_file(sys.argv[2], pathlib.Path(sys.argv[2]).name)
for path in folder.rglob("*.jpg"):
    bucket.upload_file(str(path), f"insects/{{path.relative_to(folder)}}")
"""
DOWNLOAD_SCRIPT = f"""{S3}
for each in bucket.objects.filter(Prefix="runs/"):
    here = folder / each.key.removeprefix("runs/")
    here.parent.mkdir(parents=True, exist_ok=True)
    if not each.key.endswith("/"):
        bucket.download_file(each.key, str(here))
"""


def _bin(program: str) -> str:
    return f"{sys.prefix}/bin/{program}"


def _python(script: str, *arguments: str) -> str:
    variables = shlex.join(
        f"{name}={value}" for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": OBJECT_STORE_URL}.items()
    )
    return f"env {variables} {_bin('python')} -c {shlex.quote(script)} {shlex.join(arguments)}"


def mlflow_runs(cluster: Cluster, experiment: str) -> dict[str, Any]:
    """The runs of an experiment by their trials, the sweep's own as "": status, and the newest metrics with steps."""
    experiments = cluster.ask_mlflow("experiments/search", {"max_results": 100})["experiments"]
    (number,) = [each["experiment_id"] for each in experiments if each["name"] == experiment]
    runs = cluster.ask_mlflow("runs/search", {"experiment_ids": [number], "max_results": 1000})["runs"]
    found = {}
    for run in runs:
        tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
        metrics = {each["key"]: (each["step"], each["value"]) for each in run["data"].get("metrics", [])}
        name = tags.get("xfer.trial", "")
        assert name not in found, f"{name} is there twice"
        found[name] = {"status": run["info"]["status"], "metrics": metrics}
    return found
