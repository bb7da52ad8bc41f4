"""A stored run is trained again from its recipe: equal bit for bit, within the tolerance, or not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweeps.engine.launch import claim_plan
from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.storage.store import Store
from sweeps.engine.trials.reproduction import compare, find_weights, train_again
from xfer.records import Evaluation, Record
from xfer.run import Run


@pytest.fixture(scope="module")
def stored(
    one_thread: None, make_plan: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Record]:
    """A run of the control, evaluated on the test set, and the store of its sweep."""
    storage = tmp_path_factory.mktemp("storage")
    prepared = prepare(make_plan(strategies=("clip",), epochs=2), storage)
    store = Store(storage / "colours")
    claim_plan(prepared, store)
    recipe = prepared.recipe(prepared.space.control())
    run = Run(recipe, prepared.pack, prepared.backbones[0].file, torch.device("cpu"))
    list(run)
    return store, replace(run.record("0000-s1", "final"), test=run.evaluate("test"))


def test_a_run_on_the_same_machine_is_equal_bit_for_bit(stored: tuple[Store, Record], weights: Path) -> None:
    store, record = stored
    before = sorted(store.folder.rglob("*"))
    epochs: list[tuple[int, int]] = []
    again = train_again(store, record, weights, on_epoch=lambda *numbers: epochs.append(numbers))
    assert epochs == [(1, 2), (2, 2)]
    assert again.test is not None
    assert compare(record, again) == compare(record, record)
    assert compare(record, again).differences == ()
    assert sorted(store.folder.rglob("*")) == before


def test_another_seed_is_told_from_the_stored_run(stored: tuple[Store, Record], weights: Path) -> None:
    store, record = stored
    other = train_again(store, replace(record, recipe={**record.recipe, "seed": 99}), weights)
    first, *_ = compare(record, other).differences
    assert first.startswith("epoch 1: train_loss ")


def evaluation(correct: int, loss: float = 0.5) -> Evaluation:
    answers = tuple(index < correct for index in range(100))
    return Evaluation("test", loss, tuple(range(100)), answers)


@pytest.mark.parametrize(
    ("then", "now", "differences", "outside"),
    [
        (90, 90, (), ()),
        (
            *(90, 93),
            ("test set: loss 0.5 stored, 0.5 now; 3 of 100 images right in one run and wrong in the other",),
            (),
        ),
        (
            *(90, 80),
            ("test set: loss 0.5 stored, 0.5 now; 10 of 100 images right in one run and wrong in the other",),
            ("test accuracy 80.0% lies outside the 95% interval of the stored 90.0% (82.6 to 94.5, 100 images)",),
        ),
    ],
)
def test_accuracies_must_lie_in_the_interval_of_the_stored_ones(
    stored: tuple[Store, Record], then: int, now: int, differences: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    _, record = stored
    comparison = compare(replace(record, test=evaluation(then)), replace(record, test=evaluation(now)))
    assert (comparison.differences, comparison.outside) == (differences, outside)


def test_measurements_of_the_machine_are_not_compared(stored: tuple[Store, Record]) -> None:
    _, record = stored
    slower = replace(record, epochs=tuple(replace(epoch, seconds=9.0, memory_mb=1.0) for epoch in record.epochs))
    assert compare(record, slower).differences == ()


def test_the_weights_are_found_in_the_storage_by_their_content(stored: tuple[Store, Record], weights: Path) -> None:
    store, record = stored
    name, digest = str(record.recipe["backbone"]), str(record.recipe["weights"])
    folder = store.folder.parent / "weights"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"others")
    shutil.copy(weights, folder / "b.safetensors")
    assert find_weights(store, name, digest) == folder / "b.safetensors"
    with pytest.raises(ValueError, match=r"a\.safetensors has other content\. Give the file .* with --weights FILE"):
        find_weights(store, name, digest, folder / "a.safetensors")


def test_missing_images_are_named_with_what_to_do(stored: tuple[Store, Record], weights: Path, tmp_path: Path) -> None:
    _, record = stored
    with pytest.raises(ValueError, match="prepared images of the run are not in .*: repeat the sweep's command"):
        train_again(Store(tmp_path / "runs" / "colours"), record, weights)
