"""Commands for single recipes, without a sweep.

python -m xfer inspect --data DIR                                   show what the data hold and where every file went
python -m xfer advise  --data DIR --backbone NAME --weights FILE    recommend strategies, before any training
python -m xfer train   --data DIR --backbone NAME --weights FILE    train one recipe
python -m xfer predict --model DIR IMAGE ...                        classify photos with the trained network
python -m xfer catalog [NAME]                                       list everything that a recipe can choose from
"""

from __future__ import annotations

import argparse
import os
import sys
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


def parser() -> argparse.ArgumentParser:
    """Builds the parser for all commands and their flags."""
    result = argparse.ArgumentParser(
        prog="python -m xfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
