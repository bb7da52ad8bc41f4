"""Evaluation: tasks that evaluate finished runs on the test part, first as it is, then under noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sweeps.engine.selection import is_frozen_head
from sweeps.engine.trials.trainable import open_finished_run, open_store
from xfer.measure.accuracy import Preprocess, evaluate
from xfer.measure.held_out import HeldOutRun, fit_temperature, predict_held_out
from xfer.measure.robustness import NOISES, accuracies_under, noise_sample
from xfer.records import Record
from xfer.run import Run
from xfer.training.inputs import RunInputs

MAX_NETWORK_BYTES = 2**30
"""Maximum size of the networks that a task holds in memory at a time; a single network may be larger."""


def evaluate_on_test(config: dict[str, Any]) -> None:
    """Evaluate a finished run on the test part, and on its mirror images, and store the result with its predictions.

    Args:
        config: as returned by `trainable.trial_config`.
    """
    run = open_finished_run(config)
    indices, prepare = run.split.test, run.inputs.transform.prepare
    logits: list[Tensor] = []
    batches = run.inputs.evaluation_batches(indices)
    test = evaluate(run.model, batches, prepare, "test", indices, flips=True, on_logits=logits.append)
    if run.frozen_body is not None:  # features are cached for the images alone
        test = replace(run.evaluate("test"), flip_correct=test.flip_correct)
    store = open_store(config["site"])
    store.add_held_out(config["trial"], _held_out(run, logits))  # first: a stored test evaluation ends the task
    store.add_test(config["trial"], test)


def _held_out(run: Run, test_logits: Sequence[Tensor]) -> HeldOutRun:
    """Return a run's predictions on validation and test part, with the temperature that fits the former."""
    indices, labels = run.split.val, run.pack.labels
    val_logits: list[Tensor] = []
    batches, prepare = run.inputs.evaluation_batches(indices), run.inputs.transform.prepare
    evaluate(run.model, batches, prepare, "val", indices, on_logits=val_logits.append)
    val, test = (torch.cat([*logits]).cpu().numpy() for logits in (val_logits, test_logits))
    temperature = fit_temperature(val, labels[indices])
    return HeldOutRun(
        temperature,
        predict_held_out(val, labels[indices], indices, temperature),
        predict_held_out(test, labels[run.split.test], run.split.test, temperature),
    )


def evaluate_under_noise(configs: list[dict[str, Any]]) -> None:
    """Evaluate finished runs on noisy copies of a sample of the test part, and store the scores after each kind.

    Each image is corrupted once for all runs of its size, and a frozen body that several runs share processes it once.
    Kinds whose scores are stored are skipped.

    Args:
        configs: as returned by `trainable.trial_config`, all of one sweep.
    """
    store = open_store(configs[0]["site"])
    missing = {config["trial"]: NOISES.keys() - set(store.noise_kinds(config["trial"])) for config in configs}
    networks: dict[str, _Network] = {}
    inputs: dict[str, RunInputs] = {}  # by pack: runs may differ in their image size
    packs = {config["trial"]: config["recipe"]["data"] for config in configs}
    for config in configs:
        if missing[config["trial"]]:
            run = open_finished_run(config)
            networks[config["trial"]] = _network(run, networks.values())
            inputs.setdefault(run.recipe.data, run.inputs)
            indices = noise_sample(run.pack.labels, run.split.test, run.recipe.split_seed)  # the same for all
    for kind, pack in product(NOISES, inputs):
        names = [name for name in networks if kind in missing[name] and packs[name] == pack]
        if names:
            predict = partial(_predict, [networks[name] for name in names])
            scores = accuracies_under(kind, predict, inputs[pack].evaluation_batches(indices), indices)
            for name, of_run in zip(names, scores, strict=True):
                store.add_noise(name, of_run)
    for name in missing:
        store.complete_noise(name)


def divide_runs(records: Iterable[Record], tasks: int, limit: int = MAX_NETWORK_BYTES) -> list[list[Record]]:
    """Divide runs into tasks of about equal duration, each within a memory limit for its networks.

    Heads on the frozen features of the same images and backbone stay together, because one pass of the body serves all
    of them.

    Args:
        records: the runs.
        tasks: number of tasks; more if the networks of one would exceed the limit, fewer if there are fewer runs.
        limit: maximum size of the networks of a task, in bytes. Runs that share a body count as one network.
    """
    networks: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        body = (record.recipe["data"], record.recipe["backbone"]) if is_frozen_head(record) else (record.trial,)
        networks.setdefault(body, []).append(record)
    divided: list[list[list[Record]]] = [[] for _ in range(max(1, tasks))]
    for runs in networks.values():
        min(divided, key=len).append(runs)
    return [runs for of_task in divided for runs in _split_by_size(of_task, limit)]


def _split_by_size(networks: Sequence[list[Record]], limit: int) -> Iterator[list[Record]]:
    """Join the runs of networks as long as the networks fit the limit together."""
    joined: list[Record] = []
    size = 0
    for runs in networks:
        network_bytes = 4 * (runs[0].parameters or 0)
        if joined and size + network_bytes > limit:
            yield joined
            joined, size = [], 0
        joined, size = [*joined, *runs], size + network_bytes
    if joined:
        yield joined


@dataclass(frozen=True, eq=False)
class _Network:
    """What a finished run computes from images: body, then head."""

    prepare: Preprocess
    body: nn.Module
    """The whole network if the head is None."""
    head: nn.Module | None
    identity: Mapping[str, Any] | None
    """Of a frozen body (`FrozenFeatures.identity`); None for a network that no other run shares."""


def _network(run: Run, others: Iterable[_Network]) -> _Network:
    """Return the network of a run. With the same frozen body as another one, it has that body instead of a copy."""
    model, prepare, frozen = run.model.eval(), run.inputs.transform.prepare, run.frozen_body
    if frozen is None:
        return _Network(prepare, model, None, None)
    body, head = frozen.split_model.lower.eval(), frozen.split_model.upper.eval()
    shared = (network.body for network in others if network.identity == frozen.identity)
    return _Network(prepare, next(shared, body), head, frozen.identity)


def _predict(networks: Sequence[_Network], images: Tensor) -> list[Tensor]:
    """Return the logits of each network; a shared body computes its features once."""
    features: dict[nn.Module, Tensor] = {}
    logits = []
    for network in networks:
        if network.body not in features:
            features[network.body] = network.body(network.prepare(images))
        outputs = features[network.body]
        logits.append(outputs if network.head is None else network.head(outputs))
    return logits
