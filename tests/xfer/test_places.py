"""Places: what a folder on this machine can, one in an object store can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xfer import local, places
from xfer.places import place


@pytest.fixture(params=["near", "far"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder here, and one in a bucket."""
    return tmp_path / "runs" if request.param == "near" else place(f"{request.getfixturevalue('bucket')}/runs")


def test_an_address_is_a_folder_or_what_fsspec_knows() -> None:
    assert place("runs") == Path("runs")
    assert place("file:///shared/runs") == Path("/shared/runs")
    assert str(place("s3://bucket/runs") / "a") == "s3://bucket/runs/a"
    assert [places.is_far(place(each)) for each in ("runs", "s3://bucket/runs", "gs://bucket/runs")] == [0, 1, 1]
    with pytest.raises(ValueError, match="s9:// is no kind of address that is known. A folder is, or s3://"):
        place("s9://bucket/runs")


def test_what_is_missing_for_a_kind_of_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import upath

    def missing(*arguments: Any, **settings: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(upath, "UPath", missing)
    with pytest.raises(ValueError, match=r"a package for s3:// is missing\. pip install 'xfer\[s3\]'"):
        place("s3://bucket/runs")


def test_of_two_who_write_anew_one_is_refused(bucket: str) -> None:
    path = place(bucket) / "a.json"
    with pytest.raises(FileNotFoundError):
        places.read(path)
    places.write(path, b"first", anew=True)
    with pytest.raises(FileExistsError):
        places.write(path, b"second", anew=True)
    assert places.read(path) == b"first"
    places.write(path, b"third")
    assert places.read(path) == b"third"


def test_what_others_write_meanwhile_is_seen(bucket: str) -> None:
    import boto3

    here = place(bucket) / "trials"
    assert list(here.glob("*.json")) == []
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="trials/0001.json", Body=b"{}")
    assert [path.name for path in here.glob("*.json")] == ["0001.json"]


def test_a_file_is_renamed_and_a_folder_removed(folder: Path) -> None:
    with local.written(folder / "model") as here:
        here.mkdir(parents=True, exist_ok=True)
        (here / "a").write_bytes(b"1")
    places.rename(folder / "model" / "a", folder / "model" / "b")
    assert [path.name for path in (folder / "model").iterdir()] == ["b"]
    assert places.modified_ms(folder / "model" / "b") > 1_700_000_000_000
    places.remove(folder / "model")
    places.remove(folder / "model")
    assert not (folder / "model").exists()


def test_a_bucket_that_is_not_there_is_said_before_anything_is_done(bucket: str) -> None:
    places.check_writable(place(f"{bucket}/runs"))
    assert list(place(bucket).iterdir()) == []
    with pytest.raises(ValueError, match=r"cannot be written to: .*Does the bucket exist, and does this machine have"):
        places.check_writable(place(f"{bucket}-not/runs"))


def test_a_store_that_does_not_answer_is_asked_again_and_then_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waited = place(f"{bucket}/a.json"), []
    places.write(path, b"1")
    asked = iter([OSError(121, "remote I/O"), PermissionError("expired"), None])
    cat_file = places._fs(path).cat_file

    def hiccup(*arguments: Any, **settings: Any) -> bytes:
        if (error := next(asked)) is not None:
            raise error
        return bytes(cat_file(*arguments, **settings))

    monkeypatch.setattr(places.time, "sleep", waited.append)
    monkeypatch.setattr(places._fs(path), "cat_file", hiccup)
    assert places.read(path) == b"1"
    assert waited == list(places.TRIES_WAIT[:2])
    asked = iter([ConnectionError("away")] * 100)
    with pytest.raises(places.AwayError, match=r"a\.json could not be reached: ConnectionError: away"):
        places.read(path)
    assert waited[2:] == list(places.TRIES_WAIT)


def test_names_are_listed_whatever_is_in_them(folder: Path) -> None:
    assert places.names(folder / "a[1] %é") == []
    for name in ("b", "a"):
        with local.written(folder / "a[1] %é" / name) as here:
            here.mkdir(parents=True, exist_ok=True)
            (here / "x").write_bytes(b"1")
    assert places.names(folder / "a[1] %é") == ["a", "b"]
    assert places.names(folder / "a[1] %é" / "a") == ["x"]
    assert places.exists(folder / "a[1] %é" / "a" / "x")
    places.unlink(folder / "a[1] %é" / "a" / "x")
    places.unlink(folder / "a[1] %é" / "a" / "x")
    assert not places.exists(folder / "a[1] %é" / "a" / "x")
