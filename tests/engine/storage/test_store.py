"""The store: what is in the folder is what happened, whatever became of single files."""

from __future__ import annotations

import ast
import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.engine.storage.store import Decision, Store, Trial, list_sweeps
from sweeps.engine.trials.stage import trial_history
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch, an_evaluation


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two ended trials and one that is running."""
    store = Store(tmp_path / "colours")
    store.put_plan(a_plan())
    for name, epochs in (("0000", 4), ("0001", 2), ("0002", 3)):
        store.add_trial(Trial(name, "search", {"strategy": "naive"}, a_recipe()))
        for number in range(1, epochs + 1):
            store.add_epoch(name, an_epoch(number, number / 5))
    store.add_record(a_record("0000"))
    store.add_record(a_record("0001", (0.2, 0.4), "pruned"))
    return store


def test_trials_epochs_and_records_come_back_in_order(store: Store) -> None:
    assert store.trials() == [Trial(f"000{n}", "search", {"strategy": "naive"}, a_recipe()) for n in range(3)]
    assert store.epochs("0000") == a_record("0000").epochs
    assert store.records() == [a_record("0000"), a_record("0001", (0.2, 0.4), "pruned")]
    assert store.record("0002") is None
    assert store.plan() == a_plan()
    assert store.name == "colours"


def test_ten_epochs_and_more_stand_in_their_order(store: Store) -> None:
    for number in range(4, 13):
        store.add_epoch("0002", an_epoch(number, number / 20))
    assert [epoch.epoch for epoch in store.epochs("0002")] == list(range(1, 13))


def test_what_was_handed_in_first_stays(store: Store) -> None:
    store.add_epoch("0000", an_epoch(1, 0.99))
    store.add_record(a_record("0000", (0.9, 0.9)))
    store.add_trial(Trial("0000", "search", {}, a_recipe("clip")))
    store.add_test("0000", an_evaluation("test", 3))
    store.add_test("0000", an_evaluation("test", 9))
    assert store.epochs("0000")[0] == an_epoch(1, 0.2)
    record = store.record("0000")
    assert record is not None
    assert record.epochs == a_record("0000").epochs
    assert record.test == an_evaluation("test", 3)
    assert store.trials()[0].recipe == a_recipe()


def test_records_carry_the_test_part_once_it_has_been_opened(store: Store) -> None:
    assert [record.test for record in store.records()] == [None, None]
    store.add_test("0000", an_evaluation("test", 7))
    assert [record.test for record in store.records()] == [an_evaluation("test", 7), None]


def test_dropping_checkpoints_frees_that_trials_alone(store: Store) -> None:
    for name in ("0000", "0001"):
        store.checkpoints(name).mkdir()
        (store.checkpoints(name) / "epoch-0001-abc.safetensors").write_bytes(b"x")
    store.drop_checkpoints("0000")
    store.drop_checkpoints("0000")
    assert not store.checkpoints("0000").exists()
    assert len(list(store.checkpoints("0001").iterdir())) == 1
    assert store.record("0000") == a_record("0000")


def test_the_plan_alone_may_be_replaced(store: Store) -> None:
    store.put_plan(a_plan(trials=9))
    assert (store.plan() or {})["trials"] == 9


def test_a_folder_without_a_plan_has_none(tmp_path: Path) -> None:
    assert Store(tmp_path / "nothing").plan() is None
    assert Store(tmp_path / "nothing").trials() == []
    assert Store(tmp_path / "nothing").records() == []
    assert Store(tmp_path / "nothing").epochs("0000") == ()


def test_sweeps_are_found_oldest_first(tmp_path: Path) -> None:
    for age, name in enumerate(("c", "a", "b")):
        Store(tmp_path / name).put_plan(a_plan())
        os.utime(tmp_path / name / "plan.json", (1_000 + age, 1_000 + age))
    (tmp_path / "packs").mkdir()
    assert [store.name for store in list_sweeps(tmp_path)] == ["c", "a", "b"]
    assert list(list_sweeps(tmp_path / "nowhere")) == []


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b'{"epoch": 2, "train_lo', b'{"epocg": 2}', b"null", b"[]"], ids=repr)
def test_a_damaged_epoch_is_not_done_and_all_others_are(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = store.trial_folder("0002") / "epochs" / "0002.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        epochs = store.epochs("0002")
    assert [epoch.epoch for epoch in epochs] == [1, 3]
    assert str(path) in caplog.text
    assert [each.name[:9] for each in path.parent.glob("*.damaged")] == ["0002.json"]
    store.add_epoch("0002", an_epoch(2, 0.4))
    assert [epoch.epoch for epoch in store.epochs("0002")] == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b'{"trial": "0000", "ph', b'{"trial": "0000"}', b"null"], ids=repr)
def test_a_trial_with_a_damaged_record_has_not_ended(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (store.trial_folder("0000") / "record.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [record.trial for record in store.records()] == ["0001"]
    assert "record.json is damaged" in caplog.text
    assert [trial.name for trial in store.trials()] == ["0000", "0001", "0002"]
    store.add_record(a_record("0000"))
    assert store.record("0000") == a_record("0000")


@pytest.mark.parametrize("content", [b"", b'{"phase": "search", "par', b'{"phase": "search"}', b"[]"], ids=repr)
def test_a_trial_with_a_damaged_config_was_not_begun(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (store.trial_folder("0002") / "config.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [trial.name for trial in store.trials()] == ["0000", "0001"]
    assert "config.json is damaged" in caplog.text
    store.add_trial(Trial("0002", "search", {}, a_recipe()))
    assert [trial.name for trial in store.trials()] == ["0000", "0001", "0002"]


def test_a_damaged_test_part_is_opened_again(store: Store) -> None:
    store.add_test("0000", an_evaluation("test", 7))
    path = store.trial_folder("0000") / "test.json"
    path.write_bytes(path.read_bytes()[:20])
    assert store.test("0000") is None
    store.add_test("0000", an_evaluation("test", 7))
    assert store.test("0000") == an_evaluation("test", 7)


def damage(store: Store, trial: str, epoch: int) -> None:
    (store.trial_folder(trial) / "epochs" / f"{epoch:04d}.json").write_bytes(b"{")


def test_a_damaged_epoch_does_not_shift_those_after_it_against_other_trials(store: Store) -> None:
    damage(store, "0002", 1)
    progress = trial_history(store)["0002"]
    assert [progress.value_at(epoch) for epoch in (1, 2, 3)] in ([None, 0.4, 0.6], [None, None, None])


def test_nor_does_one_of_a_trial_that_has_ended_whose_record_has_them_all(store: Store) -> None:
    damage(store, "0000", 1)
    progress = trial_history(store)["0000"]
    assert [progress.value_at(epoch) for epoch in (1, 2, 3, 4)] == [0.2, 0.4, 0.6, 0.8]


def test_a_plan_torn_at_any_byte_is_refused_with_a_way_to_repair_and_left_where_it_is(store: Store) -> None:
    path = store.folder / "plan.json"
    whole = path.read_bytes()
    for length in range(0, len(whole.rstrip()), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"plan.json cannot be read .* an undamaged copy .* --fresh"):
            store.plan()
        assert path.read_bytes() == whole[:length]
    assert [each.name for each in store.folder.iterdir() if "damaged" in each.name] == []


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b"\xff\xff\xff"], ids=repr)
def test_a_plan_that_says_something_else_is_refused_too(store: Store, content: bytes) -> None:
    (store.folder / "plan.json").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        store.plan()


# --- decisions -------------------------------------------------------------------------------------------------------

KINDS: tuple[Decision, ...] = ("finals", "openings")


@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_numbered_and_keep_their_order(store: Store, kind: Decision) -> None:
    for number in range(12):
        store.decide(kind, {"finalists": [f"{number:04d}"]})
    assert store.decisions(kind) == [{"finalists": [f"{number:04d}"]} for number in range(12)]
    names = sorted(path.name for path in (store.folder / kind).iterdir())
    assert names == [f"{number:04d}.json" for number in range(1, 13)]


def test_the_two_kinds_of_decisions_are_apart(store: Store) -> None:
    store.decide("finals", {"finalists": ["0001"]})
    assert store.decisions("openings") == []


@pytest.mark.parametrize("broken", [1, 2])
def test_after_a_damaged_decision_the_next_one_is_not_lost(store: Store, broken: int) -> None:
    store.decide("openings", {"finalists": ["0001"]})
    store.decide("openings", {"finalists": ["0002"]})
    (store.folder / "openings" / f"000{broken}.json").write_bytes(b"")
    assert len(store.decisions("openings")) == 1
    store.decide("openings", {"finalists": ["0003"]})
    assert store.decisions("openings")[-1] == {"finalists": ["0003"]}


# --- nothing is unpickled --------------------------------------------------------------------------------------------

UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MODULES = (
    "sweeps.engine.storage.store",
    "sweeps.engine.storage.json_objects",
    "sweeps.engine.storage.lease",
    "xfer.training.checkpoints",
    "xfer.records",
)


def unsafe(source: str) -> list[str]:
    """Imports and calls that could run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE]
        if isinstance(node, ast.ImportFrom) and node.module:
            loads = node.module == "torch" and any(alias.name in ("load", "serialization") for alias in node.names)
            found += [node.module] if loads or node.module.partition(".")[0] in UNSAFE else []
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "np.load", "torch.jit.load"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "__import__"):
            found.append(ast.unparse(node.func))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_reads_the_storage_can_unpickle(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    assert unsafe(Path(file).read_text()) == []


@pytest.mark.parametrize("source", ["import pickle", "from pickle import load", "x = torch.load(f)", "eval('1')"])
def test_the_search_for_unpickling_finds_it(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.trials(),
        lambda store: store.epochs("0000"),
        lambda store: store.records(),
        lambda store: store.decisions("finals"),
    ],
    ids=["trials", "epochs", "records", "decisions"],
)
def test_temporary_files_of_a_killed_writer_are_no_objects(store: Store, read: Callable[[Store], object]) -> None:
    store.decide("finals", {"finalists": []})
    before = read(store)
    for folder in (store.trial_folder("0000"), store.trial_folder("0000") / "epochs", store.folder / "finals"):
        (folder / ".0009.json.abcd1234.tmp").write_bytes(b'{"half')
        (folder / "0001.json.abcd1234.damaged").write_bytes(b'{"half')
    assert read(store) == before
