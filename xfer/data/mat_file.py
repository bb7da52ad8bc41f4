"""MATLAB files, read in a process of its own: some damaged ones end the process that reads them.

scipy's reader follows sizes and types in the file, and a file with wrong ones can crash it or take any amount of memory
(seen with a mutant of an annotation file). The process has limits, and hands back text, numbers and rows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 4 * 2**30
"""Address space of the process that reads; 16,000 annotations take 50 MB."""
SECONDS = 120
"""Seconds that reading may take; 16,000 annotations take one."""


def read_mat(path: Path, key: str) -> list[Any]:
    """Return the elements of a variable: texts and numbers or, for a structure array, a dict for each row.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    # Isolated, and as a file instead of a module: nothing else of this package is imported.
    command = [sys.executable, "-I", __file__, str(path.absolute()), key]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it was not read within {SECONDS} s") from None
    if ended.returncode < 0:
        raise ValueError(f"it ends the process that reads it (signal {-ended.returncode}), so it is damaged")
    if ended.returncode != 0:
        raise ValueError((ended.stderr.decode(errors="replace").strip().splitlines() or ["unknown error"])[-1])
    elements: list[Any] = json.loads(ended.stdout)
    return elements


def _main(path: str, key: str) -> None:
    import numpy as np
    from scipy.io import loadmat

    def plain(value: Any) -> Any:
        if isinstance(value, np.void) and value.dtype.names:
            return {name: plain(value[name]) for name in value.dtype.names}
        if isinstance(value, np.ndarray):
            return [plain(element) for element in value.reshape(-1)]
        return value.item() if isinstance(value, np.generic) else value

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    elements = loadmat(path, squeeze_me=True, variable_names=[key])[key].reshape(-1)
    print(json.dumps([plain(element) for element in elements]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
