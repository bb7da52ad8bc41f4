"""Check the storage of a sweep that was killed and resumed: `python tests/check_resume.py STORAGE`.

Reads the files without the code that wrote them, because that code is under test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def find_faults(sweep: Path) -> list[str]:
    """Return what is wrong with the folder of a sweep that was interrupted, resumed and finished."""
    faults = []
    trials = sorted(path for path in (sweep / "trials").iterdir() if path.is_dir())
    for trial in trials:
        epochs = [_read(path) for path in sorted((trial / "epochs").glob("*.json"))]
        numbers = [epoch["epoch"] for epoch in epochs]
        names = [path.stem for path in sorted((trial / "epochs").glob("*.json"))]
        if numbers != list(range(1, len(numbers) + 1)) or names != [f"{number:04d}" for number in numbers]:
            faults.append(f"{trial.name}: its epochs are {numbers} in the files {names}")
        if not (trial / "record.json").exists():
            faults.append(f"{trial.name}: has no record.json")
        elif (record := _read(trial / "record.json"))["trial"] != trial.name or record["epochs"] != epochs:
            faults.append(f"{trial.name}: its record differs from its epochs")
    searched = [trial.name for trial in trials if _read(trial / "config.json")["phase"] == "search"]
    planned = _read(sweep / "plan.json")["trials"]
    if len(searched) != planned:
        faults.append(f"{planned} trials were planned, {len(searched)} exist")
    if not any(at > 0 for at in _resumed(sweep)):
        faults.append("no trial resumed from an epoch > 0")
    return [*faults, *(f"{path}: was damaged" for path in sorted(sweep.rglob("*.damaged")))]


def main(storage: Path) -> int:
    """Print the faults, or a summary of each sweep; return the exit status."""
    sweeps = sorted(path.parent for path in storage.glob("*/plan.json"))
    faults = [f"{sweep.name}: {fault}" for sweep in sweeps for fault in find_faults(sweep)]
    if not sweeps:
        faults = [f"{storage}: contains no sweep"]
    for sweep in sweeps if not faults else ():
        trials = len(list((sweep / "trials").glob("*/record.json")))
        print(f"{sweep.name}: {trials} trials, each with one record; resumed after epochs {_resumed(sweep)}")
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


def _resumed(sweep: Path) -> list[int]:
    records = map(_read, sorted((sweep / "trials").glob("*/record.json")))
    return [at for record in records for at in record["resumed_at"]]


def _read(path: Path) -> Any:
    plain = json.loads(path.read_bytes())
    return {key: value for key, value in plain.items() if key != "sha256"}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
