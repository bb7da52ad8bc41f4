"""Places: what a folder on this machine can, one in an object store can, and large things are brought once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from xfer import places
from xfer.places import place


@pytest.fixture(params=["near", "far"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder here, and one in a bucket."""
    return tmp_path / "runs" if request.param == "near" else place(f"{request.getfixturevalue('bucket')}/runs")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Which files are fetched from an object store from now on, one list for each time."""
    fetched: list[list[str]] = []
    get = places._get

    def count(folder: Path, to: Path, names: list[str]) -> None:
        fetched.append(sorted(names))
        get(folder, to, names)

    monkeypatch.setattr(places, "_get", count)
    return fetched


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
    with places.written(folder / "model") as here:
        here.mkdir(parents=True, exist_ok=True)
        (here / "a").write_bytes(b"1")
    places.rename(folder / "model" / "a", folder / "model" / "b")
    assert [path.name for path in (folder / "model").iterdir()] == ["b"]
    assert places.modified_ms(folder / "model" / "b") > 1_700_000_000_000
    places.remove(folder / "model")
    places.remove(folder / "model")
    assert not (folder / "model").exists()


def test_a_folder_that_never_changes_is_brought_once_by_whoever_comes_first(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, there = tmp_path / "pack", place(f"{bucket}/packs/ab")
    made.mkdir()
    (made / "images.npy").write_bytes(b"pixels")
    (made / "pack.json").write_bytes(b"{}")
    with pytest.raises(FileNotFoundError, match=r"has no pack\.json"):
        places.brought(there, "pack.json")
    places.keep(made, there, "pack.json")
    fetched = counted(monkeypatch)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(places.brought(there, "pack.json"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {places.near(there)}
    assert (found[0] / "images.npy").read_bytes() == b"pixels"
    assert fetched == [["images.npy", "pack.json"]]


def test_a_copy_that_is_not_what_was_written_is_not_used(bucket: str, tmp_path: Path) -> None:
    there = place(f"{bucket}/packs/ab")
    places.write(there / "pack.json", b"torn")

    def check(folder: Path) -> None:
        raise ValueError(f"{(folder / 'pack.json').read_text()} is damaged")

    with pytest.raises(ValueError, match="torn is damaged"):
        places.brought(there, "pack.json", check)
    assert not places.near(there).exists()


def test_what_is_kept_first_stays_and_comes_whole(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, there = tmp_path / "pack", place(f"{bucket}/packs/ab")
    made.mkdir()
    for name in ("z.npy", "pack.json"):
        (made / name).write_bytes(b"1")
    order: list[str] = []
    put = places._put
    monkeypatch.setattr(places, "_put", lambda file, to: (order.append(to.name), put(file, to)))
    places.keep(made, there, "pack.json")
    places.keep(made, there, "pack.json")
    assert order == ["z.npy", "pack.json"]


def test_checkpoints_are_pulled_worked_on_and_pushed(folder: Path) -> None:
    (here := places.pull(folder / "checkpoints")).mkdir(parents=True, exist_ok=True)
    for epoch in (1, 2):
        (here / f"epoch-{epoch}").write_bytes(b"1")
    places.push(here, folder / "checkpoints")
    (here / "epoch-3").write_bytes(b"3")
    (here / "epoch-1").unlink()
    places.push(here, folder / "checkpoints")
    again = places.pull(folder / "checkpoints")
    assert sorted(path.name for path in again.iterdir()) == ["epoch-2", "epoch-3"]
    assert (again / "epoch-3").read_bytes() == b"3"


def test_photos_are_brought_once_and_then_only_what_changed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = place(f"{bucket}/photos")
    for name in ("ants/1.jpg", "ants/2.jpg", "bees/1.jpg"):
        places.write(there / name, name.encode())
    fetched, seen = counted(monkeypatch), []
    here = places.mirrored(there, lambda done, total: seen.append((done, total)))
    assert here.name == "photos"
    assert sorted(str(path.relative_to(here)) for path in here.rglob("*.jpg")) == [
        "ants/1.jpg",
        "ants/2.jpg",
        "bees/1.jpg",
    ]
    places.write(there / "ants/2.jpg", b"another")
    (there / "bees/1.jpg").unlink()
    places.write(there / "bees/2.jpg", b"new")
    assert places.mirrored(there) == here
    assert (here / "ants/2.jpg").read_bytes() == b"another"
    assert sorted(path.name for path in (here / "bees").iterdir()) == ["2.jpg"]
    places.mirrored(there)
    assert fetched == [["ants/1.jpg", "ants/2.jpg", "bees/1.jpg"], ["ants/2.jpg", "bees/2.jpg"]]
    assert seen == [(0, 3)]


def test_a_table_is_brought_with_the_folder_it_stands_in(bucket: str) -> None:
    there = place(f"{bucket}/birds")
    places.write(there / "labels.csv", b"path,label\n")
    places.write(there / "1.jpg", b"1")
    table = places.mirrored(there / "labels.csv")
    assert table.read_text() == "path,label\n"
    assert (table.parent / "1.jpg").exists()
    with pytest.raises(ValueError, match="there is nothing at s3://"):
        places.mirrored(there / "nothing")


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


@pytest.mark.parametrize("name", ["z/../../../../victim", "..", "a/.."])
def test_a_name_that_leads_elsewhere_is_refused(bucket: str, name: str, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=f"photos/{name}", Body=b"!")
    with pytest.raises(ValueError, match="would lie outside of it: such a file is not brought"):
        places.mirrored(place(f"{bucket}/photos"))
    with pytest.raises(ValueError, match="would lie outside"):
        places.pull(place(f"{bucket}/photos"))
    assert not list(tmp_path.rglob("victim"))


def test_the_mark_of_a_folder_is_no_file(bucket: str) -> None:
    import boto3

    name = bucket.removeprefix("s3://")
    for key in ("photos/", "photos/ants/", "photos/ants/1.jpg"):
        boto3.client("s3").put_object(Bucket=name, Key=key, Body=b"")
    here = places.mirrored(place(f"{bucket}/photos"))
    assert [str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()] == ["ants/1.jpg"]


def test_names_are_listed_whatever_is_in_them(folder: Path) -> None:
    assert places.names(folder / "a[1] %é") == []
    for name in ("b", "a"):
        with places.written(folder / "a[1] %é" / name) as here:
            here.mkdir(parents=True, exist_ok=True)
            (here / "x").write_bytes(b"1")
    assert places.names(folder / "a[1] %é") == ["a", "b"]
    assert places.names(folder / "a[1] %é" / "a") == ["x"]
    assert places.exists(folder / "a[1] %é" / "a" / "x")
    places.unlink(folder / "a[1] %é" / "a" / "x")
    places.unlink(folder / "a[1] %é" / "a" / "x")
    assert not places.exists(folder / "a[1] %é" / "a" / "x")


def test_what_another_machine_has_trained_further_is_not_removed(bucket: str) -> None:
    """One that could not be reached may still be at a trial that was given to another."""
    there = place(f"{bucket}/checkpoints")
    here = places.pull(there)
    (here / "epoch-0002").write_bytes(b"2")
    for name in ("epoch-0001", "epoch-0003"):
        places.write(there / name, b"!")
    places.push(here, there)
    assert places.names(there) == ["epoch-0002", "epoch-0003"]


def test_what_processes_that_are_gone_have_pulled_is_removed(bucket: str) -> None:
    there = place(f"{bucket}/checkpoints")
    first = places.pull(there)
    lost = first.with_name(first.name.split("~")[0] + "~4194305~ab")  # more than a pid can be
    other = first.with_name("another-host~4194305~ab")
    lost.mkdir()
    other.mkdir()
    second = places.pull(there)
    assert sorted(path for path in first.parent.iterdir()) == sorted([other, second])
