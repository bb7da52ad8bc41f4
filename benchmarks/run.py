"""How many times as fast is this as the script that one would write instead? Both sides, in turn, on one machine.

    python -m benchmarks.run probes     64 linear probes of 10 epochs, from the command to its end
    python -m benchmarks.run finetune   images a second of full fine-tuning
    python -m benchmarks.run search     time until within a point of the best accuracy that either side finds

Each side is a whole command in a process of its own, started as a user would, in alternating order. `--tune` first
tries how the plain script uses this machine best, prints what each way cost and keeps the best one in the scratch
folder. `--write` puts the result into benchmarks/RESULTS.md. Finished runs of the plain script are kept in the scratch
folder, so that the same command goes on where it was interrupted; `--again` runs them anew. `--smoke` is the same path
in small.

Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from benchmarks import results_page
from benchmarks.comparisons import COMPARISONS
from benchmarks.script_tuning import parse_setting

DATA = Path("../shared/data")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("row", choices=COMPARISONS)
    flags.add_argument("--weights", type=Path, default=DATA / "weights" / "mobilenetv2_100.safetensors")
    flags.add_argument("--backbone", default="mobilenetv2_100")
    flags.add_argument("--image-size", type=int, help="of photos, 128 unless given, and of drawings, 64")
    flags.add_argument("--photos", type=Path, default=DATA / "hymenoptera", help="probes, finetune: a folder per class")
    flags.add_argument("--drawings", type=Path, default=DATA / "quickdraw", help="search: QuickDraw's bitmaps")
    flags.add_argument("--cars", type=Path, default=DATA / "stanford_cars", help="search: the original layout")
    flags.add_argument("--only", choices=("quickdraw", "cars"), help="search: one of the two data sets")
    flags.add_argument("--per-class", type=int, nargs=2, default=(100, 100), metavar=("TRAIN", "VAL"), help="drawings")
    flags.add_argument("--car-classes", type=int, default=30)
    flags.add_argument("--trials", type=int, help="probes 64, search 20 unless given")
    flags.add_argument("--epochs", type=int, help="probes 10, finetune 8, search 6 unless given")
    flags.add_argument("--repeats", type=int, default=3, help="search: as many seeds; of the cars as many folds")
    flags.add_argument("--plain-trials", type=int, help="probes: run the plain script on fewer, and scale it up")
    flags.add_argument(
        "--until-decided",
        action="store_true",
        help="search: ours first, and let the plain script go on until it has reached what ours found or has taken so "
        "long that ours was 3 times sooner (10 times, at random)",
    )
    flags.add_argument("--cold-only", action="store_true", help="search: ours once only, on nothing that is cached")
    flags.add_argument("--strategy", default="clip", help="finetune: clip or naive")
    flags.add_argument("--ours", default="", metavar="FLAGS", help='further flags of our side, as in "--concurrent=1"')
    flags.add_argument(
        "--setting", type=parse_setting, metavar="W,T,C", help="plain: loader processes, threads, trials"
    )
    flags.add_argument("--channels-last", action="store_true", help="plain: images in that order, as ours has them")
    flags.add_argument("--tune", action="store_true", help="try out which setting is the plain script's best")
    flags.add_argument("--scratch", type=Path, default=Path("runs/benchmarks"))
    flags.add_argument("--again", action="store_true", help="run anew what the scratch folder holds")
    flags.add_argument("--smoke", action="store_true", help="whether it works, not how fast it is")
    flags.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    return flags


def main() -> None:
    """Run one comparison, print it and, where asked, write it down."""
    asked = build_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what it has started ends with it
    title, lines = COMPARISONS[asked.row](asked)
    command = f"    python -m benchmarks.run {shlex.join(sys.argv[1:])}"
    name = f"{asked.row} {asked.only}" if asked.only else asked.row
    text = results_page.section(name, title, [*lines, "", command, "", results_page.describe_machine()])
    text = text.replace(str(asked.scratch), "SCRATCH")  # a folder of this machine only
    print(f"\n{text}")
    if asked.write:
        page = results_page.RESULTS_FILE.read_text() if results_page.RESULTS_FILE.exists() else ""
        results_page.RESULTS_FILE.write_text(results_page.replace_section(page, name, text))


if __name__ == "__main__":
    main()
