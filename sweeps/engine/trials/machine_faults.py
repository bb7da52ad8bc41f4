"""Machine faults: errors of the machine, not of the recipe, such as a full disk. Their trials are tried again.

A trial whose machine fails gets no record, so the next start of the sweep resumes it. Each fault is counted in the
store: after `MAX_FAULTS` the trial has failed. Errors that the recipe causes, such as a NaN loss, are final at once.
"""

from __future__ import annotations

from contextlib import suppress

from sweeps.engine.storage.folders import MachineFaultError, disk_problem
from sweeps.engine.storage.store import Store
from xfer.distributed.launcher import WorkerLostError
from xfer.storage import local_cache

MAX_FAULTS = 3
"""Number of machine faults after which a trial has failed: it may be the recipe after all that uses up a resource."""

MAX_FAULTS_IN_A_ROW = 3
"""Number of trials in a row that end by a machine fault before a sweep stops: the next ones would fare no better."""

MESSAGES = (
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory: you tried to allocate",
    "std::bad_alloc",
    "uncorrectable ECC error",
    "device(s) is/are busy or unavailable",
    "GPU is lost",
)
"""Parts of messages of errors that libraries raise as a RuntimeError for a fault of the machine."""


def is_machine_fault(error: BaseException) -> bool:
    """Return whether an error is the machine's, so that the same trial may succeed later.

    >>> is_machine_fault(OSError(28, "No space left on device")), is_machine_fault(ValueError("the loss is nan"))
    (True, False)
    """
    if isinstance(error, OSError | MemoryError | WorkerLostError):
        return True
    if isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES):
        return True
    return error.__cause__ is not None and is_machine_fault(error.__cause__)


def try_again(store: Store, trial: str, reason: str) -> bool:
    """Count a machine fault of a trial; return whether the next start of the sweep is to try it again."""
    with suppress(OSError):  # the disk is full: the fault is not counted
        return store.add_fault(trial, reason) < MAX_FAULTS
    return True


def final_reason(reason: str) -> str:
    """Return the error of a trial that is not tried again.

    >>> final_reason("its process was lost 4 times")
    'its process was lost 4 times (and a fault of the machine in each of 3 starts)'
    """
    return f"{reason} (and a fault of the machine in each of {MAX_FAULTS} starts)"


def interruption_line(store: Store, trial: str) -> str | None:
    """Return a line on the last machine fault of a trial without a record; None if there was none."""
    with suppress(OSError):
        faults = store.faults(trial)
        reason = faults[-1] if faults else disk_problem(local_cache.local_path(store.folder))
        return reason and f"trial {trial} was interrupted by a fault of the machine ({reason}) and will be tried again"
    return None


def check_faults_in_a_row(store: Store, count: int) -> None:
    """Check that not too many trials in a row were interrupted by machine faults.

    Raises:
        MachineFaultError: they were.
    """
    if count >= MAX_FAULTS_IN_A_ROW:
        problem = disk_problem(local_cache.local_path(store.folder)) or "the reasons are above"
        raise MachineFaultError(
            f"{count} trials in a row were interrupted by faults of the machine, so the sweep stops ({problem}). "
            f"Everything that was trained is in {store.folder}; once the cause is removed, the same command resumes"
        )
