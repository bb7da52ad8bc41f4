"""The sweep's folder, the only truth: one immutable JSON object per epoch and per trial; running again is resuming.

    <storage>/<name>/
        plan.json                    what was asked for, fixed by the first start (see plan.py)
        trials/0007/config.json      what trial 7 is: the sampler's parameters and the recipe made of them
        trials/0007/epochs/0003.json one Epoch
        trials/0007/record.json      the Record, once the trial has ended
        trials/0007/test.json        a finalist's Evaluation of the test part, once that has been opened
        trials/0007/checkpoints/     the last two while it runs, afterwards those of the best few
        screening/0001.json          which backbones go on, fixed before the search begins
        finals/0001.json             the finalists, fixed before their runs on new seeds begin
        openings/0001.json           their ranking, fixed before the test part is opened
        spending/0001.json           what the machines of the first start have cost so far (see cost.py)
        lease.json                   which driver is at work (see lease.py)
        study.sqlite3, logs/         copies for other tools; nothing reads them back

A finalist's runs are trials of their own, named after it: `0007-s1`, `0007-s2`, ...; heads that are fitted before the
search are `screen-00`, ... Nothing is appended to and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sweeps.engine.storage import json_objects
from xfer.records import (
    Epoch,
    Evaluation,
    Phase,
    Record,
    as_dict,
    epoch_from_dict,
    evaluation_from_dict,
    record_from_dict,
)
from xfer.storage import local_cache, object_store

Decision = Literal["screening", "finals", "openings"]


@dataclass(frozen=True)
class Trial:
    """What one trial is, fixed before it starts."""

    name: str
    phase: Phase
    params: Mapping[str, Any]
    """The sampler's parameters, as Optuna knows them."""
    recipe: Mapping[str, Any]
    """The recipe as plain data (`Recipe.as_dict`)."""


@dataclass(frozen=True)
class Store:
    """A sweep's folder. Any number of processes may read; each trial's objects are written by whoever runs it.

    The folder may be one in an object store (`xfer.storage.object_store`).
    """

    folder: Path

    @property
    def name(self) -> str:
        """The sweep's name, which is its folder's."""
        return self.folder.name

    @property
    def near(self) -> Path:
        """The folder on this machine for what only this machine has use for: logs, and copies for other tools."""
        return local_cache.local_path(self.folder)

    # --- the plan -------------------------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any] | None:
        """What plan.json says; None where no sweep has been started.

        Raises:
            ValueError: plan.json is there and cannot be read. Without it nothing else in the folder has a meaning,
                so it is neither guessed nor replaced.
        """
        path = self.folder / "plan.json"
        try:
            plan = json_objects.read(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read ({error}), and without it the trials beside it have no meaning. Put "
                f"an undamaged copy in its place, or start anew beside it with --fresh."
            ) from error
        return plan

    def put_plan(self, plan: Mapping[str, Any]) -> None:
        """Fix the plan; a later start may replace it, but only to ask for more trials."""
        json_objects.replace(self.folder / "plan.json", dict(plan))

    def record_prices(self, prices: Mapping[str, Any]) -> None:
        """Add to the plan what machines of some node types cost: nobody knows it before they are there.

        What was paid stands under spending/; in the plan the newest price counts.
        """
        plan = self.plan() or {}
        noted = {**plan.get("prices", {}), **prices}
        if plan and noted != plan.get("prices", {}):
            self.put_plan({**plan, "prices": noted})

    # --- trials ---------------------------------------------------------------------------------------------------

    def trial_folder(self, trial: str) -> Path:
        """Where everything about one trial stands."""
        return self.folder / "trials" / trial

    def checkpoints(self, trial: str) -> Path:
        """The folder of a trial's checkpoints (see xfer/training/checkpoints.py)."""
        return self.trial_folder(trial) / "checkpoints"

    def names(self) -> list[str]:
        """The names of all trials that were ever begun, in their order."""
        return object_store.list_names(self.folder / "trials")

    def trials(self) -> list[Trial]:
        """Every trial that was ever begun, in the order of their names."""
        names = self.names()
        found = zip(names, json_objects.get_all(self.trial_folder(name) / "config.json" for name in names), strict=True)
        return [Trial(name=name, **config) for name, config in found if config is not None]

    def add_trial(self, trial: Trial) -> None:
        """Begin a trial."""
        config = {"phase": trial.phase, "params": dict(trial.params), "recipe": dict(trial.recipe)}
        json_objects.put_if_absent(self.trial_folder(trial.name) / "config.json", config)

    def epochs(self, trial: str) -> tuple[Epoch, ...]:
        """The epochs of a trial, first to last."""
        paths = json_objects.list_objects(self.trial_folder(trial) / "epochs")
        return tuple(epoch_from_dict(epoch) for epoch in json_objects.get_all(paths) if epoch is not None)

    def add_epoch(self, trial: str, epoch: Epoch) -> None:
        """Add an epoch. One that stands there already stays: a resumed trial may hand in its last one again."""
        json_objects.put_if_absent(self.trial_folder(trial) / "epochs" / f"{epoch.epoch:04d}.json", as_dict(epoch))

    def record(self, trial: str) -> Record | None:
        """A trial's record, with the test part where it has been opened; None while the trial has not ended."""
        plain = json_objects.get(self.trial_folder(trial) / "record.json")
        if plain is None:
            return None
        return replace(record_from_dict(plain), test=self.test(trial))

    def add_record(self, record: Record) -> None:
        """End a trial.

        Of an epoch that was trained twice, because its checkpoint was damaged, the one written down first counts.
        """
        written = {epoch.epoch: epoch for epoch in self.epochs(record.trial)}
        epochs = tuple(written.get(epoch.epoch, epoch) for epoch in record.epochs)
        if epochs != record.epochs:
            record = replace(record, epochs=epochs, seconds=sum(epoch.seconds for epoch in epochs))
        json_objects.put_if_absent(self.trial_folder(record.trial) / "record.json", as_dict(record))

    def test(self, trial: str) -> Evaluation | None:
        """How a finalist's run did on the test part; None before that was opened."""
        plain = json_objects.get(self.trial_folder(trial) / "test.json")
        return None if plain is None else evaluation_from_dict(plain)

    def add_test(self, trial: str, test: Evaluation) -> None:
        """Write down how a finalist's run did on the test part."""
        json_objects.put_if_absent(self.trial_folder(trial) / "test.json", as_dict(test))

    def records(self) -> list[Record]:
        """The records of all trials that have ended, in the order of their names."""
        found = object_store.map_concurrently(self.record, self.names(), object_store.is_remote(self.folder))
        return [record for record in found if record is not None]

    def drop_checkpoints(self, trial: str) -> None:
        """Free the disk: forget the weights of a trial that nobody will go on from."""
        object_store.remove_tree(self.checkpoints(trial))

    # --- decisions ------------------------------------------------------------------------------------------------

    def decisions(self, kind: Decision) -> list[dict[str, Any]]:
        """What was decided before the search, the finals or the opening of the test part, the newest last."""
        return [one for one in json_objects.get_all(json_objects.list_objects(self.folder / kind)) if one is not None]

    def decide(self, kind: Decision, decision: Mapping[str, Any]) -> None:
        """Write a decision down before anything is done on its ground."""
        json_objects.put_if_absent(self.folder / kind / f"{self._next(kind):04d}.json", dict(decision))

    # --- what it costs --------------------------------------------------------------------------------------------

    def spending(self) -> list[dict[str, Any]]:
        """What the machines of each start have cost, as far as it was written down (see cost.py), the first first."""
        return [
            one for one in json_objects.get_all(json_objects.list_objects(self.folder / "spending")) if one is not None
        ]

    def put_spending(self, start: int | None, machines: Sequence[Mapping[str, Any]]) -> int:
        """Write down what the machines of a start have come to so far, over what was written before.

        Args:
            start: what the first call said of this start; None for that call.
            machines: as `cost.CostLedger` describes them.
        """
        if start is None:
            start = self._next("spending")
        json_objects.replace(
            self.folder / "spending" / f"{start:04d}.json", {"machines": [dict(each) for each in machines]}
        )
        return start

    def _next(self, kind: str) -> int:
        taken = [
            int(name[:4]) for name in object_store.list_names(self.folder / kind) if name[:1].isdigit()
        ]  # damaged ones too
        return max(taken, default=0) + 1


def list_sweeps(storage: Path) -> Iterator[Store]:
    """Every sweep in a storage folder, oldest first."""
    plans = (
        (object_store.modified_ms(storage / name / "plan.json"), name) for name in object_store.list_names(storage)
    )
    return (Store(storage / name) for _, name in sorted((at, name) for at, name in plans if at is not None))
