"""One recipe, without a sweep around it.

python -m xfer advise  --data DIR --backbone NAME --weights FILE    what to try, in seconds
python -m xfer train   --data DIR --backbone NAME --weights FILE    train one recipe
python -m xfer predict --model DIR IMAGE ...                        ask the network that came of it
python -m xfer catalog [NAME]                                       everything that a recipe can choose from
"""

from __future__ import annotations

import argparse
import os
import sys
from types import ModuleType

from xfer.commands import advise, catalog, predict, train
from xfer.devices.host_memory import retain_freed_memory
from xfer.training.epochs import DivergedError

COMMANDS: dict[str, ModuleType] = {"advise": advise, "train": train, "predict": predict, "catalog": catalog}


def parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    found = argparse.ArgumentParser(
        prog="python -m xfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        said = (module.__doc__ or "").partition(": ")[2].strip()
        module.add_arguments(commands.add_parser(name, help=said, description=said))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; the exit status: 0 done, 1 diverged, 2 wrong input, 130 interrupted."""
    asked = parser().parse_args(arguments)
    retain_freed_memory()
    try:
        COMMANDS[asked.command].run(asked)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads has read enough, as in `catalog | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains on its way out
    except DivergedError as error:
        print(f"error: {error}. Try a lower --learning-rate, or a lower --clip-norm", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or "while reading or writing"
        print(f"error: {error.strerror or error}: {where}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
