"""Fault 7: a state object is torn, empty or missing, or a foreign file lies next to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sweeps.engine.console.overview import overviews
from sweeps.engine.console.reports import load_results
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking.mapping import unsent_epochs
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch
from xfer.data.pack import Pack, load_pack
from xfer.data.quickdraw import quickdraw
from xfer.feature_extraction.feature_cache import ARRAY_FILE, METADATA_FILE, FeatureCache

FOREIGN_NAMES = (
    ".DS_Store",
    "._0001.json",
    "notes.json",
    "README",
    "Thumbs.db",
    "0001 (copy).json",
    "1.json",
    "0x.json",
)
"""Files that file managers, editors and people leave in folders."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One trial that has ended and one that is running."""
    store = Store(tmp_path / "colours")
    store.put_plan(a_plan())
    for name in ("0000", "0001"):
        store.add_trial(Trial(name, "search", {"strategy": "naive"}, a_recipe()))
        store.add_epoch(name, an_epoch(1, 0.2))
    store.add_record(a_record("0000", (0.2,)))
    store.decide("finals", {"finalists": ["0000"]})
    return store


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_foreign_files_in_any_folder_of_a_storage_change_nothing(store: Store, kind: str) -> None:
    make = {"file": lambda path: path.write_bytes(b"\0\0\0\1Bud1"), "folder": Path.mkdir, "pipe": os.mkfifo}[kind]
    (store.trial_folder("0000") / "noise").mkdir()
    folders = [store.folder.parent, *(path for path in store.folder.parent.rglob("*") if path.is_dir())]
    before = load_results(store), store.trials(), store.epochs("0001"), store.decisions("finals")
    overview = overviews(store.folder.parent)
    for folder in folders:
        for name in FOREIGN_NAMES:
            make(folder / name)
    assert (load_results(store), store.trials(), store.epochs("0001"), store.decisions("finals")) == before
    assert store.trial_names() == ["0000", "0001"]
    assert store.noise_kinds("0000") == []
    assert [epoch.epoch for epoch in unsent_epochs(store.trial_folder("0001"), set())] == [1]
    assert overviews(store.folder.parent) == overview
    store.decide("finals", {"finalists": ["0001"]})
    assert [decision["finalists"] for decision in store.decisions("finals")] == [["0000"], ["0001"]]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_not_a_file_under_the_name_of_an_object_is_set_aside(store: Store, kind: str) -> None:
    path = store.trial_folder("0001") / "epochs" / "0002.json"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    assert [epoch.epoch for epoch in store.epochs("0001")] == [1]
    assert [damaged.name[:9] for damaged in path.parent.glob("*.damaged")] == ["0002.json"]


def test_a_file_under_the_name_of_a_trial_is_no_trial(store: Store) -> None:
    (store.folder / "trials" / "0002").write_bytes(b"")
    assert [trial.name for trial in store.trials()] == ["0000", "0001"]
    assert [record.trial for record in store.records()] == ["0000"]


def test_a_sweep_of_another_version_does_not_hide_the_others(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    plan = a_plan()
    del plan["data"]
    Store(store.folder.parent / "other").put_plan(plan)
    assert [overview.name for overview in overviews(store.folder.parent)] == ["colours"]
    assert "other cannot be read, or is of another version" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b"", b'{"sha256": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_pack_ends_in_a_message_that_says_what_to_do(pack: Pack, tmp_path: Path, content: bytes) -> None:
    copy = copy_folder(pack.folder, tmp_path / "pack")
    (copy / "pack.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"the pack .* is damaged .*: remove that folder, and it is built again"):
        load_pack(copy)


@pytest.mark.parametrize("change", [lambda rows: rows[:-1], lambda rows: rows.astype(object), None])
def test_pixels_that_do_not_fit_the_pack_are_refused(
    pack: Pack, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray] | None
) -> None:
    copy = copy_folder(pack.folder, tmp_path / "pack")
    if change is None:
        (copy / "images.npy").unlink()
    else:
        np.save(copy / "images.npy", change(np.array(pack.images)))
    with pytest.raises(ValueError, match="is damaged"):
        load_pack(copy)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b"", b'{"sha256": 1}'])
def test_features_with_a_damaged_description_are_computed_again(tmp_path: Path, content: bytes) -> None:
    rows, calls = np.ones((3, 2), np.float32), []

    def compute() -> object:
        calls.append(1)
        yield rows

    FeatureCache(tmp_path).get_or_compute({"data": "d"}, 3, compute)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / METADATA_FILE).write_bytes(content)
    assert np.array_equal(FeatureCache(tmp_path).get_or_compute({"data": "d"}, 3, compute), rows)
    assert len(calls) == 2


def test_features_under_the_name_of_others_are_computed_again(tmp_path: Path) -> None:
    """Both arrays match their checksums; only the name or the number of rows is wrong."""
    for data, value in (("a", 1.0), ("b", 2.0)):
        FeatureCache(tmp_path).get_or_compute({"data": data}, 3, lambda value=value: iter([np.full((3, 2), value)]))
    first, second = (path for path in tmp_path.iterdir() if path.is_dir())
    for name in (ARRAY_FILE, METADATA_FILE):
        (first / name).write_bytes((second / name).read_bytes())
    fresh = [
        FeatureCache(tmp_path).get_or_compute({"data": data}, 3, lambda: iter([np.full((3, 2), 9.0)]))[0, 0]
        for data in ("a", "b")
    ]
    assert sorted(fresh) in ([1.0, 9.0], [2.0, 9.0])
    rows = FeatureCache(tmp_path).get_or_compute({"data": "a"}, 4, lambda: iter([np.full((4, 2), 7.0)]))
    assert rows.shape == (4, 2)


def test_damaged_bitmaps_end_in_a_message(tmp_path: Path) -> None:
    path = tmp_path / "cat.npy"
    np.save(path, np.zeros((2, 784), np.uint8))
    content = path.read_bytes()
    refused = 0
    for position in range(128):  # the header
        for value in (0, ord("("), ord("'"), 0xFF):
            path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                quickdraw(str(tmp_path))
            except ValueError:  # any other error would be a traceback
                refused += 1
    assert refused > 100


def copy_folder(folder: Path, to: Path) -> Path:
    """Copy the files of a folder."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to
