"""Look at the data and train single recipes, without a sweep."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import ModuleType

from xfer.commands import advise, catalog, inspect, predict, train
from xfer.devices.host_memory import retain_freed_memory
from xfer.text_output import escape_unencodable, use_utf8
from xfer.training.epochs import DivergedError

COMMANDS: dict[str, ModuleType] = {
    "inspect": inspect,
    "advise": advise,
    "train": train,
    "predict": predict,
    "catalog": catalog,
}

EXAMPLE = """\
for example:
  {program} inspect --data photos                 # photos/<class>/*.jpg
  {program} advise --data photos
  {program} train --data photos --strategy lp_ft --out trained
  {program} predict --model trained/model photo.jpg
  {program} catalog lora

A sweep tries many recipes and reports the best: python -m sweeps
"""


def parser() -> argparse.ArgumentParser:
    """Builds the parser for all commands and their flags."""
    program = "xfer" if Path(sys.argv[0]).name == "xfer" else "python -m xfer"
    result = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        epilog=EXAMPLE.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").partition(": ")[2].strip()
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return result


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line. Exit status: 0 done, 1 diverged, 2 invalid input, 130 interrupted."""
    if arguments is None:
        use_utf8()
    escape_unencodable()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser().print_help()
        return 0
    args = parser().parse_args(arguments)
    retain_freed_memory()
    try:
        COMMANDS[args.command].run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as in `catalog | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python prints an error at exit
    except DivergedError as error:
        print(f"error: {error}. Try a lower --learning-rate, or a lower --clip-norm", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        location = error.filename or "while reading or writing"
        print(f"error: {error.strerror or error}: {location}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
