"""The limit on open files, which Ray and object stores need more of than some systems allow by default."""

from __future__ import annotations

import resource

WANTED_OPEN_FILES, MIN_OPEN_FILES = 65_536, 1_024
"""Number of open files to which the limit is raised if the system allows it, and the least that a sweep needs."""


def raise_open_file_limit() -> None:
    """Raise this process's limit on open files as far as the system allows.

    Raises:
        ValueError: the limit stays too low for a sweep.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        raise ValueError(
            f"the limit on open files is {soft}, and a sweep needs {MIN_OPEN_FILES}: run `ulimit -n {MIN_OPEN_FILES}`, "
            f"or raise the hard limit in /etc/security/limits.conf"
        )
