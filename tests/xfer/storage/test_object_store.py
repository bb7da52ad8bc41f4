"""File operations work alike on local folders and in an object store, which is retried when it fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from xfer.storage import local_cache, object_store
from xfer.storage.object_store import as_path


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A local folder, and one in a bucket."""
    return tmp_path / "runs" if request.param == "local" else as_path(f"{request.getfixturevalue('bucket')}/runs")


def test_a_uri_is_a_folder_or_has_a_scheme_that_fsspec_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # gs:// would look for Google Cloud's metadata server for seconds
    assert as_path("runs") == Path("runs")
    assert as_path("file:///shared/runs") == Path("/shared/runs")
    assert str(as_path("s3://bucket/runs") / "a") == "s3://bucket/runs/a"
    remote = [object_store.is_remote(as_path(uri)) for uri in ("runs", "s3://bucket/runs", "gs://bucket/runs")]
    assert remote == [False, True, True]
    with pytest.raises(ValueError, match="unknown scheme s9://. Give a folder, s3://"):
        as_path("s9://bucket/runs")


def test_a_missing_package_for_a_scheme_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import upath

    def missing(*args: Any, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(upath, "UPath", missing)
    with pytest.raises(ValueError, match=r"a package for s3:// is missing\. pip install 'xfer\[s3\]'"):
        as_path("s3://bucket/runs")


def test_of_two_exclusive_writes_the_second_is_refused(folder: Path) -> None:
    path = folder / "a.json"
    with pytest.raises(FileNotFoundError):
        object_store.read_bytes(path)
    object_store.write_bytes(path, b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        object_store.write_bytes(path, b"second", exclusive=True)
    assert object_store.read_bytes(path) == b"first"
    object_store.write_bytes(path, b"third")
    assert object_store.read_bytes(path) == b"third"


def test_files_that_other_processes_write_are_visible_at_once(bucket: str) -> None:
    import boto3

    trials = as_path(bucket) / "trials"
    assert list(trials.glob("*.json")) == []
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="trials/0001.json", Body=b"{}")
    assert [path.name for path in trials.glob("*.json")] == ["0001.json"]


def test_a_file_is_renamed_and_a_folder_removed(folder: Path) -> None:
    with local_cache.staged_upload(folder / "model") as staging:
        staging.mkdir(parents=True, exist_ok=True)
        (staging / "a").write_bytes(b"1")
    object_store.rename(folder / "model" / "a", folder / "model" / "b")
    assert [path.name for path in (folder / "model").iterdir()] == ["b"]
    assert object_store.modified_ms(folder / "model" / "b") > 1_700_000_000_000
    object_store.remove_tree(folder / "model")
    object_store.remove_tree(folder / "model")
    assert not (folder / "model").exists()


def test_a_missing_bucket_is_reported_before_work_starts(bucket: str) -> None:
    object_store.check_writable(as_path(f"{bucket}/runs"))
    assert list(as_path(bucket).iterdir()) == []
    with pytest.raises(ValueError, match=r"cannot be written to: .*Does the bucket exist, and does this machine have"):
        object_store.check_writable(as_path(f"{bucket}-not/runs"))


@pytest.fixture
def unreliable(bucket: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[BaseException], list[float]]:
    """A file whose reads raise the errors in the first list, one per read, and the delays between attempts."""
    path, errors, delays = as_path(f"{bucket}/a.json"), list[BaseException](), list[float]()
    object_store.write_bytes(path, b"1")
    cat_file = path.fs.cat_file

    def read(*args: Any, **options: Any) -> bytes:
        if errors:
            raise errors.pop(0)
        return bytes(cat_file(*args, **options))

    monkeypatch.setattr(path.fs, "cat_file", read)
    monkeypatch.setattr(time, "sleep", delays.append)
    return path, errors, delays


def test_a_failed_request_is_logged_and_retried_until_it_succeeds(
    unreliable: tuple[Path, list[BaseException], list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    path, errors, delays = unreliable
    errors += [OSError(121, "remote I/O"), PermissionError("expired")]
    assert object_store.read_bytes(path) == b"1"
    assert delays == list(object_store.RETRY_DELAYS[:2])
    assert [record.getMessage() for record in caplog.records if record.name == "xfer.storage.object_store"] == [
        f"{path}: OSError: [Errno 121] remote I/O; retrying in 1 s",
        f"{path}: PermissionError: expired; retrying in 2 s",
    ]


def test_a_store_that_fails_for_two_minutes_is_reported(
    unreliable: tuple[Path, list[BaseException], list[float]],
) -> None:
    path, errors, delays = unreliable
    errors += [ConnectionError("no route")] * 100
    message = r"a\.json could not be reached: ConnectionError: no route"
    with pytest.raises(object_store.StorageUnavailableError, match=message):
        object_store.read_bytes(path)
    assert delays == list(object_store.RETRY_DELAYS)
    assert sum(delays) > 120


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError, NotADirectoryError, KeyboardInterrupt])
def test_answers_and_interrupts_are_not_retried(
    unreliable: tuple[Path, list[BaseException], list[float]], error: type[BaseException]
) -> None:
    path, errors, delays = unreliable
    errors.append(error())
    with pytest.raises(error):
        object_store.read_bytes(path)
    assert delays == []


def test_names_with_special_characters_are_listed(folder: Path) -> None:
    assert object_store.list_names(folder / "a[1] %é") == []
    for name in ("b", "a"):
        with local_cache.staged_upload(folder / "a[1] %é" / name) as staging:
            staging.mkdir(parents=True, exist_ok=True)
            (staging / "x").write_bytes(b"1")
    assert object_store.list_names(folder / "a[1] %é") == ["a", "b"]
    assert object_store.list_names(folder / "a[1] %é" / "a") == ["x"]
    assert object_store.exists(folder / "a[1] %é" / "a" / "x")
    object_store.unlink(folder / "a[1] %é" / "a" / "x")
    object_store.unlink(folder / "a[1] %é" / "a" / "x")
    assert not object_store.exists(folder / "a[1] %é" / "a" / "x")
