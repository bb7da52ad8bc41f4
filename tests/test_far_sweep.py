"""Sweeps whose photos and whose storage are in an object store: a stand-in for S3 on this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweep_commands import (
    Command,
    SweepFolder,
    install_observer,
    only_sweep,
    run,
    started_epochs,
    without_timings,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def flags(weights_of: Callable[[str], Path]) -> tuple[object, ...]:
    return (
        *("--backbone", "test_resnet", "--weights", weights_of("test_resnet"), "--image-size", 32, "--no-advise"),
        *("--strategies", "naive,linear_probe,train_last", "--sampler", "random", "--scheduler", "none"),
        *("--trials", 4, "--epochs", 3, "--finalists", 1, "--seeds", 1, "--name", "colours"),
    )


@pytest.fixture
def photos(bucket: str, image_folder: Path) -> str:
    """The address of the pictures in the bucket."""
    from xfer.storage.object_store import as_path, write_bytes

    for path in image_folder.rglob("*.*"):
        write_bytes(as_path(bucket) / "colours" / str(path.relative_to(image_folder)), path.read_bytes())
    return f"{bucket}/colours"


def fetched(bucket: str, folder: Path) -> SweepFolder:
    """What a sweep has left in the bucket."""
    from xfer.storage.object_store import as_path

    root = as_path(f"{bucket}/runs")
    for path in root.rglob("*"):
        if path.is_file():
            here = folder / str(path).removeprefix(f"{root}/")
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_bytes(path.read_bytes())
    return only_sweep(folder)


def test_a_sweep_in_a_bucket_equals_one_in_a_folder(
    bucket: str, photos: str, image_folder: Path, flags: tuple[object, ...], tmp_path: Path
) -> None:
    near = run("folder", (*flags, "--data", image_folder, "--storage", tmp_path / "near"), tmp_path, cwd=tmp_path)
    far = run("folder", (*flags, "--data", photos, "--storage", f"{bucket}/runs"), tmp_path, cwd=tmp_path)
    assert (near.status, far.status) == (0, 0), far.err
    assert f"kept     {bucket}/runs/colours/report" in far.out
    here, there = only_sweep(tmp_path / "near"), fetched(bucket, tmp_path / "far")
    assert there.trials() == here.trials()
    assert len(here.trials("search")) == 4
    assert len(here.trials("final")) == 1
    for name, record in here.records().items():
        assert without_timings(there.records()[name]) == without_timings(record)
        of_epochs = [[path.name[:10] for path in left.checkpoints(name)] for left in (here, there)]
        assert of_epochs[0] == of_epochs[1]  # behind the epoch stands a hash, of times too
    kept = {str(path.relative_to(there.folder)) for path in there.folder.rglob("*") if path.is_file()}
    assert {"report/report.html", "report/ranking.csv", "study.sqlite3", "logs/driver.log"} <= kept
    assert "lease.json" not in kept
    from xfer.storage import local_cache, object_store

    checkpoints = object_store.as_path(f"{bucket}/runs/colours/trials/0000/checkpoints")
    mine = local_cache.pull(checkpoints)
    assert list(mine.parent.iterdir()) == [mine], "what ended processes had pulled is still there"
    assert object_store.list_names(checkpoints) == sorted(path.name for path in mine.iterdir())


def test_another_machine_goes_on_where_one_was_lost(
    bucket: str, photos: str, flags: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is lost with its disk: the bucket is all that is left."""
    from xfer.storage.object_store import as_path

    seen, given = install_observer(tmp_path / "seen"), (*flags, "--data", photos, "--storage", f"{bucket}/runs")
    first = Command("folder", given, tmp_path, seen, tmp_path, seconds_per_epoch=1.0)
    trials = as_path(f"{bucket}/runs/colours/trials")
    first.wait_until(lambda: list(trials.glob("*/epochs/0001.json")), "an epoch in the bucket")
    first.signal(signal.SIGKILL)
    first.clear()
    before = {str(path): path.read_bytes() for path in trials.glob("*/epochs/*.json")}
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "another machine"))
    lease = as_path(f"{bucket}/runs/colours/lease.json")
    lease.unlink()  # else it would be a minute until it has expired, were this really another machine
    second = Command("folder", given, tmp_path, install_observer(tmp_path / "again"), tmp_path).end()
    assert second.status == 0, second.err
    left = fetched(bucket, tmp_path / "far")
    assert all(as_path(path).read_bytes() == content for path, content in before.items())
    assert {record["status"] for record in left.records().values()} == {"finished"}
    again = {(each.trial, each.epoch) for each in started_epochs(tmp_path / "again")}
    known = {(path.split("/")[-3], int(path.split("/")[-1][:4])) for path in before}
    assert again
    assert not again & known, "an epoch that the bucket had was trained again"
