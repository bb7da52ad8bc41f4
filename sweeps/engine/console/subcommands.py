"""Subcommands: how a program of several commands is run, and what it says where one cannot be done."""

from __future__ import annotations

import sys
from typing import NoReturn

from tyro.extras import SubcommandApp


def run_command(app: SubcommandApp, program: str, about: str | None) -> NoReturn:
    """Run the command that was asked for, and exit; with status 2 and one message where the input was wrong.

    Args:
        app: the commands; each gives its exit status.
        program: what is typed to get here.
        about: what it is for.
    """
    try:
        status = app.cli(prog=program, description=about)
    except (ValueError, OSError) as error:  # a storage that cannot be reached is an OSError
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
