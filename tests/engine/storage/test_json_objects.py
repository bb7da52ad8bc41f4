"""JSON objects are complete or absent, never change once written, and damage is detected."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.storage import json_objects

VALUE = {"name": "über", "accuracy": 0.1 + 0.2, "curve": [1, 2.5, None, True], "own": {"freeze_epochs": 2}}


def test_a_written_object_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "one.json"
    assert json_objects.put_if_absent(path, VALUE)
    assert json_objects.get(path) == VALUE
    assert [entry.name for entry in path.parent.iterdir()] == ["one.json"]


def test_a_missing_object_is_none(tmp_path: Path) -> None:
    assert json_objects.get(tmp_path / "none.json") is None


def test_put_if_absent_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    json_objects.put_if_absent(path, {"first": 1})
    before = path.read_bytes()
    assert not json_objects.put_if_absent(path, {"second": 2})
    assert path.read_bytes() == before


def test_put_if_absent_does_not_overwrite_what_another_process_writes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync = tmp_path / "other" / "one.json", os.fsync
    json_objects.put_if_absent(tmp_path / "one.json", {"first": 1})

    def write_first(descriptor: int) -> None:
        path.write_bytes((tmp_path / "one.json").read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_first)
    assert not json_objects.put_if_absent(path, {"second": 2})
    assert json_objects.get(path) == {"first": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["one.json"]


def test_replace_overwrites_an_object(tmp_path: Path) -> None:
    json_objects.replace(tmp_path / "one.json", {"first": 1})
    json_objects.replace(tmp_path / "one.json", {"second": 2})
    assert json_objects.get(tmp_path / "one.json") == {"second": 2}


@pytest.mark.parametrize("old", [None, {"old": 1}])
@pytest.mark.parametrize("broken", ["fsync", "replace", "write"])
def test_a_failed_write_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, old: Any) -> None:
    path = tmp_path / "one.json"
    if old is not None:
        json_objects.replace(path, old)

    def disk_full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if broken == "fsync":
            patched.setattr(os, "fsync", disk_full)
        elif broken == "replace":
            patched.setattr(Path, "replace", disk_full)
            patched.setattr(os, "replace", disk_full)
            patched.setattr(os, "link", disk_full)
        else:
            patched.setattr(Path, "open", disk_full)
        with pytest.raises(OSError, match="No space left"):
            json_objects.replace(path, VALUE)
        with pytest.raises(OSError, match="No space left"):
            json_objects.put_if_absent(tmp_path / "two.json", VALUE)
    assert [entry.name for entry in tmp_path.iterdir()] == (["one.json"] if old else [])
    assert json_objects.get(path) == old


def test_an_object_gets_its_name_only_after_it_is_flushed_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync, existed = tmp_path / "one.json", os.fsync, []

    def check(descriptor: int) -> None:
        existed.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", check)
    json_objects.put_if_absent(path, VALUE)
    assert existed[0] is False
    assert path.exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("write", [json_objects.put_if_absent, json_objects.replace])
def test_nan_and_infinity_are_refused(tmp_path: Path, number: float, write: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "one.json", {"loss": [0.1, number]})
    assert list(tmp_path.iterdir()) == []


def test_floats_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    rng = random.Random(0)
    drawn = [struct.unpack("d", rng.randbytes(8))[0] for _ in range(2_000)]
    floats = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, *filter(math.isfinite, drawn)]
    json_objects.put_if_absent(tmp_path / "one.json", {"floats": floats})
    read = (json_objects.get(tmp_path / "one.json") or {})["floats"]
    assert [struct.pack("d", number) for number in read] == [struct.pack("d", number) for number in floats]


def assert_damage_detected(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert json_objects.get(path) is None
    (damaged,) = path.parent.glob("*.damaged")
    assert damaged.name.startswith(path.name)
    assert damaged.read_bytes() == content
    assert str(path) in caplog.text
    assert damaged.name in caplog.text
    assert not path.exists()
    assert json_objects.put_if_absent(path, VALUE), "its work can be done again"
    assert json_objects.get(path) == VALUE
    path.unlink()
    damaged.unlink()


def test_an_object_truncated_at_any_byte_is_renamed_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "one.json"
    json_objects.put_if_absent(path, VALUE)
    content = path.read_bytes()
    for length in range(len(content)):
        try:
            if json.loads(content[:length]) == VALUE:
                continue  # only white space is missing
        except ValueError:
            pass
        assert_damage_detected(path, content[:length], caplog)


@pytest.mark.parametrize("bit", [0, 2, 7])
def test_an_object_with_a_flipped_bit_in_any_byte_is_renamed_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bit: int
) -> None:
    path = tmp_path / "one.json"
    json_objects.put_if_absent(path, VALUE)
    content = path.read_bytes()
    for index in range(len(content)):
        flipped = bytes([*content[:index], content[index] ^ 1 << bit, *content[index + 1 :]])
        try:
            if json.loads(flipped) == json.loads(content):
                continue  # white space, or another way to write the same value
        except ValueError:
            pass
        assert_damage_detected(path, flipped, caplog)


@pytest.mark.parametrize(
    "content", [b"\0" * 100, b"\xff\xfe", b"null", b"[1, 2]", b'"text"', b"12", b'{"a": NaN}'], ids=repr
)
def test_a_file_that_is_not_an_object_is_renamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    assert_damage_detected(tmp_path / "one.json", content, caplog)


def test_a_file_larger_than_the_limit_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_objects, "MAX_BYTES", 20)
    (tmp_path / "one.json").write_bytes(b'{"a": "' + b"x" * 30 + b'"}')
    with caplog.at_level(logging.WARNING):
        assert json_objects.get(tmp_path / "one.json") is None
    assert "larger than 20 bytes" in caplog.text
    assert len(list(tmp_path.glob("*.damaged"))) == 1
