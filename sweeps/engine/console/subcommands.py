"""Run a program with several commands, and report wrong input in one message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from tyro.extras import SubcommandApp


def program_name(module: str) -> str:
    """Return how the program was invoked: `sweeps` as an installed command, else `python -m sweeps`.

    Args:
        module: name of the module, which is also that of the command.
    """
    return module if Path(sys.argv[0]).name == module else f"python -m {module}"


def run_command(app: SubcommandApp, program: str, description: str | None) -> NoReturn:
    """Run the command named on the command line and exit with its status.

    On a ValueError or OSError, print one message and exit with status 2.

    Args:
        app: the commands, each of which returns its exit status.
        program: how the program is invoked, for help texts.
        description: what the program does, for help texts.
    """
    try:
        status = app.cli(prog=program, description=description)
    except (ValueError, OSError) as error:  # unreachable storage raises an OSError
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
