"""A sweep over two image sizes, from the command line to its report and its exported model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.sweep_commands import CompletedCommand, SweepFolder, build_once, only_sweep, read_without_checksum, run
from xfer.records import NOISE_KINDS

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

NETWORK = "test_resnet"


@pytest.fixture(scope="module")
def flags(image_folder: Path, weights_of: Callable[[str], Path]) -> tuple[object, ...]:
    return (
        *("--data", image_folder, "--backbone", NETWORK, "--weights", weights_of(NETWORK), "--no-advise"),
        *("--vary", "image_size=32,48", "--strategies", "clip,linear_probe", "--sampler", "random"),
        *("--trials", 5, "--epochs", 2, "--scheduler", "none", "--finalists", 5, "--seeds", 1),
    )


def run_in(folder: Path, flags: tuple[object, ...]) -> CompletedCommand:
    return run("folder", (*flags, "--storage", folder / "runs", "--reports", folder / "reports"), folder)


@pytest.fixture(scope="module")
def folder(flags: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        command = run_in(folder, flags)
        assert command.status == 0, command.err
        (folder / "out").write_text(command.out)

    return build_once(tmp_path_factory, "image-sizes", make)


@pytest.fixture(scope="module")
def sweep(folder: Path) -> SweepFolder:
    return only_sweep(folder / "runs")


def test_every_trial_is_trained_on_the_pack_of_its_size(folder: Path, sweep: SweepFolder) -> None:
    packs = [read_without_checksum(path) for path in (folder / "runs" / "packs").glob("*/pack.json")]
    size_of = {pack["hash"]: pack["image_size"] for pack in packs}
    assert sorted(size_of.values()) == [32, 48]
    records = [*sweep.records("search").values(), *sweep.records("final").values()]
    assert {record["status"] for record in records} == {"finished"}
    assert all(size_of[record["recipe"]["data"]] == record["recipe"]["image_size"] for record in records)
    tried = {(record["recipe"]["strategy"]["name"], record["recipe"]["image_size"]) for record in records}
    assert tried >= {("clip", 32), ("clip", 48), ("linear_probe", 32)}  # the known good recipes
    flops = {record["recipe"]["image_size"]: record["flops"] for record in records}
    assert 2 < flops[48] / flops[32] < 2.5


def test_every_finalist_is_evaluated_on_the_test_set_and_under_noise(sweep: SweepFolder) -> None:
    finals = sweep.records("final")
    assert {record["recipe"]["image_size"] for record in finals.values()} == {32, 48}
    for name in finals:
        assert (sweep.folder / "trials" / name / "test.json").exists()
        kinds = {path.stem for path in (sweep.folder / "trials" / name / "noise").glob("*.json")}
        assert kinds == set(NOISE_KINDS)


def test_report_ranking_and_exported_model_give_the_size(folder: Path, sweep: SweepFolder) -> None:
    assert "test images of 32 and 48 px" in (folder / "out").read_text()
    reports = folder / "reports" / sweep.folder.name
    report = (reports / "report.md").read_text()
    assert "test images of 32 and 48 px, one size in each trial" in report
    header = next(line for line in report.splitlines() if line.startswith("| rank"))
    assert "image size" in header
    ranking = pd.read_csv(reports / "ranking.csv", dtype={"trial": str})
    assert set(ranking["image_size"]) == {32, 48}
    winner = ranking["image_size"][0]
    assert f"at {winner} px" in report
    assert read_without_checksum(sweep.folder / "model" / "model.json")["image_size"] == winner


def test_repeating_the_command_trains_nothing(folder: Path, sweep: SweepFolder, flags: tuple[object, ...]) -> None:
    times = sweep.times()
    assert run_in(folder, flags).status == 0
    assert sweep.times() == times
