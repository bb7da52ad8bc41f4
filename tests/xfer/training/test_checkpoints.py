"""A checkpoint is one file: complete or absent, verified before use, and never unpickled."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xfer.training import checkpoints

STATE = {
    "recipe": "abc",
    "numbers": [1, -(2**70), 0.1, 1e-320, 1 / 3, math.pi * 1e300, -0.0],
    "others": {"yes": True, "no": False, "nothing": None, "empty": {}, "list": [], "text": "naïve ‮ \n ☃"},
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "deep": [{"bias": torch.tensor([1.5, math.nan, -0.0])}]},
}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.numel() and tensor.ndim else tensor


def assert_same(loaded, expected):
    if isinstance(expected, torch.Tensor):
        assert (loaded.dtype, loaded.shape) == (expected.dtype, expected.shape)
        assert torch.equal(bits(loaded), bits(expected))
    elif isinstance(expected, dict):
        assert loaded.keys() == {str(key) for key in expected}
        for key in expected:
            assert_same(loaded[str(key)], expected[key])
    elif isinstance(expected, list | tuple):
        assert isinstance(loaded, list)
        assert len(loaded) == len(expected)
        for one, other in zip(loaded, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert struct.pack("d", loaded) == struct.pack("d", expected)
    else:
        assert type(loaded) is type(expected)
        assert loaded == expected


def save_epochs(folder, *epochs):
    """Save a checkpoint for each epoch, and return their paths."""
    return [checkpoints.save(folder, epoch, {"epoch": epoch, "weight": torch.full((50,), epoch)}) for epoch in epochs]


# Round trip


def test_a_nested_state_is_restored_bit_for_bit(tmp_path):
    checkpoints.save(tmp_path, 1, STATE)
    assert_same(checkpoints.load(tmp_path), STATE)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 4, 3, 3)])
def test_a_tensor_of_any_type_and_shape_is_restored_bit_for_bit(tmp_path, dtype, shape):
    tensor = (torch.rand(shape) * 3).to(dtype)
    checkpoints.save(tmp_path, 1, {"tensor": tensor})
    assert_same(checkpoints.load(tmp_path), {"tensor": tensor})


def test_tensors_with_any_memory_layout_are_restored(tmp_path):
    base = torch.rand(4, 3, 8, 8)
    state = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.mT,
        "strided": base[:, :, ::2],
        "part": base[1:2],
        "with gradient": base.clone().requires_grad_(),
    }
    checkpoints.save(tmp_path, 1, state)
    loaded = checkpoints.load(tmp_path)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_a_tensor_under_two_names_is_restored_under_both(tmp_path):
    tied = torch.rand(3, 4)
    state = {"embedding": tied, "head": tied, "view": tied.view(12)}
    checkpoints.save(tmp_path, 1, state)
    assert_same(checkpoints.load(tmp_path), state)


def test_integer_keys_become_strings_and_tuples_lists(tmp_path):
    checkpoints.save(tmp_path, 1, {"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.999)})
    assert_same(checkpoints.load(tmp_path), {"state": {"0": {"step": torch.tensor(3.0)}}, "betas": [0.9, 0.999]})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(state=st.dictionaries(st.text(), plain, max_size=4))
def test_any_plain_state_is_restored(tmp_path_factory, state):
    if "__tensor__" in json.dumps(state):
        return
    folder = tmp_path_factory.mktemp("any")
    checkpoints.save(folder, 1, state)
    assert_same(checkpoints.load(folder), state)


def test_the_state_of_an_optimizer_is_restored_bit_for_bit(tmp_path):
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    checkpoints.save(tmp_path, 1, optimizer.state_dict())
    assert_same(checkpoints.load(tmp_path), optimizer.state_dict())


# File names and number of checkpoints


def test_a_file_name_holds_the_epoch_and_the_checksum(tmp_path):
    (path,) = save_epochs(tmp_path / "new" / "folder", 3)
    name = checkpoints.FILE_PATTERN.fullmatch(path.name)
    assert name[1] == "0003"
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(name[2])


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path):
    paths = save_epochs(tmp_path, 1, 2, 3, 4)
    assert sorted(tmp_path.iterdir()) == sorted(paths[-2:])
    assert checkpoints.load(tmp_path)["epoch"] == 4


def test_epochs_are_sorted_as_numbers(tmp_path):
    save_epochs(tmp_path, 9_999, 10_000)
    assert checkpoints.load(tmp_path)["epoch"] == 10_000


def test_the_number_of_kept_checkpoints_is_an_argument(tmp_path):
    for epoch in range(1, 5):
        checkpoints.save(tmp_path, epoch, {}, keep=1)
    assert [path.name[:10] for path in tmp_path.iterdir()] == ["epoch-0004"]


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_without_a_checkpoint_the_state_is_none(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    assert checkpoints.load(tmp_path / folder) is None


def test_other_files_are_ignored(tmp_path, caplog):
    save_epochs(tmp_path, 1)
    for name in ("epoch-0002.safetensors", "epoch-0003-xyz.safetensors", "notes.txt", ".epoch-0009-tmp"):
        (tmp_path / name).write_bytes(b"x")
    assert checkpoints.load(tmp_path)["epoch"] == 1
    assert caplog.text == ""


# Damage

DAMAGES = {
    "empty": lambda content: b"",
    "cut after a byte": lambda content: content[:1],
    "cut in the header": lambda content: content[:40],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut before the end": lambda content: content[:-1],
    "one byte too many": lambda content: content + b"\0",
    "a bit flipped in the length": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit flipped in the header": lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:],
    "a bit flipped in a tensor": lambda content: content[:-9] + bytes([content[-9] ^ 128]) + content[-8:],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_logged_and_the_one_before_it_is_used(tmp_path, caplog, damage):
    before, newest = save_epochs(tmp_path, 1, 2)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    assert checkpoints.load(tmp_path)["epoch"] == 1
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert newest.name in warning.getMessage()
    assert before.name not in warning.getMessage()


def test_checkpoints_after_a_damaged_one_work(tmp_path, caplog):
    _, newest = save_epochs(tmp_path, 1, 2)
    newest.write_bytes(newest.read_bytes()[:-1])
    checkpoints.load(tmp_path)
    save_epochs(tmp_path, 2)
    caplog.clear()
    assert checkpoints.load(tmp_path)["epoch"] == 2
    assert caplog.text == ""
    assert len(list(tmp_path.iterdir())) == 2


def test_without_the_newest_file_the_one_before_it_is_loaded(tmp_path):
    _, newest = save_epochs(tmp_path, 1, 2)
    newest.unlink()
    assert checkpoints.load(tmp_path)["epoch"] == 1


def test_if_all_are_damaged_each_is_logged_and_the_state_is_none(tmp_path, caplog):
    paths = save_epochs(tmp_path, 1, 2)
    for path in paths:
        path.write_bytes(b"")
    assert checkpoints.load(tmp_path) is None
    assert all(path.name in caplog.text for path in paths)


def test_a_checkpoint_with_the_name_of_another_is_not_used(tmp_path, caplog):
    _, newest = save_epochs(tmp_path, 1, 2)
    other = checkpoints.save(tmp_path / "other", 2, {"epoch": 99})
    other.replace(newest)
    assert checkpoints.load(tmp_path)["epoch"] == 1
    assert newest.name in caplog.text


# Failures while writing


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_an_error_while_writing_leaves_the_old_state_and_no_partial_file(tmp_path, monkeypatch, call):
    old = save_epochs(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        if call == "open":
            patch.setattr(Path, "open", fail)
        else:
            patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            save_epochs(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == sorted(old)
    assert checkpoints.load(tmp_path)["epoch"] == 2
    save_epochs(tmp_path, 3)
    assert checkpoints.load(tmp_path)["epoch"] == 3


class KilledError(BaseException):
    """Stands for SIGKILL: no code runs after it."""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_no_checkpoint_file(tmp_path, monkeypatch, call):
    save_epochs(tmp_path, 1)

    def kill(*args):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, call, kill)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # a killed process does not clean up
        with pytest.raises(KilledError):
            save_epochs(tmp_path, 2)
    leftovers = [path for path in tmp_path.iterdir() if not path.name.startswith("epoch-0001")]
    assert len(leftovers) == 1, "the kill came after the first byte was written"
    assert leftovers[0].name.startswith(".")
    assert checkpoints.load(tmp_path)["epoch"] == 1
    save_epochs(tmp_path, 2)
    assert checkpoints.load(tmp_path)["epoch"] == 2


# Pickles


class Bomb:
    def __init__(self, fuse):
        self.fuse = fuse

    def __reduce__(self):
        return Path.touch, (self.fuse,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("checksum", ["wrong", "right"])
@pytest.mark.parametrize("dump", ["pickle", "torch"])
def test_a_pickle_with_the_name_of_a_checkpoint_is_not_executed(tmp_path, protocol, checksum, dump):
    fuse = tmp_path / "boom"
    pickled = tmp_path / "pickled"
    if dump == "pickle":
        pickled.write_bytes(pickle.dumps(Bomb(fuse), protocol))
    else:
        torch.save({"model": Bomb(fuse)}, pickled, pickle_protocol=protocol)
    digest = hashlib.sha256(pickled.read_bytes()).hexdigest() if checksum == "right" else "0" * 64
    folder = tmp_path / "checkpoints"
    save_epochs(folder, 1)
    pickled.rename(folder / f"epoch-0002-{digest[:16]}.safetensors")
    if checksum == "wrong":
        assert checkpoints.load(folder)["epoch"] == 1
    else:  # with a forged checksum the run stops, but the pickle is not executed
        with suppress(Exception):
            assert checkpoints.load(folder)["epoch"] == 1
    assert not fuse.exists()


def test_the_pickle_in_these_tests_is_dangerous(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()
