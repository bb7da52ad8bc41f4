"""Cached features are complete or absent, computed by one process only, and computed again if damaged."""

from __future__ import annotations

import multiprocessing
import os
import time

import numpy as np
import pytest

from xfer.feature_extraction.feature_cache import FeatureCache

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def in_two_chunks(calls=None):
    def compute():
        if calls is not None:
            calls.append(1)
        yield ROWS[:3]
        yield ROWS[3:]

    return compute


def files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_second_cache_reads_what_the_first_one_wrote(tmp_path):
    calls = []
    for _ in range(2):
        rows = FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two_chunks(calls))
        assert np.array_equal(rows, ROWS)
    assert calls == [1]
    FeatureCache(tmp_path).get_or_compute({"what": "b"}, 4, in_two_chunks(calls))
    assert calls == [1, 1]


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no checksum"])
def test_damaged_features_are_logged_and_computed_again(damage, tmp_path, caplog):
    FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two_chunks())
    (file,) = tmp_path.rglob("features.npy")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    if damage == "no checksum":
        (file.parent / "features.json").write_text("{}")
    else:
        file.write_bytes(content if damage == "flipped bit" else content[:-6])
    os.utime(file, ns=(1, 1))  # a checksum is verified once per process and modification time
    calls = []
    assert np.array_equal(FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two_chunks(calls)), ROWS)
    assert calls == [1]
    assert "damaged" in caplog.text


def test_a_failed_computation_leaves_no_files(tmp_path):
    def compute():
        yield ROWS[:3]
        raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, compute)
    assert files(tmp_path) == []
    assert np.array_equal(FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two_chunks()), ROWS)


def get_or_compute(root, queue):
    def compute():
        queue.put("computed")
        time.sleep(0.5)
        yield ROWS

    queue.put(FeatureCache(root).get_or_compute({"what": "a"}, 4, compute).sum())


def test_of_two_concurrent_processes_only_one_computes(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=get_or_compute, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    messages = [queue.get(timeout=60) for _ in range(3)]
    for process in processes:
        process.join()
    assert messages.count("computed") == 1
    assert [message for message in messages if message != "computed"] == [ROWS.sum()] * 2
