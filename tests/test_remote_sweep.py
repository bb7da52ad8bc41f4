"""A sweep whose photos and storage are in an object store, a local stand-in for S3."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests import interrupted_sweep
from tests.sweep_commands import (
    Command,
    SweepFolder,
    install_observer,
    only_sweep,
    started_epochs,
    without_timings,
)

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture
def photos(bucket: str, image_folder: Path) -> str:
    """The URI of the images in the bucket."""
    from xfer.storage.object_store import as_path, write_bytes

    for path in image_folder.rglob("*.*"):
        write_bytes(as_path(bucket) / "colours" / str(path.relative_to(image_folder)), path.read_bytes())
    return f"{bucket}/colours"


def download_sweep(bucket: str, folder: Path) -> SweepFolder:
    """Copy the one sweep in the bucket to `folder`."""
    from xfer.storage.object_store import as_path

    root = as_path(f"{bucket}/runs")
    for path in root.rglob("*"):
        if path.is_file():
            copy = folder / str(path).removeprefix(f"{root}/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return only_sweep(folder)


def test_a_sweep_in_a_bucket_resumes_on_another_machine_and_equals_one_in_a_folder(
    bucket: str,
    photos: str,
    image_folder: Path,
    weights: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first machine is lost with its disk, so only the bucket remains."""
    from xfer.storage import local_cache, object_store
    from xfer.storage.object_store import as_path

    flags = [*interrupted_sweep.flags(photos, weights), "--storage", f"{bucket}/runs", "--name", "colours"]
    first = Command("folder", flags, tmp_path, install_observer(tmp_path / "first"), tmp_path, seconds_per_epoch=1.0)
    trials = as_path(f"{bucket}/runs/colours/trials")
    first.wait_until(lambda: list(trials.glob("*/epochs/0001.json")), "an epoch was in the bucket")
    first.signal(signal.SIGKILL)
    first.clear()
    before = {str(path): path.read_bytes() for path in trials.glob("*/epochs/*.json")}
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "another machine"))
    as_path(f"{bucket}/runs/colours/lease.json").unlink()  # on another machine it would expire in a minute
    second = Command("folder", flags, tmp_path, install_observer(tmp_path / "second"), tmp_path).end()
    assert second.status == 0, second.err
    assert f"kept     {bucket}/runs/colours/report" in second.out

    # It resumed: nothing in the bucket was lost, rewritten or trained again.
    remote = download_sweep(bucket, tmp_path / "downloaded")
    assert all(as_path(path).read_bytes() == content for path, content in before.items())
    assert {record["status"] for record in remote.records().values()} == {"finished"}
    trained = {(each.trial, each.epoch) for each in started_epochs(tmp_path / "second")}
    known = {(path.split("/")[-3], int(path.split("/")[-1][:4])) for path in before}
    assert {trial for trial, _ in trained} <= set(remote.trials())
    assert trained
    assert not trained & known, "an epoch that was in the bucket was trained again"

    # It equals the same sweep in a folder, left undisturbed.
    local = interrupted_sweep.undisturbed_sweep(tmp_path_factory, image_folder, weights).sweep
    assert remote.trials() == local.trials()
    assert len(local.trials("search")) == interrupted_sweep.TRIALS
    assert len(local.trials("final")) == len(local.read("finals", "0001.json")["finalists"]) * interrupted_sweep.SEEDS
    for name, record in local.records().items():
        assert without_timings(remote.records()[name]) == without_timings(record)
        checkpoint_epochs = [[path.name[:10] for path in sweep.checkpoints(name)] for sweep in (local, remote)]
        assert checkpoint_epochs[0] == checkpoint_epochs[1]  # after the epoch stands a hash, of timings too

    # Reports, study and logs are in the bucket; no lease and no stale copy of a checkpoint remains.
    files = {str(path.relative_to(remote.folder)) for path in remote.folder.rglob("*") if path.is_file()}
    assert {"report/report.html", "report/ranking.csv", "study.sqlite3", "logs/driver.log"} <= files
    assert "lease.json" not in files
    finalist, *_ = remote.read("finals", "0001.json")["finalists"]
    checkpoints = as_path(f"{bucket}/runs/colours/trials/{finalist}/checkpoints")
    copy = local_cache.pull(checkpoints)
    assert list(copy.parent.iterdir()) == [copy], "copies that ended processes had pulled are still there"
    names = object_store.list_names(checkpoints)
    assert names
    assert names == sorted(path.name for path in copy.iterdir())
