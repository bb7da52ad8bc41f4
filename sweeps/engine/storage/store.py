"""A sweep's folder, its only state: one immutable JSON object per epoch and per trial. Resuming is running again.

    <storage>/<name>/
        plan.json                    the plan, written by the first start (see sweeps/engine/plan.py)
        trials/0007/config.json      trial 7: the sampler's parameters and the recipe built from them
        trials/0007/epochs/0003.json one Epoch
        trials/0007/record.json      the Record, once the trial has ended
        trials/0007/faults/0001.json a fault of the machine that has interrupted it (see trials/machine_faults.py)
        trials/0007/test.json        a finalist's Evaluation on the test part, once that has been opened
        trials/0007/predictions.json its probabilities on validation and test part, image by image; for reports only
        trials/0007/noise/blur.json  its scores under one kind of noise, so that an interruption costs one kind at most
        trials/0007/noise.json       its scores under all kinds, once they are complete
        trials/0007/checkpoints/     the last two while it runs, then those of the best few trials
        zero_effort/0001.json        accuracies on frozen features before any training; 0002: on the test part
        data_curve/0001.json         accuracies on frozen features at growing numbers of training images
        screening/0001.json          the backbones that passed screening, written before the search
        finals/0001.json             the finalists, written before their runs on new seeds
        openings/0001.json           their ranking, written before the test part is opened
        spending/0001.json           cost of the machines of the first start so far (see resources/cost.py)
        lease.json                   the driver that is running (see lease.py)
        study.sqlite3, logs/         copies for other tools, never read back

The runs of a finalist are trials of their own: `0007-s1`, `0007-s2`, ...; linear probes fitted before the search are
`screen-00`, ... Nothing is appended to a file and nothing is unpickled.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from sweeps.engine.storage import json_objects
from xfer.measure.held_out import HeldOutRun, run_as_dict, run_from_dict
from xfer.records import (
    NOISE_KINDS,
    CorruptionScore,
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
from xfer.storage.redaction import redact_all

log = logging.getLogger(__name__)

TRIAL_NAME = re.compile(r"\d{4,}(-s\d+)?|screen-\d{2,}")
"""Names of trials' folders. Anything else in their folder is not a trial, such as the `.DS_Store` of a file manager."""

_NOISE_SCORES = re.compile(rf"({'|'.join(NOISE_KINDS)})\.json")

Decision = Literal["zero_effort", "screening", "finals", "openings", "data_curve"]


@dataclass(frozen=True)
class Trial:
    """Definition of a trial, fixed before it starts."""

    name: str
    phase: Phase
    params: Mapping[str, Any]
    """The sampler's parameters, as Optuna stores them."""
    recipe: Mapping[str, Any]
    """The recipe as plain data (`Recipe.as_dict`)."""


@dataclass(frozen=True)
class Store:
    """Reads and writes a sweep's folder, which is local or in an object store.

    Any number of processes may read. The objects of a trial are written by the process that runs it.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The sweep's name, which is its folder's."""
        return self.folder.name

    @property
    def local_folder(self) -> Path:
        """Folder on this machine for files that only this machine uses: logs, and copies for other tools."""
        return local_cache.local_path(self.folder)

    # --- the plan -------------------------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any] | None:
        """Return the content of plan.json; None if no sweep has been started.

        Raises:
            ValueError: plan.json cannot be read. Nothing else in the folder has a meaning without it, so it is neither
                guessed nor replaced.
        """
        path = self.folder / "plan.json"
        try:
            plan: dict[str, Any] = redact_all(json_objects.read(path))  # earlier versions stored the whole command
            return plan
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read ({error}), and the trials next to it have no meaning without it. Restore "
                f"an undamaged copy, or start a new sweep with --fresh."
            ) from error

    def put_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan. A later start may replace it, but only to ask for more trials."""
        json_objects.replace(self.folder / "plan.json", dict(plan))

    def record_prices(self, prices: Mapping[str, Any]) -> None:
        """Add prices of node types to the plan, which are known only once such machines have started.

        The plan holds the latest prices; the prices paid are under spending/.
        """
        plan = self.plan() or {}
        merged = {**plan.get("prices", {}), **prices}
        if plan and merged != plan.get("prices", {}):
            self.put_plan({**plan, "prices": merged})

    # --- trials ---------------------------------------------------------------------------------------------------

    def trial_folder(self, trial: str) -> Path:
        """Return the folder of a trial."""
        return self.folder / "trials" / trial

    def checkpoints(self, trial: str) -> Path:
        """Return the folder of a trial's checkpoints (see xfer/training/checkpoints.py)."""
        return self.trial_folder(trial) / "checkpoints"

    def trial_names(self) -> list[str]:
        """Return the names of all trials that were ever started, sorted."""
        return [name for name in object_store.list_names(self.folder / "trials") if TRIAL_NAME.fullmatch(name)]

    def trials(self) -> list[Trial]:
        """Return every trial that was ever started, sorted by name."""
        names = self.trial_names()
        configs = json_objects.get_all(self.trial_folder(name) / "config.json" for name in names)
        return [Trial(name=name, **config) for name, config in zip(names, configs, strict=True) if config is not None]

    def add_trial(self, trial: Trial) -> None:
        """Write the definition of a trial that starts."""
        config = {"phase": trial.phase, "params": dict(trial.params), "recipe": dict(trial.recipe)}
        json_objects.put_if_absent(self.trial_folder(trial.name) / "config.json", config)

    def is_empty(self, trial: str) -> bool:
        """Return whether nothing was written for a trial: its driver was killed right after it made the folder."""
        return all(name.startswith(".") for name in object_store.list_names(self.trial_folder(trial)))

    def restore_trial(self, trial: Trial) -> None:
        """Write the definition of a trial again; one that differs is set aside."""
        json_objects.set_aside(self.trial_folder(trial.name) / "config.json")
        self.add_trial(trial)

    def set_aside(self, trial: str) -> Path:
        """Rename the folder of a trial, so that nothing in it is used and its name is free; return the new path."""
        folder = self.trial_folder(trial)
        aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.damaged")
        object_store.rename(folder, aside)
        log.warning("%s is renamed to %s", folder, aside.name)
        return aside

    def epochs(self, trial: str) -> tuple[Epoch, ...]:
        """Return the epochs of a trial, first to last."""
        paths = json_objects.list_objects(self.trial_folder(trial) / "epochs")
        return tuple(epoch_from_dict(epoch) for epoch in json_objects.get_all(paths) if epoch is not None)

    def add_epoch(self, trial: str, epoch: Epoch) -> None:
        """Write an epoch unless it exists: a resumed trial may report its last epoch again."""
        json_objects.put_if_absent(self.trial_folder(trial) / "epochs" / f"{epoch.epoch:04d}.json", as_dict(epoch))

    def record(self, trial: str) -> Record | None:
        """Return a trial's record, with its test evaluation if there is one; None until the trial has ended."""
        plain = json_objects.get(self.trial_folder(trial) / "record.json")
        if plain is None:
            return None
        return replace(record_from_dict(plain), test=self.test(trial))

    def add_record(self, record: Record) -> None:
        """Write the record of a trial that has ended.

        If an epoch was trained twice because its checkpoint was damaged, the one written first counts. An evaluation
        from before this record is of other weights, and set aside.
        """
        stored = {epoch.epoch: epoch for epoch in self.epochs(record.trial)}
        epochs = tuple(stored.get(epoch.epoch, epoch) for epoch in record.epochs)
        if epochs != record.epochs:
            record = replace(record, epochs=epochs, seconds=sum(epoch.seconds for epoch in epochs))
        written = json_objects.put_if_absent(self.trial_folder(record.trial) / "record.json", as_dict(record))
        if written and record.phase == "final" and self.has_test(record.trial):
            for name in ("noise.json", "noise", "test.json"):
                json_objects.set_aside(self.trial_folder(record.trial) / name)

    def faults(self, trial: str) -> list[str]:
        """Return the reasons of the machine faults that have interrupted a trial, first to last."""
        paths = json_objects.list_objects(self.trial_folder(trial) / "faults")
        return [fault["reason"] for fault in json_objects.get_all(paths) if fault is not None]

    def add_fault(self, trial: str, reason: str) -> int:
        """Write a machine fault that has interrupted a trial; return the number of its faults so far."""
        number = self._next_number(f"trials/{trial}/faults")
        path = self.trial_folder(trial) / "faults" / f"{number:04d}.json"
        json_objects.put_if_absent(path, {"reason": reason})
        return number

    def test(self, trial: str) -> Evaluation | None:
        """Return the evaluation of a finalist's run on the test part; None until that has been opened."""
        plain = json_objects.get(self.trial_folder(trial) / "test.json")
        if plain is None:
            return None
        if not plain.get("noisy"):  # earlier versions stored both in one object
            plain |= json_objects.get(self.trial_folder(trial) / "noise.json") or {}
        return evaluation_from_dict(plain)

    def has_test(self, trial: str) -> bool:
        """Return whether a finalist's run has been evaluated on the test part, without reading the result."""
        return object_store.exists(self.trial_folder(trial) / "test.json")

    def add_test(self, trial: str, test: Evaluation) -> None:
        """Write the evaluation of a finalist's run on the test part."""
        json_objects.put_if_absent(self.trial_folder(trial) / "test.json", as_dict(test))

    def held_out(self, trial: str) -> HeldOutRun | None:
        """Return the predictions of a finalist's run; None before the test part is opened and in earlier versions."""
        plain = json_objects.get(self.trial_folder(trial) / "predictions.json")
        return None if plain is None else run_from_dict(plain)

    def add_held_out(self, trial: str, run: HeldOutRun) -> None:
        """Write the predictions of a finalist's run."""
        json_objects.put_if_absent(self.trial_folder(trial) / "predictions.json", run_as_dict(run))

    def noise_kinds(self, trial: str) -> list[str]:
        """Return the kinds of noise under which a finalist's run has been evaluated, sorted."""
        return [path.stem for path in json_objects.list_objects(self.trial_folder(trial) / "noise", _NOISE_SCORES)]

    def add_noise(self, trial: str, scores: Sequence[CorruptionScore]) -> None:
        """Write the scores of a finalist's run under one kind of noise."""
        path = self.trial_folder(trial) / "noise" / f"{scores[0].kind}.json"
        json_objects.put_if_absent(path, {"noisy": [asdict(score) for score in scores]})

    def complete_noise(self, trial: str) -> bool:
        """Make the scores of a finalist's run under noise part of its evaluation (`test`), if there are all kinds.

        Returns:
            Whether there are.
        """
        paths = [self.trial_folder(trial) / "noise" / f"{kind}.json" for kind in NOISE_KINDS]
        scores = [plain["noisy"] for plain in json_objects.get_all(paths) if plain is not None]
        if len(scores) < len(paths):
            return False
        json_objects.put_if_absent(self.trial_folder(trial) / "noise.json", {"noisy": [*chain.from_iterable(scores)]})
        return True

    def records(self) -> list[Record]:
        """Return the records of all trials that have ended, sorted by name."""
        records = object_store.map_concurrently(
            self.record, self.trial_names(), concurrent=object_store.is_remote(self.folder)
        )
        return [record for record in records if record is not None]

    def drop_checkpoints(self, trial: str) -> None:
        """Remove the checkpoints of a trial that will not be resumed."""
        object_store.remove_tree(self.checkpoints(trial))

    # --- decisions ------------------------------------------------------------------------------------------------

    def decisions(self, kind: Decision) -> list[dict[str, Any]]:
        """Return the decisions and measurements of a kind, latest last."""
        return self._objects(kind)

    def decide(self, kind: Decision, decision: Mapping[str, Any]) -> None:
        """Write a decision, before acting on it."""
        json_objects.put_if_absent(self.folder / kind / f"{self._next_number(kind):04d}.json", dict(decision))

    # --- cost -----------------------------------------------------------------------------------------------------

    def spending(self) -> list[dict[str, Any]]:
        """Return the cost of each start's machines as last written (see resources/cost.py), first start first."""
        return self._objects("spending")

    def put_spending(self, start: int | None, machines: Sequence[Mapping[str, Any]]) -> int:
        """Write the cost of a start's machines so far, replacing what was written before.

        Args:
            start: the number of the start; None for its first call.
            machines: the machines, as `cost.CostLedger` describes them.

        Returns:
            The number of the start.
        """
        if start is None:
            start = self._next_number("spending")
        path = self.folder / "spending" / f"{start:04d}.json"
        json_objects.replace(path, {"machines": [dict(machine) for machine in machines]})
        return start

    def _objects(self, kind: str) -> list[dict[str, Any]]:
        objects = json_objects.get_all(json_objects.list_objects(self.folder / kind))
        return [value for value in objects if value is not None]

    def _next_number(self, kind: str) -> int:
        names = object_store.list_names(self.folder / kind)  # damaged objects too: their numbers are taken
        numbers = [int(match[1]) for name in names if (match := re.match(r"(\d{4,})\.json", name))]
        return max(numbers, default=0) + 1


def list_sweeps(storage: Path) -> Iterator[Store]:
    """Return the store of every sweep in a storage folder, oldest first."""
    names = object_store.list_names(storage)
    started = [(object_store.modified_ms(storage / name / "plan.json"), name) for name in names]
    return (Store(storage / name) for _, name in sorted((time, name) for time, name in started if time is not None))
