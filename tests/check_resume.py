"""Checks the storage of a sweep that was killed and given again: `python tests/check_resume.py STORAGE`.

It reads the files themselves and nothing of ours, because ours is what is checked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def find_faults(sweep: Path) -> list[str]:
    """What is wrong with a sweep's folder after it was interrupted and went on to its end."""
    found = []
    trials = sorted(path for path in (sweep / "trials").iterdir() if path.is_dir())
    for trial in trials:
        epochs = [_read(path) for path in sorted((trial / "epochs").glob("*.json"))]
        numbers = [epoch["epoch"] for epoch in epochs]
        names = [path.stem for path in sorted((trial / "epochs").glob("*.json"))]
        if numbers != list(range(1, len(numbers) + 1)) or names != [f"{number:04d}" for number in numbers]:
            found.append(f"{trial.name}: its epochs are {numbers} in {names}")
        if not (trial / "record.json").exists():
            found.append(f"{trial.name}: has no record.json")
        elif (record := _read(trial / "record.json"))["trial"] != trial.name or record["epochs"] != epochs:
            found.append(f"{trial.name}: its record says something else than its epochs")
    searched = [trial.name for trial in trials if _read(trial / "config.json")["phase"] == "search"]
    asked = _read(sweep / "plan.json")["trials"]
    if len(searched) != asked:
        found.append(f"{asked} trials were asked for, {len(searched)} are there")
    if not any(at > 0 for at in _resumed(sweep)):
        found.append("no trial went on from an epoch > 0")
    return [*found, *(f"{path}: was damaged" for path in sorted(sweep.rglob("*.damaged")))]


def main(storage: Path) -> int:
    """Say what is wrong, or what was seen; the exit status."""
    sweeps = sorted(path.parent for path in storage.glob("*/plan.json"))
    wrong = [f"{sweep.name}: {fault}" for sweep in sweeps for fault in find_faults(sweep)]
    if not sweeps:
        wrong = [f"{storage}: no sweep has begun here"]
    for sweep in sweeps if not wrong else ():
        trials = len(list((sweep / "trials").glob("*/record.json")))
        print(f"{sweep.name}: {trials} trials, each with one record; taken up again after epochs {_resumed(sweep)}")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


def _resumed(sweep: Path) -> list[int]:
    records = map(_read, sorted((sweep / "trials").glob("*/record.json")))
    return [at for record in records for at in record["resumed_at"]]


def _read(path: Path) -> Any:
    plain = json.loads(path.read_bytes())
    return {key: value for key, value in plain.items() if key != "sha256"}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
