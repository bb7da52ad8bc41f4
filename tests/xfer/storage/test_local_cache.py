"""Local: large things are brought to this machine once, and what is made here is sent to where others find it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from xfer.storage import local_cache, object_store
from xfer.storage.object_store import as_path


@pytest.fixture(params=["near", "far"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder here, and one in a bucket."""
    return tmp_path / "runs" if request.param == "near" else as_path(f"{request.getfixturevalue('bucket')}/runs")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Which files are fetched from an object store from now on, one list for each time."""
    fetched: list[list[str]] = []
    get = local_cache._get

    def count(folder: Path, to: Path, names: list[str]) -> None:
        fetched.append(sorted(names))
        get(folder, to, names)

    monkeypatch.setattr(local_cache, "_get", count)
    return fetched


def test_a_folder_that_never_changes_is_brought_once_by_whoever_comes_first(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, there = tmp_path / "pack", as_path(f"{bucket}/packs/ab")
    made.mkdir()
    (made / "images.npy").write_bytes(b"pixels")
    (made / "pack.json").write_bytes(b"{}")
    with pytest.raises(FileNotFoundError, match=r"has no pack\.json"):
        local_cache.fetch_cached(there, "pack.json")
    local_cache.publish(made, there, "pack.json")
    fetched = counted(monkeypatch)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(local_cache.fetch_cached(there, "pack.json"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {local_cache.local_path(there)}
    assert (found[0] / "images.npy").read_bytes() == b"pixels"
    assert fetched == [["images.npy", "pack.json"]]


def test_a_copy_that_is_not_what_was_written_is_not_used(bucket: str, tmp_path: Path) -> None:
    there = as_path(f"{bucket}/packs/ab")
    object_store.write_bytes(there / "pack.json", b"torn")

    def check(folder: Path) -> None:
        raise ValueError(f"{(folder / 'pack.json').read_text()} is damaged")

    with pytest.raises(ValueError, match="torn is damaged"):
        local_cache.fetch_cached(there, "pack.json", check)
    assert not local_cache.local_path(there).exists()


def test_what_is_kept_first_stays_and_comes_whole(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, there = tmp_path / "pack", as_path(f"{bucket}/packs/ab")
    made.mkdir()
    for name in ("z.npy", "pack.json"):
        (made / name).write_bytes(b"1")
    order: list[str] = []
    put = object_store.upload
    monkeypatch.setattr(object_store, "upload", lambda file, to: (order.append(to.name), put(file, to)))
    local_cache.publish(made, there, "pack.json")
    local_cache.publish(made, there, "pack.json")
    assert order == ["z.npy", "pack.json"]


def test_checkpoints_are_pulled_worked_on_and_pushed(folder: Path) -> None:
    (here := local_cache.pull(folder / "checkpoints")).mkdir(parents=True, exist_ok=True)
    for epoch in (1, 2):
        (here / f"epoch-{epoch}").write_bytes(b"1")
    local_cache.push(here, folder / "checkpoints")
    (here / "epoch-3").write_bytes(b"3")
    (here / "epoch-1").unlink()
    local_cache.push(here, folder / "checkpoints")
    again = local_cache.pull(folder / "checkpoints")
    assert sorted(path.name for path in again.iterdir()) == ["epoch-2", "epoch-3"]
    assert (again / "epoch-3").read_bytes() == b"3"


def test_photos_are_brought_once_and_then_only_what_changed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = as_path(f"{bucket}/photos")
    for name in ("ants/1.jpg", "ants/2.jpg", "bees/1.jpg"):
        object_store.write_bytes(there / name, name.encode())
    fetched, seen = counted(monkeypatch), []
    here = local_cache.sync_down(there, lambda done, total: seen.append((done, total)))
    assert here.name == "photos"
    assert sorted(str(path.relative_to(here)) for path in here.rglob("*.jpg")) == [
        "ants/1.jpg",
        "ants/2.jpg",
        "bees/1.jpg",
    ]
    object_store.write_bytes(there / "ants/2.jpg", b"another")
    (there / "bees/1.jpg").unlink()
    object_store.write_bytes(there / "bees/2.jpg", b"new")
    assert local_cache.sync_down(there) == here
    assert (here / "ants/2.jpg").read_bytes() == b"another"
    assert sorted(path.name for path in (here / "bees").iterdir()) == ["2.jpg"]
    local_cache.sync_down(there)
    assert fetched == [["ants/1.jpg", "ants/2.jpg", "bees/1.jpg"], ["ants/2.jpg", "bees/2.jpg"]]
    assert seen == [(0, 3)]


def test_a_table_is_brought_with_the_folder_it_stands_in(bucket: str) -> None:
    there = as_path(f"{bucket}/birds")
    object_store.write_bytes(there / "labels.csv", b"path,label\n")
    object_store.write_bytes(there / "1.jpg", b"1")
    table = local_cache.sync_down(there / "labels.csv")
    assert table.read_text() == "path,label\n"
    assert (table.parent / "1.jpg").exists()
    with pytest.raises(ValueError, match="there is nothing at s3://"):
        local_cache.sync_down(there / "nothing")


@pytest.mark.parametrize("name", ["z/../../../../victim", "..", "a/.."])
def test_a_name_that_leads_elsewhere_is_refused(bucket: str, name: str, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=f"photos/{name}", Body=b"!")
    with pytest.raises(ValueError, match="would lie outside of it: such a file is not brought"):
        local_cache.sync_down(as_path(f"{bucket}/photos"))
    with pytest.raises(ValueError, match="would lie outside"):
        local_cache.pull(as_path(f"{bucket}/photos"))
    assert not list(tmp_path.rglob("victim"))


def test_the_mark_of_a_folder_is_no_file(bucket: str) -> None:
    import boto3

    name = bucket.removeprefix("s3://")
    for key in ("photos/", "photos/ants/", "photos/ants/1.jpg"):
        boto3.client("s3").put_object(Bucket=name, Key=key, Body=b"")
    here = local_cache.sync_down(as_path(f"{bucket}/photos"))
    assert [str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()] == ["ants/1.jpg"]


def test_what_another_machine_has_trained_further_is_not_removed(bucket: str) -> None:
    """One that could not be reached may still be at a trial that was given to another."""
    there = as_path(f"{bucket}/checkpoints")
    here = local_cache.pull(there)
    (here / "epoch-0002").write_bytes(b"2")
    for name in ("epoch-0001", "epoch-0003"):
        object_store.write_bytes(there / name, b"!")
    local_cache.push(here, there)
    assert object_store.list_names(there) == ["epoch-0002", "epoch-0003"]


def test_what_processes_that_are_gone_have_pulled_is_removed(bucket: str) -> None:
    there = as_path(f"{bucket}/checkpoints")
    first = local_cache.pull(there)
    lost = first.with_name(first.name.split("~")[0] + "~4194305~ab")  # more than a pid can be
    other = first.with_name("another-host~4194305~ab")
    lost.mkdir()
    other.mkdir()
    second = local_cache.pull(there)
    assert sorted(path for path in first.parent.iterdir()) == sorted([other, second])
