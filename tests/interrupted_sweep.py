"""The sweep that is killed, interrupted, moved and contested in test_resume, test_top_k and test_remote_sweep.

Each of those tests compares its records with those of the same sweep left undisturbed, which runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sweep_commands import (
    Command,
    SweepFolder,
    build_once,
    install_observer,
    only_sweep,
    started_epochs,
)

TRIALS, EPOCHS, SEEDS = 5, 4, 2
PACE_SECONDS = 0.8
"""Added to each epoch, so that a trial can be caught half-way on any machine."""


def flags(data: object, weights: Path, scheduler: str = "none") -> list[object]:
    """The sweep. Its trials do not depend on each other, so each record is known before the sweep starts."""
    return [
        *("--data", data, "--backbone", "test_efficientnet", "--weights", weights, "--image-size", 32),
        *("--trials", TRIALS, "--epochs", EPOCHS, "--fix", "batch_size=4", "--sampler", "random", "--no-advise"),
        *(
            "--strategies",
            "clip,freeze_then_unfreeze,naive,linear_probe,scratch",
        ),  # no closed form: one epoch
        *("--scheduler", scheduler, "--finalists", 1, "--seeds", SEEDS, "--concurrent", 2),
    ]


@dataclass(frozen=True)
class Story:
    """A folder in which the sweep is started, once or several times."""

    folder: Path

    @property
    def storage(self) -> Path:
        """The storage folder of the sweep."""
        return self.folder / "runs"

    @property
    def sweep(self) -> SweepFolder:
        """The sweep's own folder."""
        return only_sweep(self.storage)

    @property
    def observer(self) -> Path:
        """The folder with a note of each epoch whose training has started."""
        return self.folder / "observer"

    @property
    def folder_flags(self) -> list[object]:
        """Where the command writes."""
        return ["--storage", self.storage, "--reports", self.folder / "reports"]

    def start(self, flags: Iterable[object], pace: float = PACE_SECONDS) -> Command:
        """Start the command; `pace` seconds are added to each epoch."""
        if not self.observer.exists():
            install_observer(self.observer)
        command = [*flags, *self.folder_flags]
        return Command("folder", command, self.folder / "logs", self.observer, seconds_per_epoch=pace)

    def wait_for_unfinished(self, command: Command, phase: str = "", epochs: int = 1, count: int = 1) -> list[str]:
        """Wait until `count` trials have a checkpoint, at least `epochs` epochs and no record; return their names.

        Probes of the search do not count: they are trained as one batch, and are never half-way for long. With `phase`,
        only trials with this text in their name count.
        """

        def unfinished() -> list[str]:
            if not list(self.storage.glob("*/plan.json")):
                return []
            trained = {note.trial for note in started_epochs(self.observer)}
            names = [name for name in self.sweep.unfinished_trials(epochs) if name in trained and phase in name]
            return names if len(names) >= count else []

        names: list[str] = command.wait_until(unfinished, f"{count} trials were half-way")
        return names

    def epochs_started(self) -> int:
        """The number of epochs whose training has started."""
        return len(started_epochs(self.observer))


def undisturbed_sweep(factory: pytest.TempPathFactory, image_folder: Path, weights: Path) -> Story:
    """The sweep, run to its end without interruption; once for all processes that share the tests."""

    def make(folder: Path) -> None:
        completed = Story(folder).start(flags(image_folder, weights), pace=0.0).end()
        assert completed.status == 0, completed.out + completed.err

    return Story(build_once(factory, "undisturbed", make))
