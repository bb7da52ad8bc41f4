"""How many requests does a sweep with an object store as its storage make?

    python -m benchmarks.store_requests --epochs 10 --trials 100 --write

Counts the requests to a local S3 mock: of one trial from its start to its record, of a driver that resumes a sweep, and
of a report. Counts are exact. The duration of a request depends on the network; about 20 ms is typical.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.overhead import OUTPUT_FILE, replace_sections, section, table

REQUEST_KINDS = ("read", "list", "write", "remove")
USD_PER_THOUSAND = {"read": 0.0004, "list": 0.005, "write": 0.005, "remove": 0.0}
"""S3 Standard in us-east-1 (https://aws.amazon.com/s3/pricing/, 2026-11-25)."""


def request_kind(line: str) -> str:
    """Classify the request in a line of the server's log.

    >>> requests = ("GET /b/key", "GET /b?list-type=2&prefix=a", "PUT /b/key")
    >>> [request_kind(f'"{request} HTTP/1.1" 200 -') for request in requests]
    ['read', 'list', 'write']
    """
    match = re.search(r'"(\w+) (\S+)', re.sub(r"\x1b\[[\d;]*m", "", line))  # failed requests are logged in colour
    assert match is not None, line
    method, address = match.groups()
    if method in ("GET", "HEAD"):
        return "list" if "list-type=" in address else "read"
    return "remove" if method == "DELETE" or "?delete" in address else "write"


@contextmanager
def count_requests() -> Iterator[Counter[str]]:
    """Count the requests made inside the context, by kind."""
    counts: Counter[str] = Counter()

    class CountHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "HTTP/" in (line := record.getMessage()):
                counts[request_kind(line)] += 1

    log, handler = logging.getLogger("werkzeug"), CountHandler()
    log.addHandler(handler)
    try:
        yield counts
    finally:
        log.removeHandler(handler)


def measure_requests(epochs: int, trials: int) -> list[tuple[str, Counter[str]]]:
    """Count the requests of a trial, of a resuming driver and of a report.

    Args:
        epochs: epochs per trial.
        trials: number of trials in the sweep.

    Returns:
        Pairs of a description and the counts by kind.
    """
    import boto3
    from moto.server import ThreadedMotoServer

    from sweeps.engine.console.reports import load_results
    from sweeps.engine.storage.store import Store, Trial
    from sweeps.engine.trials.stage import trial_history
    from sweeps.engine.trials.trainable import failed_record
    from xfer.records import Epoch
    from xfer.storage import local_cache, object_store

    logging.getLogger("werkzeug").setLevel(logging.INFO)
    logging.getLogger("werkzeug").propagate = False
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "unused", "AWS_SECRET_ACCESS_KEY": "unused"}
    boto3.client("s3").create_bucket(Bucket="counted")
    store = Store(object_store.as_path("s3://counted/runs/sweep"))
    store.put_plan(PLAN | {"trials": trials, "epochs": epochs})
    counts = []

    def write_trial(name: str) -> None:
        store.add_trial(Trial(name, "search", {}, RECIPE | {"epochs": epochs}))
        folder = store.checkpoints(name)
        local_folder, epoch_list = local_cache.pull(folder), list[Epoch]()
        for number in range(1, epochs + 1):
            (local_folder / f"epoch-{number:04d}").write_bytes(b"weights")
            (local_folder / f"epoch-{number - 2:04d}").unlink(missing_ok=True)
            local_cache.push(local_folder, folder)
            epoch_list.append(Epoch(number, 0.5, 0.5, 0.5, 0.5, 1e-3, 1.0, 1.0, 50.0, 100.0, 500.0, 500.0))
            store.add_epoch(name, epoch_list[-1])
        config = {"trial": name, "phase": "search", "recipe": RECIPE | {"epochs": epochs}}
        store.add_record(replace(failed_record(config, "trains nothing"), epochs=tuple(epoch_list)))

    with count_requests() as trial_counts:
        write_trial("0000")
    counts.append((f"a trial of {epochs} epochs", trial_counts))
    for number in range(1, trials):
        write_trial(f"{number:04d}")
    with count_requests() as resume_counts:
        store.trials(), store.records(), trial_history(store)
    counts.append((f"a driver that resumes {trials} trials", resume_counts))
    with count_requests() as report_counts:
        load_results(store)
    counts.append((f"a report on {trials} trials", report_counts))
    server.stop()
    return counts


PLAN = {
    "name": "sweep",
    "experiment": "requests",
    "question": "How many?",
    "finalists": 0,
    "seeds": 1,
    "objective": ["accuracy"],
}
RECIPE: dict[str, object] = {
    "data": "0" * 64,
    "classes": 2,
    "image_size": 32,
    "backbone": "test_resnet",
    "weights": "",
    "strategy": {"name": "scratch"},
    "optimizer": {"name": "adam"},
    "schedule": {"name": "constant"},
    "augmentation": {"name": "none"},
    "mixing": {"name": "none"},
    "loss": {"name": "cross_entropy"},
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "batch_size": 32,
    "epochs": 10,
}


def request_table(counts_by_action: list[tuple[str, Counter[str]]]) -> str:
    """Format counts and their cost in US dollars as a Markdown table."""
    cells = []
    for action, counts in counts_by_action:
        cost = sum(counts[kind] * USD_PER_THOUSAND[kind] / 1000 for kind in REQUEST_KINDS)
        cells.append([action, *(str(counts[kind]) for kind in REQUEST_KINDS), f"${cost:.5f}"])
    return table(("what", *REQUEST_KINDS, "cost"), cells)


def main() -> None:
    """Count and print; with `--write`, update RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xfer-requests-") as scratch:
        os.environ["XFER_CACHE"] = scratch
        counts_table = request_table(measure_requests(args.epochs, args.trials))
    command = f"python -m benchmarks.store_requests --epochs {args.epochs} --trials {args.trials}"
    text = section("Requests to an object store", command, counts_table)
    print(text)
    if args.write:
        OUTPUT_FILE.write_text(replace_sections(OUTPUT_FILE.read_text(), [text]))


if __name__ == "__main__":
    main()
