"""Local copies of remote files: downloaded once per machine, complete, and uploaded for other machines."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from xfer.storage import local_cache, object_store
from xfer.storage.object_store import as_path


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A local folder, and one in a bucket."""
    return tmp_path / "runs" if request.param == "local" else as_path(f"{request.getfixturevalue('bucket')}/runs")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files downloaded since the test began or cleared the list."""
    names: list[str] = []
    download = object_store.download

    def record(file: Path, to: Path) -> None:
        names.append(file.name)
        download(file, to)

    monkeypatch.setattr(object_store, "download", record)
    return names


def test_concurrent_callers_download_an_immutable_folder_once(
    bucket: str, tmp_path: Path, downloads: list[str]
) -> None:
    pack, remote = tmp_path / "pack", as_path(f"{bucket}/packs/ab")
    pack.mkdir()
    (pack / "images.npy").write_bytes(b"pixels")
    (pack / "pack.json").write_bytes(b"{}")
    with pytest.raises(FileNotFoundError, match=r"has no pack\.json"):
        local_cache.fetch_cached(remote, "pack.json")
    local_cache.publish(pack, remote, "pack.json")
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(local_cache.fetch_cached(remote, "pack.json"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [local_cache.local_path(remote)] * 4
    assert (results[0] / "images.npy").read_bytes() == b"pixels"
    assert sorted(downloads) == ["images.npy", "pack.json"]


def test_a_copy_that_fails_its_check_is_not_used(bucket: str) -> None:
    remote = as_path(f"{bucket}/packs/ab")
    object_store.write_bytes(remote / "pack.json", b"torn")

    def check(folder: Path) -> None:
        raise ValueError(f"{(folder / 'pack.json').read_text()} is damaged")

    with pytest.raises(ValueError, match="torn is damaged"):
        local_cache.fetch_cached(remote, "pack.json", check)
    assert not local_cache.local_path(remote).exists()


def test_publishing_uploads_the_marker_file_last_and_only_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, remote = tmp_path / "pack", as_path(f"{bucket}/packs/ab")
    pack.mkdir()
    for name in ("z.npy", "pack.json"):
        (pack / name).write_bytes(b"1")
    uploads: list[str] = []
    upload = object_store.upload
    monkeypatch.setattr(object_store, "upload", lambda file, to: (uploads.append(to.name), upload(file, to)))
    local_cache.publish(pack, remote, "pack.json")
    local_cache.publish(pack, remote, "pack.json")
    assert uploads == ["z.npy", "pack.json"]


def test_a_published_file_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        (tmp_path / "weights").write_bytes(content)
        published = local_cache.publish_file(tmp_path / "weights", folder, "ab.safetensors")
    assert published == folder / "ab.safetensors"
    assert published.read_bytes() == b"first"


def test_a_file_is_downloaded_again_only_on_request(bucket: str, downloads: list[str]) -> None:
    remote = as_path(f"{bucket}/weights.pth")
    with pytest.raises(FileNotFoundError):
        local_cache.fetch_file(remote)
    downloads.clear()
    object_store.write_bytes(remote, b"old")
    assert local_cache.fetch_file(remote).read_bytes() == b"old"
    object_store.write_bytes(remote, b"new")
    assert local_cache.fetch_file(remote).read_bytes() == b"old"
    assert local_cache.fetch_file(remote, refresh=True).read_bytes() == b"new"
    assert len(downloads) == 2


def test_checkpoints_are_pulled_changed_and_pushed(folder: Path) -> None:
    (local := local_cache.pull(folder / "checkpoints")).mkdir(parents=True, exist_ok=True)
    for epoch in (1, 2):
        (local / f"epoch-{epoch}").write_bytes(b"1")
    local_cache.push(local, folder / "checkpoints")
    (local / "epoch-3").write_bytes(b"3")
    (local / "epoch-1").unlink()
    local_cache.push(local, folder / "checkpoints")
    again = local_cache.pull(folder / "checkpoints")
    assert sorted(path.name for path in again.iterdir()) == ["epoch-2", "epoch-3"]
    assert (again / "epoch-3").read_bytes() == b"3"


def test_only_new_and_changed_images_are_downloaded(bucket: str, downloads: list[str]) -> None:
    remote = as_path(f"{bucket}/photos")
    for name in ("ants/1.jpg", "ants/2.jpg", "bees/3.jpg"):
        object_store.write_bytes(remote / name, name.encode())
    progress: list[tuple[int, int]] = []
    local = local_cache.sync_down(remote, lambda done, total: progress.append((done, total)))
    assert local.name == "photos"
    assert sorted(str(path.relative_to(local)) for path in local.rglob("*.jpg")) == [
        "ants/1.jpg",
        "ants/2.jpg",
        "bees/3.jpg",
    ]
    assert sorted(downloads) == ["1.jpg", "2.jpg", "3.jpg"]
    assert progress == [(0, 3)]
    downloads.clear()
    object_store.write_bytes(remote / "ants/2.jpg", b"another")
    (remote / "bees/3.jpg").unlink()
    object_store.write_bytes(remote / "bees/4.jpg", b"new")
    assert local_cache.sync_down(remote) == local
    assert (local / "ants/2.jpg").read_bytes() == b"another"
    assert sorted(path.name for path in (local / "bees").iterdir()) == ["4.jpg"]
    assert sorted(downloads) == ["2.jpg", "4.jpg"]
    downloads.clear()
    local_cache.sync_down(remote)
    assert downloads == []


def test_a_table_is_downloaded_with_the_folder_that_contains_it(bucket: str) -> None:
    remote = as_path(f"{bucket}/birds")
    object_store.write_bytes(remote / "labels.csv", b"path,label\n")
    object_store.write_bytes(remote / "1.jpg", b"1")
    table = local_cache.sync_down(remote / "labels.csv")
    assert table.read_text() == "path,label\n"
    assert (table.parent / "1.jpg").exists()
    with pytest.raises(ValueError, match="there are no files at s3://"):
        local_cache.sync_down(remote / "nothing")


@pytest.mark.parametrize("name", ["z/../../../../victim", "..", "a/.."])
def test_a_name_that_leads_out_of_its_folder_is_refused(bucket: str, name: str, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=f"photos/{name}", Body=b"!")
    with pytest.raises(ValueError, match="outside of it: refusing to download it"):
        local_cache.sync_down(as_path(f"{bucket}/photos"))
    with pytest.raises(ValueError, match="outside of it"):
        local_cache.pull(as_path(f"{bucket}/photos"))
    assert not list(tmp_path.rglob("victim"))


def test_a_key_that_marks_a_folder_is_not_a_file(bucket: str) -> None:
    import boto3

    name = bucket.removeprefix("s3://")
    for key in ("photos/", "photos/ants/", "photos/ants/1.jpg"):
        boto3.client("s3").put_object(Bucket=name, Key=key, Body=b"")
    local = local_cache.sync_down(as_path(f"{bucket}/photos"))
    assert [str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()] == ["ants/1.jpg"]


def test_pushing_keeps_newer_checkpoints_of_another_machine(bucket: str) -> None:
    """A machine that was unreachable may still run a trial that another machine has taken over."""
    remote = as_path(f"{bucket}/checkpoints")
    local = local_cache.pull(remote)
    (local / "epoch-0002").write_bytes(b"2")
    for name in ("epoch-0001", "epoch-0003"):
        object_store.write_bytes(remote / name, b"!")
    local_cache.push(local, remote)
    assert object_store.list_names(remote) == ["epoch-0002", "epoch-0003"]


def test_pulling_removes_the_working_copies_of_ended_processes(bucket: str) -> None:
    remote = as_path(f"{bucket}/checkpoints")
    first = local_cache.pull(remote)
    ended = first.with_name(first.name.split("~")[0] + "~4194305~ab")  # larger than any pid
    other_host = first.with_name("another-host~4194305~ab")
    ended.mkdir()
    other_host.mkdir()
    second = local_cache.pull(remote)
    assert sorted(first.parent.iterdir()) == sorted([other_host, second])
