"""MATLAB files, read in a process of its own: some damaged ones end the process that reads them.

scipy's reader follows sizes and types in the file, and a file with wrong ones can crash it or take any amount of memory
(seen with a mutant of an annotation file). The process has limits, and hands back text, numbers and rows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEMORY_BYTES = 4 * 2**30
"""Address space of the process that reads; 16,000 annotations take 50 MB."""
SECONDS = 120
"""Seconds that reading may take; 16,000 annotations take one."""


def read_mats(variables: Mapping[Path, str]) -> dict[Path, list[Any]]:
    """Return the elements of a variable of each file, read in one process, because starting it takes half a second.

    Args:
        variables: name of the variable to read, by file.

    Returns:
        By file: texts and numbers or, for a structure array, a dict for each row.

    Raises:
        ValueError: a file cannot be read; the message names the first and says why.
    """
    # Isolated, and as a file instead of a module: nothing else of this package is imported.
    requests = [text for file, variable in variables.items() for text in (str(file.absolute()), variable)]
    try:
        ended = subprocess.run(
            [sys.executable, "-I", __file__, *requests], capture_output=True, timeout=SECONDS, check=False
        )
        problem = f"it ends the process that reads it (signal {-ended.returncode})" if ended.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"it was not read within {SECONDS} s"
    if problem and len(variables) > 1:  # which of them?
        return {file: read_mats({file: variable})[file] for file, variable in variables.items()}
    answers = [{"error": problem}] if problem else json.loads(ended.stdout)
    for (file, variable), answer in zip(variables.items(), answers, strict=True):
        if "error" in answer:
            raise ValueError(f"{file} is not a MATLAB file with the variable `{variable}`: {answer['error']}")
    return {file: answer["elements"] for file, answer in zip(variables, answers, strict=True)}


def _main(*requests: str) -> None:
    """Print a JSON list with the elements of each variable, or with the error."""
    import numpy as np
    from scipy.io import loadmat

    def plain(value: Any) -> Any:
        if isinstance(value, np.void) and value.dtype.names:
            return {name: plain(value[name]) for name in value.dtype.names}
        if isinstance(value, np.ndarray):
            return [plain(element) for element in value.reshape(-1)]
        return value.item() if isinstance(value, np.generic) else value

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = []
    for file, variable in zip(requests[::2], requests[1::2], strict=True):
        try:
            elements = loadmat(file, squeeze_me=True, variable_names=[variable])[variable].reshape(-1)
            answers.append(json.dumps({"elements": [plain(element) for element in elements]}))
        except Exception as error:  # scipy raises anything from TypeError to zlib.error on a damaged file
            answers.append(json.dumps({"error": f"{type(error).__name__}: {error}"}))
    print(f"[{', '.join(answers)}]")


if __name__ == "__main__":
    _main(*sys.argv[1:])
