"""Says which stored sweep a new one resembles, and in what they differ.

A sweep is named by a hash of its plan, so one added photo starts a new sweep where a user may expect the old one to
continue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sweeps.engine.planning.plan_file import plan_differences
from sweeps.engine.storage import json_objects
from sweeps.engine.storage.store import Store
from sweeps.reporting.formatting import pluralize
from xfer.storage import object_store
from xfer.storage.redaction import redact

MAX_PLANS = 64
"""Maximum number of stored plans that are compared. In an object store each takes a request."""

MAX_SHOWN, MAX_SHOWN_LENGTH = 3, 90
"""Maximum number of differences that are listed, and of characters of each."""

NOT_SWEEPS = frozenset({"packs", "features", "weights", "probes", "mlartifacts", "mlflow.db"})
"""Names in a storage folder that are no sweeps."""

UNREADABLE_ERRORS = (OSError, ValueError)
"""Errors of reading a plan that another tool has written or that is damaged; it is then not compared."""


@dataclass(frozen=True)
class Differences:
    """What has changed from one plan to another, in words."""

    data: tuple[str, ...]
    """Changes of the images, labels or parts."""
    settings: tuple[str, ...]
    """Changes of anything else."""

    def __len__(self) -> int:
        return len(self.data) + len(self.settings)


def describe_similar_sweep(plan: Mapping[str, Any], store: Store) -> tuple[str, ...]:
    """Return lines on the stored sweep that a new one resembles most; none if there is no sweep of such data.

    Args:
        plan: the plan.json of the new sweep, with `name`.
        store: the store of the new sweep.
    """
    storage = store.folder.parent
    candidates = [
        (len(differences), -_created(other).timestamp(), other, differences)
        for other in _stored_plans(storage, plan)
        if _is_related(other, plan)
        for differences in [describe_differences(other, plan)]
    ]
    if not candidates:
        return ()
    *_, other, differences = min(candidates, key=lambda candidate: candidate[:2])
    trials = Store(storage / other["name"]).trial_names()
    return similarity_lines(plan["name"], other, differences, sum("-" not in trial for trial in trials))


def similarity_lines(name: str, other: Mapping[str, Any], differences: Differences, trials: int) -> tuple[str, ...]:
    """Return two lines on a new sweep and the stored sweep that it resembles.

    Args:
        name: the new sweep.
        other: the plan.json of the stored one.
        differences: of the new one from the stored one.
        trials: number of trials that the stored one has started.
    """
    old = other["name"]
    started = f"{old}, started {_created(other):%Y-%m-%d %H:%M} UTC with {pluralize(trials, 'trial')} so far"
    if not differences:
        same = f"{name} is a new sweep with the plan of {started}: only the names differ."
        return same, f"To continue that one instead, add --name {old}"
    listed = [*differences.data, *differences.settings]
    shown = "; ".join(_shorten(text) for text in listed[:MAX_SHOWN])
    more = f"; and {len(listed) - MAX_SHOWN} more" if len(listed) > MAX_SHOWN else ""
    command = f"repeat its command: {redact(other['provenance']['command'])}"
    undo = "restore its data and " if differences.data else ""
    return (
        f"{name} is a new sweep, because trials are only compared under one plan. It resembles {started}. "
        f"Different: {shown}{more}.",
        f"To continue that one instead, {undo}{command if differences.settings else f'give --name {old}'}",
    )


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """Describe how a plan differs from an older one.

    Args:
        old: the plan.json of a stored sweep.
        new: the plan.json of another.
    """
    changes = plan_differences({**old, "trials": 0}, {**new, "trials": 0})
    settings = tuple(change for change in changes if not change.startswith("data."))
    data: tuple[str, ...] = ()
    if len(settings) < len(changes):
        data = tuple(_data_changes(old["data"], new["data"], resized=old["image_size"] != new["image_size"]))
    return Differences(data, tuple(sorted(settings, key=lambda change: change.startswith("space."))))


def _data_changes(old: Mapping[str, Any], new: Mapping[str, Any], resized: bool) -> Iterable[str]:
    """Yield the changes of the data, in words.

    Args:
        old: the key `data` of a plan.
        new: that of another, in which something differs.
        resized: whether the image size differs, which changes the hash of the pack too.
    """
    added = [name for name in new["classes"] if name not in old["classes"]]
    removed = [name for name in old["classes"] if name not in new["classes"]]
    for names, verb in ((added, "added"), (removed, "removed")):
        if names:
            yield f"{'class' if len(names) == 1 else 'classes'} {', '.join(names)} {verb}"
    by_class = "images" in old and "images" in new  # earlier versions did not store them
    before, now = _counts(old, by_class), _counts(new, by_class)
    counted = [(before[key], now[key], key) for key in before if key in now and before[key] != now[key]]
    for count, current, key in sorted(counted, key=lambda change: -abs(change[1] - change[0])):
        yield f"{pluralize(current, 'image')}{f' of {key}' if key else ''} instead of {count:,}"
    if added or removed or counted:
        return
    parts = [{part: data[part] for part in ("train", "val", "test")} for data in (old, new)]
    if parts[0] != parts[1]:
        yield "parts: " + " -> ".join("/".join(map(str, part.values())) for part in parts) + " (train/val/test)"
    elif old["split"] != new["split"]:
        yield f"parts: {old['split']} -> {new['split']}"
    elif old["pack"] != new["pack"] and not resized:
        yield "some images, labels or parts (the number of images of each class is the same)"
    elif old["source"] != new["source"]:
        yield f"layout of the data: {old['source']} -> {new['source']}"


def _counts(data: Mapping[str, Any], by_class: bool) -> dict[str, int]:
    """Return the number of images by class, or of all under ""."""
    if by_class:
        return dict(zip(data["classes"], data["images"], strict=True))
    return {"": data["train"] + data["val"] + data["test"]}


def _is_related(other: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Return whether two plans are of one experiment and of data with the same content, name or classes."""
    keys = ("pack", "folder", "classes")
    return bool(
        other["experiment"] == plan["experiment"] and any(other["data"][key] == plan["data"][key] for key in keys)
    )


def _stored_plans(storage: Path, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the plans in a storage folder that may resemble a plan, without those that cannot be read."""
    names = [name for name in object_store.list_names(storage) if name not in NOT_SWEEPS and name != plan["name"]]
    prefix = plan["name"].rpartition("-")[0]
    names = sorted((name for name in names if not name.startswith(".")), key=lambda name: not name.startswith(prefix))
    plans = object_store.map_concurrently(
        lambda name: _read_plan(storage / name), names[:MAX_PLANS], concurrent=object_store.is_remote(storage)
    )
    return [other for other in plans if other is not None]


def _read_plan(folder: Path) -> dict[str, Any] | None:
    try:
        plan = json_objects.read(folder / "plan.json")
        described = {**plan, "name": folder.name}
        _is_related(described, described), _created(described), described["data"]["split"], described["image_size"]
    except (*UNREADABLE_ERRORS, LookupError, TypeError):
        return None
    return described


def _created(plan: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(plan["provenance"]["created"])


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[: MAX_SHOWN_LENGTH - 1]}…"
