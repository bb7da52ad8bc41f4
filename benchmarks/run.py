"""How many times as fast is this project as the script that one would write instead? Runs both on one machine.

    python -m benchmarks.run probes     64 linear probes of 10 epochs, total time of the command
    python -m benchmarks.run finetune   images per second of full fine-tuning
    python -m benchmarks.run search     time until within a point of the best accuracy that either side reaches

Each side is a whole command in its own process, started as a user would start it, in alternating order. `--tune` first
measures which setting of the plain script is fastest on this machine and saves it in the scratch folder. `--write`
updates benchmarks/RESULTS.md. Finished runs of the plain script are saved in the scratch folder, so the same command
resumes after an interruption; `--again` repeats them. `--smoke` runs the same path at a small size.

Run nothing else at the same time.
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
    """Define the command line."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("row", choices=COMPARISONS)
    flags.add_argument("--weights", type=Path, default=DATA / "weights" / "mobilenetv2_100.safetensors")
    flags.add_argument("--backbone", default="mobilenetv2_100")
    flags.add_argument("--image-size", type=int, help="default: 128 for photos, 64 for drawings")
    flags.add_argument(
        "--photos", type=Path, default=DATA / "hymenoptera", help="probes, finetune: one folder per class"
    )
    flags.add_argument("--drawings", type=Path, default=DATA / "quickdraw", help="search: QuickDraw's bitmaps")
    flags.add_argument(
        "--cars", type=Path, default=DATA / "stanford_cars", help="search: Stanford Cars in the original layout"
    )
    flags.add_argument("--only", choices=("quickdraw", "cars"), help="search: one of the two data sets")
    flags.add_argument("--per-class", type=int, nargs=2, default=(100, 100), metavar=("TRAIN", "VAL"), help="drawings")
    flags.add_argument("--car-classes", type=int, default=30)
    flags.add_argument("--trials", type=int, help="default: probes 64, search 20")
    flags.add_argument("--epochs", type=int, help="default: probes 10, finetune 8, search 6")
    flags.add_argument("--repeats", type=int, default=3, help="search: number of seeds; of folds for the cars")
    flags.add_argument("--plain-trials", type=int, help="probes: run the plain script on fewer trials and extrapolate")
    flags.add_argument(
        "--until-decided",
        action="store_true",
        help="search: run ours first, and continue the plain script until it reaches our accuracy or has taken 3 times "
        "as long as ours (10 times for random search)",
    )
    flags.add_argument("--cold-only", action="store_true", help="search: run ours once, without caches")
    flags.add_argument("--strategy", default="clip", help="finetune: clip or naive")
    flags.add_argument(
        "--ours", default="", metavar="FLAGS", help='additional flags of our side, as in "--concurrent=1"'
    )
    flags.add_argument(
        "--setting", type=parse_setting, metavar="W,T,C", help="plain: loader processes, threads, trials"
    )
    flags.add_argument("--channels-last", action="store_true", help="plain: use the memory format that ours uses")
    flags.add_argument("--tune", action="store_true", help="find the fastest setting of the plain script")
    flags.add_argument("--scratch", type=Path, default=Path("runs/benchmarks"))
    flags.add_argument("--again", action="store_true", help="repeat runs that are stored in the scratch folder")
    flags.add_argument("--smoke", action="store_true", help="check that everything works, at a small size")
    flags.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    return flags


def main() -> None:
    """Run one comparison, print it and, with `--write`, update the page."""
    args = build_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # stops the running command too
    title, lines = COMPARISONS[args.row](args)
    command = f"    python -m benchmarks.run {shlex.join(sys.argv[1:])}"
    name = f"{args.row} {args.only}" if args.only else args.row
    text = results_page.section(name, title, [*lines, "", command, "", results_page.describe_machine()])
    text = text.replace(str(args.scratch), "SCRATCH")  # a path on this machine
    print(f"\n{text}")
    if args.write:
        page = results_page.RESULTS_FILE.read_text() if results_page.RESULTS_FILE.exists() else ""
        results_page.RESULTS_FILE.write_text(results_page.replace_section(page, name, text))


if __name__ == "__main__":
    main()
