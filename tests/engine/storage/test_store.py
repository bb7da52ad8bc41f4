"""The store: the folder is the only state, and damage to one file does not affect others."""

from __future__ import annotations

import ast
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.engine.storage.store import Decision, Store, Trial, list_sweeps
from sweeps.engine.trials.stage import trial_history
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch, an_evaluation
from xfer.records import NOISE_KINDS, CorruptionScore


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two trials that have ended and one that is running."""
    store = Store(tmp_path / "colours")
    store.put_plan(a_plan())
    for name, epochs in (("0000", 4), ("0001", 2), ("0002", 3)):
        store.add_trial(Trial(name, "search", {"strategy": "naive"}, a_recipe()))
        for number in range(1, epochs + 1):
            store.add_epoch(name, an_epoch(number, number / 5))
    store.add_record(a_record("0000"))
    store.add_record(a_record("0001", (0.2, 0.4), "pruned"))
    return store


def test_trials_epochs_and_records_are_returned_in_order(store: Store) -> None:
    assert store.trials() == [Trial(f"000{n}", "search", {"strategy": "naive"}, a_recipe()) for n in range(3)]
    assert store.epochs("0000") == a_record("0000").epochs
    assert store.records() == [a_record("0000"), a_record("0001", (0.2, 0.4), "pruned")]
    assert store.record("0002") is None
    assert store.plan() == a_plan()
    assert store.name == "colours"


def test_ten_and_more_epochs_are_in_order(store: Store) -> None:
    for number in range(4, 13):
        store.add_epoch("0002", an_epoch(number, number / 20))
    assert [epoch.epoch for epoch in store.epochs("0002")] == list(range(1, 13))


def test_the_first_version_of_an_object_is_kept(store: Store) -> None:
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


def test_records_have_a_test_evaluation_once_the_test_part_has_been_opened(store: Store) -> None:
    assert [record.test for record in store.records()] == [None, None]
    store.add_test("0000", an_evaluation("test", 7))
    assert [record.test for record in store.records()] == [an_evaluation("test", 7), None]


def test_dropping_checkpoints_affects_only_that_trial(store: Store) -> None:
    for name in ("0000", "0001"):
        store.checkpoints(name).mkdir()
        (store.checkpoints(name) / "epoch-0001-abc.safetensors").write_bytes(b"x")
    store.drop_checkpoints("0000")
    store.drop_checkpoints("0000")
    assert not store.checkpoints("0000").exists()
    assert len(list(store.checkpoints("0001").iterdir())) == 1
    assert store.record("0000") == a_record("0000")


def test_the_plan_can_be_replaced(store: Store) -> None:
    store.put_plan(a_plan(trials=9))
    assert (store.plan() or {})["trials"] == 9


def test_a_missing_folder_has_no_plan_trials_or_records(tmp_path: Path) -> None:
    assert Store(tmp_path / "nothing").plan() is None
    assert Store(tmp_path / "nothing").trials() == []
    assert Store(tmp_path / "nothing").records() == []
    assert Store(tmp_path / "nothing").epochs("0000") == ()


def test_sweeps_are_listed_oldest_first(tmp_path: Path) -> None:
    for age, name in enumerate(("c", "a", "b")):
        Store(tmp_path / name).put_plan(a_plan())
        os.utime(tmp_path / name / "plan.json", (1_000 + age, 1_000 + age))
    (tmp_path / "packs").mkdir()
    assert [store.name for store in list_sweeps(tmp_path)] == ["c", "a", "b"]
    assert list(list_sweeps(tmp_path / "nowhere")) == []


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b'{"epoch": 2, "train_lo', b'{"epocg": 2}', b"null", b"[]"], ids=repr)
def test_a_damaged_epoch_is_missing_and_all_others_are_kept(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = store.trial_folder("0002") / "epochs" / "0002.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        epochs = store.epochs("0002")
    assert [epoch.epoch for epoch in epochs] == [1, 3]
    assert str(path) in caplog.text
    assert [damaged.name[:9] for damaged in path.parent.glob("*.damaged")] == ["0002.json"]
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
def test_a_trial_with_a_damaged_config_has_not_started(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (store.trial_folder("0002") / "config.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [trial.name for trial in store.trials()] == ["0000", "0001"]
    assert "config.json is damaged" in caplog.text
    store.add_trial(Trial("0002", "search", {}, a_recipe()))
    assert [trial.name for trial in store.trials()] == ["0000", "0001", "0002"]


def noise_scores(kind: str) -> list[CorruptionScore]:
    return [CorruptionScore(kind, severity, 2, 1) for severity in (1, 2)]


def test_scores_under_noise_join_the_test_evaluation_once_they_are_complete(store: Store) -> None:
    store.add_test("0000", an_evaluation("test", 7))
    for kind in NOISE_KINDS[1:]:
        store.add_noise("0000", noise_scores(kind))
    assert store.noise_kinds("0000") == sorted(NOISE_KINDS[1:])
    assert not store.complete_noise("0000")
    assert store.test("0000") == an_evaluation("test", 7)
    store.add_noise("0000", noise_scores(NOISE_KINDS[0]))
    assert store.complete_noise("0000")
    scores = tuple(score for kind in NOISE_KINDS for score in noise_scores(kind))
    assert store.test("0000") == replace(an_evaluation("test", 7), noisy=scores)
    assert store.complete_noise("0000")


def test_a_damaged_score_under_noise_is_measured_again(store: Store) -> None:
    for kind in NOISE_KINDS:
        store.add_noise("0000", noise_scores(kind))
    path = store.trial_folder("0000") / "noise" / "blur.json"
    path.write_bytes(path.read_bytes()[:20])
    assert not store.complete_noise("0000")
    assert store.noise_kinds("0000") == sorted({*NOISE_KINDS} - {"blur"})
    store.add_noise("0000", noise_scores("blur"))
    assert store.complete_noise("0000")


def test_scores_that_an_earlier_version_stored_with_the_evaluation_are_read(store: Store) -> None:
    old = replace(an_evaluation("test", 7), noisy=tuple(noise_scores("blur")))
    store.add_test("0000", old)
    assert store.test("0000") == old
    assert old.noisy_images == 4


def test_a_damaged_test_evaluation_is_written_again(store: Store) -> None:
    store.add_test("0000", an_evaluation("test", 7))
    path = store.trial_folder("0000") / "test.json"
    path.write_bytes(path.read_bytes()[:20])
    assert store.test("0000") is None
    store.add_test("0000", an_evaluation("test", 7))
    assert store.test("0000") == an_evaluation("test", 7)


def damage(store: Store, trial: str, epoch: int) -> None:
    (store.trial_folder(trial) / "epochs" / f"{epoch:04d}.json").write_bytes(b"{")


def test_a_damaged_epoch_does_not_shift_the_epochs_after_it(store: Store) -> None:
    damage(store, "0002", 1)
    progress = trial_history(store)["0002"]
    assert [progress.value_at(epoch) for epoch in (1, 2, 3)] in ([None, 0.4, 0.6], [None, None, None])


def test_a_damaged_epoch_of_an_ended_trial_is_taken_from_its_record(store: Store) -> None:
    damage(store, "0000", 1)
    progress = trial_history(store)["0000"]
    assert [progress.value_at(epoch) for epoch in (1, 2, 3, 4)] == [0.2, 0.4, 0.6, 0.8]


def test_a_plan_truncated_at_any_byte_is_refused_and_left_in_place(store: Store) -> None:
    path = store.folder / "plan.json"
    content = path.read_bytes()
    for length in range(0, len(content.rstrip()), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"plan.json cannot be read .* an undamaged copy, .* --fresh"):
            store.plan()
        assert path.read_bytes() == content[:length]
    assert list(store.folder.glob("*damaged*")) == []


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b"\xff\xff\xff"], ids=repr)
def test_a_plan_that_is_not_an_object_is_refused(store: Store, content: bytes) -> None:
    (store.folder / "plan.json").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        store.plan()


# --- decisions -------------------------------------------------------------------------------------------------------

KINDS: tuple[Decision, ...] = ("finals", "openings")


@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_numbered_in_order(store: Store, kind: Decision) -> None:
    for number in range(12):
        store.decide(kind, {"finalists": [f"{number:04d}"]})
    assert store.decisions(kind) == [{"finalists": [f"{number:04d}"]} for number in range(12)]
    names = sorted(path.name for path in (store.folder / kind).iterdir())
    assert names == [f"{number:04d}.json" for number in range(1, 13)]


def test_kinds_of_decisions_are_separate(store: Store) -> None:
    store.decide("finals", {"finalists": ["0001"]})
    assert store.decisions("openings") == []


@pytest.mark.parametrize("broken", [1, 2])
def test_a_damaged_decision_does_not_hide_the_next_one(store: Store, broken: int) -> None:
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
    """Return imports and calls that could run code from the data they read."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE]
        if isinstance(node, ast.ImportFrom) and node.module:
            loads = node.module == "torch" and any(alias.name in ("load", "serialization") for alias in node.names)
            names += [node.module] if loads or node.module.partition(".")[0] in UNSAFE else []
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "np.load", "torch.jit.load"):
            names.append(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "__import__"):
            names.append(ast.unparse(node.func))
    return names


@pytest.mark.parametrize("module", MODULES)
def test_modules_that_read_the_storage_do_not_unpickle(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    assert unsafe(Path(file).read_text()) == []


@pytest.mark.parametrize("source", ["import pickle", "from pickle import load", "x = torch.load(f)", "eval('1')"])
def test_unpickling_is_detected(source: str) -> None:
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
def test_temporary_files_of_a_killed_writer_are_ignored(store: Store, read: Callable[[Store], object]) -> None:
    store.decide("finals", {"finalists": []})
    before = read(store)
    for folder in (store.trial_folder("0000"), store.trial_folder("0000") / "epochs", store.folder / "finals"):
        (folder / ".0009.json.abcd1234.tmp").write_bytes(b'{"half')
        (folder / "0001.json.abcd1234.damaged").write_bytes(b'{"half')
    assert read(store) == before
