"""The sweep of the cluster tests: its storage, its submission as a job, and its runs in MLflow."""

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
"""Six trials of three epochs, a few seconds each, and one final. Trials do not depend on each other."""
TRIALS = 6
FINALS = 1
EPOCHS = 3

BUCKET = "s3://results"
OBJECT_STORE_URL = f"http://{PRIVATE}.{ROUTER}:9000"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "lab", "AWS_SECRET_ACCESS_KEY": "lab", "AWS_DEFAULT_REGION": "us-east-1"}
"""The credentials that a machine on AWS has from its instance profile."""


@dataclass(frozen=True)
class Scenario:
    """A laboratory with a cluster file, photos that the cluster can read, and storage for results."""

    lab: Laboratory
    cluster: Cluster
    folder: Path
    kind: str
    """`folder`: shared by all machines, as with NFS; `s3`: a bucket."""
    data: str
    weights: str

    @property
    def notes(self) -> Path:
        """The folder that image/sitecustomize.py writes to."""
        return self.folder / "notes"

    def started_epochs(self) -> list[tuple[str, int, str]]:
        """Every epoch that started, in that order: trial, epoch, host."""
        words = [path.read_text().split() for path in sorted(self.notes.glob("begun-*"))]
        return [(trial, int(epoch), host) for trial, epoch, host in words]

    def hold(self, trial: str, epoch: int) -> None:
        """Make this trial and later ones wait before this epoch."""
        (self.notes / "hold").write_text(f"{trial} {epoch}")

    def release(self) -> None:
        """Let all trials continue."""
        (self.notes / "hold").unlink()

    def submit(self) -> Background:
        """Submit the sweep as a job."""
        flags = [*SWEEP_FLAGS, "--data", self.data, "--weights", self.weights, "--reports", "/tmp/reports"]
        return self.cluster.submit(f"python -m sweeps.folder {shlex.join(flags)}")

    def wait_for_trials(self, epoch: int, count: int, job: Background) -> dict[str, str]:
        """Wait until `count` trials wait before an epoch; return their hosts by trial."""

        def waiting() -> dict[str, str]:
            assert job.is_running(), job.out
            hosts = {trial: host for trial, number, host in self.started_epochs() if number == epoch}
            return hosts if len(hosts) >= count else {}

        what = f"{count} trials waited before epoch {epoch}"
        hosts: dict[str, str] = wait_until(waiting, what, lambda: job.out + self.cluster.explain())
        return hosts

    def results(self) -> SweepFolder:
        """The sweep's folder; downloaded first if it is in a bucket."""
        runs = self.folder / "shared" / "runs"
        if self.kind == "s3":
            shutil.rmtree(runs, ignore_errors=True)
            self.lab.run(None, _python(DOWNLOAD_SCRIPT, str(runs)))
        return only_sweep(runs)


@contextmanager
def open_scenario(kind: str, folder: Path, photos: Path, pretrained: Path, **settings: Any) -> Iterator[Scenario]:
    """Set up a scenario, and remove it in any case.

    Args:
        kind: See `Scenario`.
        folder: A new folder.
        photos: Folder of photos.
        pretrained: File of pretrained weights.
        settings: Arguments of `lab_cluster_config`.
    """
    shared, notes, lab_folder = folder / "shared", folder / "notes", folder / "lab"
    for new in (shared, notes, lab_folder):
        new.mkdir()
    exports = {"LAB_NOTES": str(notes), "OMP_NUM_THREADS": "1", **FAST_RAY_SETTINGS}
    if kind == "s3":
        exports |= {"AWS_ENDPOINT_URL": OBJECT_STORE_URL, **CREDENTIALS}
    with Laboratory(lab_folder, [notes] if kind == "s3" else [notes, shared], exports=exports) as lab:
        storage = BUCKET if kind == "s3" else str(shared)
        if kind == "s3":
            server = lab.start(None, f"{_bin('moto_server')} -H {PRIVATE}.{ROUTER} -p 9000")
            wait_until(lambda: "Running on" in server.out, "the object store ran", lambda: server.out)
            lab.run(None, _python(UPLOAD_SCRIPT, str(photos), str(pretrained)))
        else:
            shutil.copytree(photos, shared / "insects")
            shutil.copy(pretrained, shared)
        cluster = Cluster(lab, storage, **{"resources": {"CPU": 1}, **settings})
        yield Scenario(lab, cluster, folder, kind, f"{storage}/insects", f"{storage}/{pretrained.name}")


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
for item in bucket.objects.filter(Prefix="runs/"):
    path = folder / item.key.removeprefix("runs/")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not item.key.endswith("/"):
        bucket.download_file(item.key, str(path))
"""


def _bin(program: str) -> str:
    return f"{sys.prefix}/bin/{program}"


def _python(script: str, *arguments: str) -> str:
    variables = shlex.join(
        f"{name}={value}" for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": OBJECT_STORE_URL}.items()
    )
    return f"env {variables} {_bin('python')} -c {shlex.quote(script)} {shlex.join(arguments)}"


def mlflow_runs(cluster: Cluster, experiment: str) -> dict[str, Any]:
    """The runs of an experiment by trial ("" for the sweep itself): status, newest step and value of each metric."""
    experiments = cluster.ask_mlflow("experiments/search", {"max_results": 100})["experiments"]
    (number,) = [each["experiment_id"] for each in experiments if each["name"] == experiment]
    runs = cluster.ask_mlflow("runs/search", {"experiment_ids": [number], "max_results": 1000})["runs"]
    by_trial = {}
    for run in runs:
        tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
        metrics = {each["key"]: (each["step"], each["value"]) for each in run["data"].get("metrics", [])}
        name = tags.get("xfer.trial", "")
        assert name not in by_trial, f"{name} exists twice"
        by_trial[name] = {"status": run["info"]["status"], "metrics": metrics}
    return by_trial
