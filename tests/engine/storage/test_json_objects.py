"""Objects: whole or absent, never changed, and damage is seen."""

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


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "one.json"
    assert json_objects.put_if_absent(path, VALUE)
    assert json_objects.get(path) == VALUE
    assert [each.name for each in path.parent.iterdir()] == ["one.json"]


def test_nothing_is_there_before(tmp_path: Path) -> None:
    assert json_objects.get(tmp_path / "none.json") is None


def test_put_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    json_objects.put_if_absent(path, {"first": 1})
    before = path.read_bytes()
    assert not json_objects.put_if_absent(path, {"second": 2})
    assert path.read_bytes() == before


def test_put_does_not_overwrite_what_another_process_puts_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "here" / "one.json", os.fsync
    json_objects.put_if_absent(tmp_path / "one.json", {"first": 1})

    def meanwhile(file: int) -> None:
        path.write_bytes((tmp_path / "one.json").read_bytes())
        sync(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert not json_objects.put_if_absent(path, {"second": 2})
    assert json_objects.get(path) == {"first": 1}
    assert [each.name for each in path.parent.iterdir()] == ["one.json"]


def test_replace_puts_a_new_object_in_the_place_of_the_old(tmp_path: Path) -> None:
    json_objects.replace(tmp_path / "one.json", {"first": 1})
    json_objects.replace(tmp_path / "one.json", {"second": 2})
    assert json_objects.get(tmp_path / "one.json") == {"second": 2}


@pytest.mark.parametrize("old", [None, {"old": 1}])
@pytest.mark.parametrize("broken", ["fsync", "replace", "write"])
def test_a_write_that_breaks_off_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, old: Any
) -> None:
    path = tmp_path / "one.json"
    if old is not None:
        json_objects.replace(path, old)

    def full(*arguments: object, **others: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if broken == "fsync":
            patched.setattr(os, "fsync", full)
        elif broken == "replace":
            patched.setattr(Path, "replace", full)
            patched.setattr(os, "replace", full)
            patched.setattr(os, "link", full)
        else:
            patched.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left"):
            json_objects.replace(path, VALUE)
        with pytest.raises(OSError, match="No space left"):
            json_objects.put_if_absent(tmp_path / "two.json", VALUE)
    assert [each.name for each in tmp_path.iterdir()] == (["one.json"] if old else [])
    assert json_objects.get(path) == old


def test_an_object_has_its_name_only_once_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sync, seen = tmp_path / "one.json", os.fsync, []

    def looking(file: int) -> None:
        seen.append(path.exists())
        sync(file)

    monkeypatch.setattr(os, "fsync", looking)
    json_objects.put_if_absent(path, VALUE)
    assert seen[0] is False
    assert path.exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("write", [json_objects.put_if_absent, json_objects.replace])
def test_what_is_no_number_is_refused(tmp_path: Path, number: float, write: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "one.json", {"loss": [0.1, number]})
    assert list(tmp_path.iterdir()) == []


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    chance = random.Random(0)
    drawn = [struct.unpack("d", chance.randbytes(8))[0] for _ in range(2_000)]
    floats = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, *(each for each in drawn if math.isfinite(each))]
    json_objects.put_if_absent(tmp_path / "one.json", {"floats": floats})
    back = (json_objects.get(tmp_path / "one.json") or {})["floats"]
    assert [struct.pack("d", each) for each in back] == [struct.pack("d", each) for each in floats]


def damaged(path: Path) -> list[str]:
    return [each.name for each in path.parent.glob("*.damaged")]


def assert_set_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert json_objects.get(path) is None
    (aside,) = path.parent.glob("*.damaged")
    assert aside.name.startswith(path.name)
    assert aside.read_bytes() == content
    assert str(path) in caplog.text
    assert aside.name in caplog.text
    assert not path.exists()
    assert json_objects.put_if_absent(path, VALUE), "what it stood for can be done again"
    assert json_objects.get(path) == VALUE
    path.unlink()
    aside.unlink()


def test_an_object_torn_at_any_byte_is_set_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "one.json"
    json_objects.put_if_absent(path, VALUE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        try:
            if json.loads(whole[:length]) == VALUE:
                continue  # nothing but white space is missing
        except ValueError:
            pass
        assert_set_aside(path, whole[:length], caplog)


@pytest.mark.parametrize("bit", [0, 2, 7])
def test_an_object_with_a_flipped_bit_in_any_byte_is_set_aside_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bit: int
) -> None:
    path = tmp_path / "one.json"
    json_objects.put_if_absent(path, VALUE)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytes([*whole[:place], whole[place] ^ 1 << bit, *whole[place + 1 :]])
        try:
            if json.loads(flipped) == json.loads(whole):
                continue  # white space, and other ways to write the same
        except ValueError:
            pass
        assert_set_aside(path, flipped, caplog)


@pytest.mark.parametrize(
    "content", [b"\0" * 100, b"\xff\xfe", b"null", b"[1, 2]", b'"text"', b"12", b'{"a": NaN}'], ids=repr
)
def test_what_is_no_object_of_ours_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    assert_set_aside(tmp_path / "one.json", content, caplog)


def test_a_file_beyond_reason_is_not_read_into_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_objects, "MAX_BYTES", 20)
    assert_large = b'{"a": "' + b"x" * 30 + b'"}'
    (tmp_path / "one.json").write_bytes(assert_large)
    with caplog.at_level(logging.WARNING):
        assert json_objects.get(tmp_path / "one.json") is None
    assert "larger than 20 bytes" in caplog.text
    assert len(damaged(tmp_path / "one.json")) == 1
