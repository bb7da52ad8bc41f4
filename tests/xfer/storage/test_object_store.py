"""Places: what a folder on this machine can, one in an object store can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xfer.storage import local_cache, object_store
from xfer.storage.object_store import as_path


@pytest.fixture(params=["near", "far"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder here, and one in a bucket."""
    return tmp_path / "runs" if request.param == "near" else as_path(f"{request.getfixturevalue('bucket')}/runs")


def test_an_address_is_a_folder_or_what_fsspec_knows() -> None:
    assert as_path("runs") == Path("runs")
    assert as_path("file:///shared/runs") == Path("/shared/runs")
    assert str(as_path("s3://bucket/runs") / "a") == "s3://bucket/runs/a"
    assert [object_store.is_remote(as_path(each)) for each in ("runs", "s3://bucket/runs", "gs://bucket/runs")] == [
        0,
        1,
        1,
    ]
    with pytest.raises(ValueError, match="s9:// is no kind of address that is known. A folder is, or s3://"):
        as_path("s9://bucket/runs")


def test_what_is_missing_for_a_kind_of_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import upath

    def missing(*arguments: Any, **settings: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(upath, "UPath", missing)
    with pytest.raises(ValueError, match=r"a package for s3:// is missing\. pip install 'xfer\[s3\]'"):
        as_path("s3://bucket/runs")


def test_of_two_who_write_anew_one_is_refused(bucket: str) -> None:
    path = as_path(bucket) / "a.json"
    with pytest.raises(FileNotFoundError):
        object_store.read_bytes(path)
    object_store.write_bytes(path, b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        object_store.write_bytes(path, b"second", exclusive=True)
    assert object_store.read_bytes(path) == b"first"
    object_store.write_bytes(path, b"third")
    assert object_store.read_bytes(path) == b"third"


def test_what_others_write_meanwhile_is_seen(bucket: str) -> None:
    import boto3

    here = as_path(bucket) / "trials"
    assert list(here.glob("*.json")) == []
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="trials/0001.json", Body=b"{}")
    assert [path.name for path in here.glob("*.json")] == ["0001.json"]


def test_a_file_is_renamed_and_a_folder_removed(folder: Path) -> None:
    with local_cache.staged_upload(folder / "model") as here:
        here.mkdir(parents=True, exist_ok=True)
        (here / "a").write_bytes(b"1")
    object_store.rename(folder / "model" / "a", folder / "model" / "b")
    assert [path.name for path in (folder / "model").iterdir()] == ["b"]
    assert object_store.modified_ms(folder / "model" / "b") > 1_700_000_000_000
    object_store.remove_tree(folder / "model")
    object_store.remove_tree(folder / "model")
    assert not (folder / "model").exists()


def test_a_bucket_that_is_not_there_is_said_before_anything_is_done(bucket: str) -> None:
    object_store.check_writable(as_path(f"{bucket}/runs"))
    assert list(as_path(bucket).iterdir()) == []
    with pytest.raises(ValueError, match=r"cannot be written to: .*Does the bucket exist, and does this machine have"):
        object_store.check_writable(as_path(f"{bucket}-not/runs"))


def test_a_store_that_does_not_answer_is_asked_again_and_then_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waited = as_path(f"{bucket}/a.json"), []
    object_store.write_bytes(path, b"1")
    asked = iter([OSError(121, "remote I/O"), PermissionError("expired"), None])
    cat_file = object_store._fs(path).cat_file

    def hiccup(*arguments: Any, **settings: Any) -> bytes:
        if (error := next(asked)) is not None:
            raise error
        return bytes(cat_file(*arguments, **settings))

    monkeypatch.setattr(object_store.time, "sleep", waited.append)
    monkeypatch.setattr(object_store._fs(path), "cat_file", hiccup)
    assert object_store.read_bytes(path) == b"1"
    assert waited == list(object_store.RETRY_DELAYS[:2])
    asked = iter([ConnectionError("away")] * 100)
    with pytest.raises(
        object_store.StorageUnavailableError, match=r"a\.json could not be reached: ConnectionError: away"
    ):
        object_store.read_bytes(path)
    assert waited[2:] == list(object_store.RETRY_DELAYS)


def test_names_are_listed_whatever_is_in_them(folder: Path) -> None:
    assert object_store.list_names(folder / "a[1] %é") == []
    for name in ("b", "a"):
        with local_cache.staged_upload(folder / "a[1] %é" / name) as here:
            here.mkdir(parents=True, exist_ok=True)
            (here / "x").write_bytes(b"1")
    assert object_store.list_names(folder / "a[1] %é") == ["a", "b"]
    assert object_store.list_names(folder / "a[1] %é" / "a") == ["x"]
    assert object_store.exists(folder / "a[1] %é" / "a" / "x")
    object_store.unlink(folder / "a[1] %é" / "a" / "x")
    object_store.unlink(folder / "a[1] %é" / "a" / "x")
    assert not object_store.exists(folder / "a[1] %é" / "a" / "x")
