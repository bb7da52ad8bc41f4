"""Features on disk: whole or absent, computed once by whoever comes first, computed again where they are damaged."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

from xfer.features import feature_cache
from xfer.features.feature_cache import FeatureCache

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def in_two(calls=None):
    def compute():
        if calls is not None:
            calls.append(1)
        yield ROWS[:3]
        yield ROWS[3:]

    return compute


def files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_second_store_reads_what_the_first_one_wrote(tmp_path):
    calls = []
    for _ in range(2):
        rows = FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two(calls))
        assert np.array_equal(rows, ROWS)
    assert calls == [1]
    FeatureCache(tmp_path).get_or_compute({"what": "b"}, 4, in_two(calls))
    assert calls == [1, 1]


@pytest.mark.parametrize("damage", ["flip", "cut", "no hash"])
def test_damaged_features_are_computed_again_and_the_log_says_so(damage, tmp_path, caplog):
    FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two())
    (file,) = tmp_path.rglob("features.npy")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    if damage == "no hash":
        (file.parent / "features.json").write_text("{}")
    else:
        file.write_bytes(content if damage == "flip" else content[:-6])
    feature_cache._is_as_written.cache_clear()  # as in another process
    calls = []
    assert np.array_equal(FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two(calls)), ROWS)
    assert calls == [1]
    assert "damaged" in caplog.text


def test_what_fails_half_way_leaves_nothing_behind(tmp_path):
    def compute():
        yield ROWS[:3]
        raise RuntimeError("out of power")

    with pytest.raises(RuntimeError, match="out of power"):
        FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, compute)
    assert files(tmp_path) == []
    assert np.array_equal(FeatureCache(tmp_path).get_or_compute({"what": "a"}, 4, in_two()), ROWS)


def _ask(root, queue):
    def compute():
        queue.put("computed")
        time.sleep(0.5)
        yield ROWS

    queue.put(FeatureCache(root).get_or_compute({"what": "a"}, 4, compute).sum())


def test_two_processes_that_ask_at_once_compute_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [context.Process(target=_ask, args=(tmp_path, queue)) for _ in range(2)]
    for each in both:
        each.start()
    said = [queue.get(timeout=60) for _ in range(3)]
    for each in both:
        each.join()
    assert said.count("computed") == 1
    assert [each for each in said if each != "computed"] == [ROWS.sum()] * 2
