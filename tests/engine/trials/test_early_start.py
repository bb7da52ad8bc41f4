"""Early start of Ray, and what a sweep imports before its plan is written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.trials import early_start, ray_connection
from tests.sweep_commands import ROOT

LATER = {"ray", "mlflow", "pandas", "matplotlib", "scipy", "sklearn", "sqlalchemy", "alembic", "pyarrow"}
"""Packages that take a tenth of a second or more to import, and that nothing needs before the plan is written."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of a connection that stands for Ray's."""
    calls: list[str] = []
    monkeypatch.setattr(ray_connection, "connect_ray", lambda: calls.append("connect"))
    monkeypatch.setattr(ray_connection, "disconnect_ray", lambda: calls.append("disconnect"))
    return calls


def start_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ray-start"]


def test_ray_is_connected_once_and_stopped_at_the_end(calls: list[str]) -> None:
    with early_start.stopped_at_end():
        early_start.start()
        early_start.start()
        early_start.wait()
        assert early_start.is_started()
        assert calls == ["connect"]
    assert not early_start.is_started()
    assert calls == ["connect", "disconnect"]


def test_the_thread_that_has_started_ray_lives_until_ray_is_stopped(calls: list[str]) -> None:
    with early_start.stopped_at_end():
        early_start.start()
        early_start.wait()
        (thread,) = start_threads()  # Linux kills Ray's processes when it ends
        assert thread.is_alive()
    thread.join(10)
    assert start_threads() == []


def test_the_driver_leaves_half_of_the_cores_to_the_processes_of_ray(calls: list[str]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with early_start.stopped_at_end():
            early_start.start()
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_without_an_early_start_there_is_nothing_to_wait_for_or_to_stop(calls: list[str]) -> None:
    with early_start.stopped_at_end():
        early_start.wait()
    assert calls == []


def test_ray_is_stopped_if_an_error_comes_before_anything_needs_it(calls: list[str]) -> None:
    early_start.start()
    with pytest.raises(KeyboardInterrupt), early_start.stopped_at_end():
        raise KeyboardInterrupt
    assert calls == ["connect", "disconnect"]


def test_the_reason_for_which_ray_cannot_start_is_raised_where_it_is_needed(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError("Ray could not be started on this machine: no space")

    monkeypatch.setattr(ray_connection, "connect_ray", fail)
    with early_start.stopped_at_end():
        early_start.start()
        with pytest.raises(ValueError, match="no space"):
            early_start.wait()
    assert calls == []


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_the_driver_does_not_wait_for_a_start_that_anything_has_ended(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(ray_connection, "connect_ray", fail)
    with early_start.stopped_at_end():
        early_start.start()
        with pytest.raises(type(error)):
            early_start.wait()
    assert calls == []


def test_a_sweep_that_begins_with_fine_tuning_needs_ray(prepared: Prepared) -> None:
    assert early_start.needs_ray(prepared)


def test_a_sweep_that_joins_a_cluster_has_joined_it_before(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not early_start.needs_ray(prepared)


def test_a_sweep_of_heads_alone_trains_them_in_the_driver(
    prepared: Prepared,
) -> None:
    heads = prepare(replace(prepared.plan, strategies=("linear_probe",)), prepared.pack.folder.parent.parent)
    assert not early_start.needs_ray(heads)


@pytest.mark.slow
def test_what_a_sweep_imports_before_its_plan_is_written() -> None:
    code = (
        "import sys; from sweeps.engine import launch, sweep; from sweeps.engine.planning import prepare; "
        "from sweeps.engine.trials import early_start, preload; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(result.stdout.split())
    assert {"torch", "timm", "optuna"} <= imported
    assert imported & LATER == set()


@pytest.mark.slow
def test_garbage_is_collected_after_the_imports() -> None:
    code = "import gc, sweeps.engine.trials.preload; print(gc.isenabled())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


@pytest.mark.slow
def test_ray_starts_while_the_driver_multiplies_matrices() -> None:
    """OpenBLAS with several threads hangs if a process is forked meanwhile."""
    code = """
import numpy as np
from sweeps.engine.trials import early_start

if __name__ == "__main__":
    matrix = np.ones((700, 700))
    with early_start.stopped_at_end():
        early_start.start()
        while not early_start.is_ready():
            matrix @ matrix
        early_start.wait()
    print("started")
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, env=environment)
    assert result.stdout.split()[-1:] == ["started"], result.stderr
