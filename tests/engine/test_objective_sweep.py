"""A whole sweep, from the command line to its report, for something else than accuracy."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.sweep_commands import CompletedCommand, SweepFolder, only_sweep, run

pytestmark = pytest.mark.slow


def swept(objective: str, image_folder: Path, weights: Path, folder: Path) -> tuple[CompletedCommand, SweepFolder]:
    flags = (
        *("--data", image_folder, "--backbone", "test_efficientnet", "--weights", weights, "--image-size", 32),
        *("--trials", 3, "--epochs", 2, "--strategies", "naive,linear_probe,scratch", "--scheduler", "none"),
        *("--finalists", 1, "--seeds", 1, "--objective", objective),
        *("--storage", folder / "runs", "--reports", folder / "reports"),
    )
    ended = run("folder", flags, folder)
    assert ended.status == 0, ended.err
    return ended, only_sweep(folder / "runs")


def rows(folder: Path, left: SweepFolder) -> list[dict[str, Any]]:
    with (folder / "reports" / left.folder.name / "ranking.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_for_the_loss_finishes_the_trial_with_the_lowest(
    image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    ended, left = swept("loss", image_folder, weights, tmp_path)
    losses = {name: record["epochs"][-1]["val_loss"] for name, record in left.records("search").items()}
    best = min(losses, key=lambda name: losses[name])
    assert left.plan["objective"] == ["loss"]
    assert left.read("finals", "0001.json")["finalists"] == [best]
    assert "in cross-entropy, with" in ended.out
    assert rows(tmp_path, left)[0]["trial"] == best
    assert [row["val_noisy_accuracy"] for row in rows(tmp_path, left)] == [""] * 3
    test = left.read("trials", f"{best}-s1", "test.json")
    assert len({noisy["kind"] for noisy in test["noisy"]}) == 7


def test_a_sweep_for_accuracy_under_noise_and_seconds_takes_its_finalist_from_the_front(
    image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    _, left = swept("noisy_accuracy,seconds", image_folder, weights, tmp_path)
    epochs = [epoch for record in left.records().values() for epoch in record["epochs"]]
    assert all(0 <= epoch["val_noisy_accuracy"] <= 1 for epoch in epochs)
    best = max(
        left.records("search").items(),
        key=lambda item: (item[1]["epochs"][-1]["val_noisy_accuracy"], -item[1]["seconds"]),
    )[0]
    assert left.read("finals", "0001.json")["finalists"] == [best]
    first, *_ = rows(tmp_path, left)
    final = left.read("trials", f"{best}-s1", "record.json")
    assert (first["trial"], first["on_front"]) == (best, "yes")
    assert float(first["val_noisy_accuracy"]) == pytest.approx(final["epochs"][-1]["val_noisy_accuracy"])
