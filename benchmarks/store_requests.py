"""How many requests does a sweep make whose storage is an object store?

    python -m benchmarks.store_requests --epochs 10 --trials 100 --write

Against a stand-in for S3 on this machine, that counts: what one trial makes from its beginning to its record, what a
driver makes that gives a sweep again, what a report makes, and what MLflow's mirror makes each time it looks. Counts
are exact; how long a request takes is a matter of the network, about 20 ms.
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
    """Which kind of request a line of the server's log is about.

    >>> [request_kind(f'"{said} HTTP/1.1" 200 -') for said in ("GET /b/key", "GET /b?list-type=2&prefix=a", "PUT /b/key")]
    ['read', 'list', 'write']
    """
    said = re.search(r'"(\w+) (\S+)', re.sub(r"\x1b\[[\d;]*m", "", line))  # what was refused is in colour
    assert said is not None, line
    method, address = said.groups()
    if method in ("GET", "HEAD"):
        return "list" if "list-type=" in address else "read"
    return "remove" if method == "DELETE" or "?delete" in address else "write"


@contextmanager
def count_requests() -> Iterator[Counter[str]]:
    """The requests that are made while this lasts, by kind."""
    found: Counter[str] = Counter()

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "HTTP/" in (line := record.getMessage()):
                found[request_kind(line)] += 1

    log, handler = logging.getLogger("werkzeug"), Count()
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)


def measure_requests(epochs: int, trials: int) -> list[tuple[str, Counter[str]]]:
    """What makes how many requests."""
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
    os.environ |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nobody"}
    boto3.client("s3").create_bucket(Bucket="counted")
    store = Store(object_store.as_path("s3://counted/runs/sweep"))
    store.put_plan(PLAN | {"trials": trials, "epochs": epochs})
    found = []

    def trained(name: str) -> None:
        store.add_trial(Trial(name, "search", {}, RECIPE | {"epochs": epochs}))
        folder = store.checkpoints(name)
        here, epochs_of = local_cache.pull(folder), list[Epoch]()
        for number in range(1, epochs + 1):
            (here / f"epoch-{number:04d}").write_bytes(b"weights")
            (here / f"epoch-{number - 2:04d}").unlink(missing_ok=True)
            local_cache.push(here, folder)
            epochs_of.append(Epoch(number, 0.5, 0.5, 0.5, 0.5, 1e-3, 1.0, 1.0, 50.0, 100.0, 500.0, 500.0))
            store.add_epoch(name, epochs_of[-1])
        config = {"trial": name, "phase": "search", "recipe": RECIPE | {"epochs": epochs}}
        store.add_record(replace(failed_record(config, "it trains nothing"), epochs=tuple(epochs_of)))

    with count_requests() as one:
        trained("0000")
    found.append((f"a trial of {epochs} epochs", one))
    for number in range(1, trials):
        trained(f"{number:04d}")
    with count_requests() as again:
        store.trials(), store.records(), trial_history(store)
    found.append((f"a driver that goes on with {trials} trials", again))
    with count_requests() as report:
        load_results(store)
    found.append((f"a report on {trials} trials", report))
    server.stop()
    return found


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


def request_table(found: list[tuple[str, Counter[str]]]) -> str:
    """What makes how many requests, and what they cost, as Markdown."""
    cells = []
    for what, counts in found:
        cost = sum(counts[kind] * USD_PER_THOUSAND[kind] / 1000 for kind in REQUEST_KINDS)
        cells.append([what, *(str(counts[kind]) for kind in REQUEST_KINDS), f"${cost:.5f}"])
    return table(("what", *REQUEST_KINDS, "cost"), cells)


def main() -> None:
    """Count, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="put the numbers into benchmarks/RESULTS.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xfer-requests-") as scratch:
        os.environ["XFER_CACHE"] = scratch
        found = request_table(measure_requests(asked.epochs, asked.trials))
    command = f"python -m benchmarks.store_requests --epochs {asked.epochs} --trials {asked.trials}"
    said = section("Requests to an object store", command, found)
    print(said)
    if asked.write:
        OUTPUT_FILE.write_text(replace_sections(OUTPUT_FILE.read_text(), [said]))


if __name__ == "__main__":
    main()
