"""Everything that takes long counts its steps; otherwise the watchdog would end it."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from tests.xfer.batched_probes.test_group import RecordedEmbeddings
from xfer.batched_probes.compatibility import head_inits
from xfer.batched_probes.group import ProbeGroup
from xfer.devices import heartbeat
from xfer.feature_extraction.extract import extract_features
from xfer.linear_heads import fit_closed_form
from xfer.run import Run
from xfer.training.networks import build_network, build_preprocessor

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    heartbeat.restart()
    return now


def test_the_slowest_step_is_the_longest_time_between_two_of_them(clock):
    for seconds in (9.0, 1.0, 3.0, 2.0):  # the first one is the start, in which files may be fetched
        clock[0] += seconds
        heartbeat.beat()
    assert (heartbeat.current().steps, heartbeat.current().slowest_seconds) == (4, 3.0)


def test_waiting_for_another_process_is_not_a_slow_step(clock):
    heartbeat.beat()
    with heartbeat.waiting():
        assert heartbeat.current().is_waiting
        clock[0] += 500
    clock[0] += 1
    heartbeat.beat()
    assert not heartbeat.current().is_waiting
    assert heartbeat.current().slowest_seconds == 1.0


def test_something_new_starts_at_zero(clock):
    heartbeat.beat()
    heartbeat.restart()
    assert heartbeat.current() == heartbeat.Heartbeat()


def steps_of(work) -> int:
    heartbeat.restart()
    work()
    return heartbeat.current().steps


@pytest.mark.parametrize("strategy", ["naive", "linear_probe", "logistic_probe", "lp_ft"])
def test_training_counts_every_step_and_every_batch_that_is_evaluated(pack, weights, make_recipe, strategy):
    recipe = make_recipe(strategy=strategy, batch_size=4, **({} if strategy == "logistic_probe" else {"epochs": 2}))
    run = Run(recipe, pack, weights, CPU)
    assert steps_of(lambda: list(run)) >= (2 * (len(run.split.train) // 4) if recipe.uses_gradient_steps else 1)
    assert steps_of(lambda: run.evaluate("test")) >= 1


def test_features_and_heads_in_closed_form_count(pack, weights, make_recipe):
    model = build_network(make_recipe(strategy="linear_probe"), weights)
    prepare = build_preprocessor(make_recipe(), model, CPU)
    assert steps_of(lambda: extract_features(model, pack, np.arange(len(pack.labels)), prepare, batch_size=4)) >= 8
    rows, labels = torch.randn(30, 5), torch.arange(30) % 3
    assert steps_of(lambda: fit_closed_form("logistic", rows, labels, 3, [1.0])) > 1


def test_probes_that_are_trained_together_count_their_batches(pack, weights, make_recipe):
    recipe = make_recipe(strategy="linear_probe", optimizer="sgd", batch_size=4, epochs=2)
    embeddings = RecordedEmbeddings(pack, weights, make_recipe)
    group = ProbeGroup([recipe], pack, embeddings, head_inits([recipe], weights), CPU)
    assert steps_of(lambda: list(group)) >= 2 * (len(group.split.train) // 4)
