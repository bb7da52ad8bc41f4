"""The QuickDraw page: its plan reads the drawings in their published format."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sweeps.quickdraw import __doc__ as question_command_and_cost
from sweeps.quickdraw import plan


def test_the_plan_uses_the_quickdraw_layout_and_64_pixels() -> None:
    from xfer.data.layouts import SOURCES
    from xfer.data.quickdraw import quickdraw

    assert SOURCES[plan.source] is quickdraw
    assert plan.image_size == 64
    assert plan.question in question_command_and_cost


def test_a_few_real_drawings_are_prepared(shared_data: Path, tmp_path: Path) -> None:
    from sweeps.engine.planning.prepare import prepare

    for name in ("cat", "clock", "rainbow"):
        rows = np.load(shared_data / "quickdraw" / f"{name}.npy", mmap_mode="r")
        (tmp_path / "few").mkdir(exist_ok=True)
        np.save(tmp_path / "few" / f"{name}.npy", rows[:40])
    weights = shared_data / "weights" / "mobilenetv2_100.safetensors"
    small_plan = dataclasses.replace(
        plan, data=str(tmp_path / "few"), backbones=("mobilenetv2_100",), weights={"mobilenetv2_100": str(weights)}
    )
    prepared = prepare(small_plan, tmp_path / "storage")
    assert prepared.pack.classes == ("cat", "clock", "rainbow")
    assert prepared.pack.images.shape == (120, 64, 64, 3)
    assert [len(prepared.split.of(part)) for part in ("train", "val", "test")] == [84, 18, 18]
    assert prepared.notes == ("images: 120 seen = 120 used + 0 skipped",)


@pytest.mark.slow
def test_every_drawing_is_in_the_pack(shared_data: Path, tmp_path: Path) -> None:
    from xfer.data.layouts import read_source
    from xfer.data.pack import build_pack

    pack = build_pack(read_source(str(shared_data / "quickdraw"), plan.source), 28, tmp_path)
    assert pack.images.shape == (40_000, 28, 28, 3)
    assert pack.skipped == ()
    assert len(set(pack.digests)) == 40_000
    assert pack.images.max() == 255
    assert (pack.images == 0).mean() > 0.5
