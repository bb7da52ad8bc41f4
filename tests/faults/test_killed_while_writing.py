"""Fault 6: a kill during any write, or damage afterwards, never leaves a file that is taken for a whole one."""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sweeps.engine.trials.trainable import EXPORTED_TRIAL_FILE, is_exported
from xfer.recipe import Recipe
from xfer.run import Run
from xfer.training import checkpoints, export
from xfer.training.export import is_intact, load_classifier, save_classifier

ROOT = Path(__file__).parents[2]

WRITERS = {"write_text", "write_bytes", "save_file", "savefig", "to_csv", "copyfile", "copy", "copy2", "copytree"}
"""Methods and functions that write a file in place."""

MODULE_WRITERS = {("np", "save"), ("np", "savez"), ("torch", "save"), ("json", "dump"), ("pickle", "dump")}

NOT_UNDER_A_FINAL_NAME = {
    ("xfer/storage/atomic.py", "atomic_write"): "the temporary file",
    ("xfer/storage/object_store.py", "upload"): "the temporary file of atomic_write",
    ("xfer/training/export.py", "save_classifier"): "the temporary file of atomic_write",
    ("sweeps/engine/quickstart_data.py", "pretrain"): "the temporary file of atomic_write",
    ("xfer/data/pack.py", "_decode"): "inside atomic_folder",
    ("xfer/feature_extraction/feature_cache.py", "_write"): "inside atomic_folder",
    ("xfer/data/stanford_cars_download.py", "download_stanford_cars"): "inside atomic_folder",
    ("xfer/data/stanford_cars_download.py", "_write_photo"): "inside atomic_folder",
    ("xfer/distributed/launcher.py", "serialize"): "a message in memory",
    ("sweeps/reporting/ranking.py", "ranking_csv"): "a text in memory",
    ("sweeps/reporting/plot_style.py", "render_svg"): "a text in memory",
    ("sweeps/engine/storage/folders.py", "_local_problem"): "a probe that is removed",
    ("sweeps/engine/storage/lease.py", "_lock"): "a lock without content",
    ("sweeps/engine/resources/scratch.py", "create"): "a lock without content",
    ("sweeps/engine/tracking/model.py", "log_model"): "a temporary folder that is uploaded",
    ("sweeps/engine/trials/ray_connection.py", "_discard_output"): "the null device",
    ("sweeps/engine/trials/ray_connection.py", "protect_token_file"): "created once, with its rights",
    ("sweeps/engine/console/log_redirect.py", "redirect_output"): "a log, which grows",
    ("sweeps/cluster/tracking_server.py", "start_tracking_server"): "a log, which grows",
    ("sweeps/cluster/idle_shutdown.py", "check"): "a note that is lost at a reboot; a damaged one counts as none",
    ("sweeps/cluster/idle_shutdown.py", "install"): "files of systemd, written by an installation that is repeated",
}
"""Functions that write to a file directly, and why that is safe. All others use xfer/storage/atomic.py."""


def direct_writes() -> Iterator[tuple[str, str]]:
    """Yield module and innermost function of every call that writes to a file in place."""
    for module in sorted([*ROOT.glob("xfer/**/*.py"), *ROOT.glob("sweeps/**/*.py")]):
        for function, call in calls_in(ast.parse(module.read_text(encoding="utf-8")), ""):
            if writes(call):
                yield module.relative_to(ROOT).as_posix(), function


def calls_in(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        name = child.name if isinstance(child, ast.FunctionDef) else function
        yield from calls_in(child, name)


def writes(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        owner, name = "", call.func.id
    elif isinstance(call.func, ast.Attribute):
        owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
        name = call.func.attr
    else:
        return False
    if name in ("open", "fdopen", "NamedTemporaryFile"):
        modes = [arg.value for arg in [*call.args, *(k.value for k in call.keywords)] if isinstance(arg, ast.Constant)]
        return any(isinstance(mode, str) and len(mode) <= 3 and set(mode) & set("wax+") for mode in modes)
    if name in WRITERS:
        return owner != "object_store" and (name != "copy" or owner == "shutil")
    return (owner, name) in MODULE_WRITERS


def test_every_file_is_written_atomically() -> None:
    assert sorted(set(direct_writes()) - NOT_UNDER_A_FINAL_NAME.keys()) == []
    assert sorted(NOT_UNDER_A_FINAL_NAME.keys() - set(direct_writes())) == [], "no longer needed"


@pytest.fixture(scope="module")
def exported(
    make_run: Callable[..., Run], make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path]:
    """A run and the folder of its network."""
    run = make_run(make_recipe())
    folder = tmp_path_factory.mktemp("exported") / "model"
    save_classifier(folder, run.model, run.recipe, run.pack.classes)
    (folder / EXPORTED_TRIAL_FILE).write_text("0007", encoding="utf-8")
    return run, folder


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_damaged_model_is_not_loaded_and_is_exported_again(
    exported: tuple[Run, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "model")
    assert is_exported(folder, "0007")
    assert not is_exported(folder, "0008")
    content = (folder / name).read_bytes()
    for position in range(0, len(content), max(1, len(content) // 40)):
        (folder / name).write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(ValueError, match="is not what was written"):
            load_classifier(folder)
        assert not is_exported(folder, "0007")
    for damaged in (b"", b"[" * 100_000, content[: len(content) // 2], content + b" x"):
        (folder / name).write_bytes(damaged)
        assert not is_intact(folder)
    (folder / name).unlink()
    assert not is_exported(folder, "0007")


def test_a_model_whose_files_are_of_two_exports_is_not_loaded(exported: tuple[Run, Path], tmp_path: Path) -> None:
    """The second export was killed between its two files."""
    folder = shutil.copytree(exported[1], tmp_path / "model")
    run = exported[0]
    model = copy.deepcopy(run.model)
    model.get_classifier().bias.data += 1
    save_classifier(tmp_path / "second", model, run.recipe, run.pack.classes)
    shutil.copy(tmp_path / "second" / export.WEIGHTS_FILE, folder / export.WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"model.safetensors is not what was written \(its checksum differs\): run"):
        load_classifier(folder)


def test_a_model_of_an_earlier_version_without_checksums_is_loaded(exported: tuple[Run, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "model")
    card = json.loads((folder / "model.json").read_bytes())
    del card["sha256"], card["weights_sha256"]
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
    assert load_classifier(folder).classes == exported[0].pack.classes


def test_a_checkpoint_that_cannot_be_parsed_is_damaged_whatever_its_name_says(tmp_path: Path) -> None:
    """An attacker can write a file with a matching checksum, for example a pickle."""
    checkpoints.save(tmp_path, 1, {"tensor": torch.ones(2)})
    for epoch, content in enumerate((pickle.dumps({"a": 1}), b"", b"\xff" * 64, checkpoint_without_state()), start=2):
        digest = hashlib.sha256(content).hexdigest()[:16]
        (tmp_path / f"epoch-{epoch:04d}-{digest}.safetensors").write_bytes(content)
    os.mkfifo(tmp_path / f"epoch-0009-{'0' * 16}.safetensors")
    state = checkpoints.load(tmp_path)
    assert state is not None
    assert torch.equal(state["tensor"], torch.ones(2))


def checkpoint_without_state() -> bytes:
    content: bytes = safetensors.torch.save({"tensor": torch.zeros(2)})
    return content
