"""The limit on open files, seen from a process that was started with another one."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource
from sweeps.engine.resources.open_files import raise_open_file_limit
try:
    raise_open_file_limit()
except ValueError as error:
    print(error)
else:
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("limit", "output"),
    [
        ("ulimit -Sn 100; ulimit -Hn 2048", "2048\n"),
        ("ulimit -n 1024", "1024\n"),
        ("ulimit -n 200", "the limit on open files is 200, and a sweep needs 1024: run `ulimit -n 1024`"),
    ],
)
def test_the_limit_is_raised_as_far_as_the_system_allows_and_refused_if_that_is_too_little(
    limit: str, output: str
) -> None:
    command = ["bash", "-c", f'{limit}; exec "$0" -c "$1"', sys.executable, CODE]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert ended.stdout.startswith(output)
