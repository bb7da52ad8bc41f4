"""GPU fractions, step shapes, cached probes and the memory limit of a process, all tested without a GPU."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.resources import memory_probe, torch_compile
from sweeps.engine.resources.budget import Budget
from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.resources.gpu_sharing import (
    CUDA_CONTEXT_BYTES,
    GPU_FRACTIONS,
    MEMORY_MARGIN,
    GpuAllocation,
    MemoryProbe,
    gpu_fraction,
    memory_fraction,
)
from sweeps.engine.resources.memory_probe import (
    GpuKind,
    load_or_run_probes,
    probe_path,
    probe_recipes,
    read_probe,
    write_probe,
)
from sweeps.engine.resources.step_shape import StepShape, canonical_recipe, last_epoch_moment, step_shape
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials import ray_connection, ray_tune, trainable
from sweeps.engine.trials.placement import Placement
from sweeps.engine.trials.trainable import TrialContext, trial_config
from xfer.methods.strategies import STRATEGIES

GIGABYTE = 2**30
CARDS = {"H100": 80 * GIGABYTE, "T4": 16 * GIGABYTE, "laptop": 4 * GIGABYTE}
"""Memory of some GPUs, in bytes."""
H100 = GpuKind("H100", CARDS["H100"], "bfloat16")


class FakeMeter:
    """A memory meter that returns the given peaks and records its calls."""

    device = torch.device("cpu")

    def __init__(self, *peaks: int) -> None:
        self.calls: list[str] = []
        self._peaks = iter(peaks)

    def begin(self) -> None:
        self.calls.append("begin")

    def wait(self) -> None:
        self.calls.append("wait")

    def peak_bytes(self) -> int:
        self.calls.append("bytes")
        return next(self._peaks)


# GPU fractions


@pytest.mark.parametrize("gpu_bytes", CARDS.values(), ids=CARDS)
def test_a_fraction_is_the_smallest_with_room_for_the_memory_and_the_margin(gpu_bytes: int) -> None:
    for thousandth in range(1201):
        needed = gpu_bytes * thousandth // 1000
        fraction = gpu_fraction(needed, gpu_bytes)
        assert fraction in GPU_FRACTIONS
        minimum = needed * (1 + MEMORY_MARGIN) / gpu_bytes
        assert fraction == min((size for size in GPU_FRACTIONS if size >= minimum), default=1.0)


def test_fractions_change_exactly_where_the_margin_begins() -> None:
    for smaller, larger in pairwise(GPU_FRACTIONS):
        edge = int(Fraction(smaller) * CARDS["H100"] / Fraction(str(1 + MEMORY_MARGIN)))
        assert gpu_fraction(edge - 1, CARDS["H100"]) == smaller
        assert gpu_fraction(edge + 2, CARDS["H100"]) == larger


def test_no_memory_gets_the_smallest_fraction_and_too_much_memory_a_whole_gpu() -> None:
    assert gpu_fraction(0, CARDS["T4"]) == 0.125
    assert gpu_fraction(10 * CARDS["T4"], CARDS["T4"]) == 1.0
    for needed, gpu_bytes in ((-1, 1), (1, 0), (1, -5)):
        with pytest.raises(ValueError, match="must be at least 0 and gpu_bytes above 0"):
            gpu_fraction(needed, gpu_bytes)


@pytest.mark.parametrize("gpu_bytes", CARDS.values(), ids=CARDS)
def test_limited_processes_fit_on_a_gpu_together_with_their_contexts(gpu_bytes: int) -> None:
    for fraction in GPU_FRACTIONS[:-1]:
        limit = memory_fraction(fraction, gpu_bytes)
        assert 0 < limit <= fraction
        if fraction * gpu_bytes >= 2 * CUDA_CONTEXT_BYTES:
            assert (limit * gpu_bytes + CUDA_CONTEXT_BYTES) / fraction <= gpu_bytes * (1 + 1e-9)
    assert memory_fraction(1.0, gpu_bytes) == memory_fraction(2.0, gpu_bytes) == 1.0


@pytest.mark.parametrize("fraction", GPU_FRACTIONS[:-1])
def test_the_measured_memory_fits_under_the_limit_that_follows_from_it(fraction: float) -> None:
    gpu_bytes = CARDS["H100"]
    needed = int(fraction * gpu_bytes / (1 + MEMORY_MARGIN)) - 1  # the most that gets this fraction
    assert gpu_fraction(needed, gpu_bytes) == fraction
    assert needed - CUDA_CONTEXT_BYTES < memory_fraction(fraction, gpu_bytes) * gpu_bytes


# Step shapes


def test_settings_that_do_not_affect_memory_do_not_affect_the_shape(make_recipe: Any) -> None:
    shape = step_shape(make_recipe())
    for change in (
        {"learning_rate": 0.5},
        {"optimizer": "adam"},
        {"augmentation": "randaugment"},
        {"mixing": "cutmix"},
        {"loss": "focal"},
        {"schedule": "onecycle"},
        {"seed": 3},
        {"epochs": 7},
        {"strategy": "clip"},
        {"strategy": "scratch"},
        {"strategy": "freeze_then_unfreeze"},
        {"strategy": "layer_decay"},
        {"strategy": "l2_sp"},
    ):
        assert step_shape(make_recipe(**{"epochs": 4, **change})) == shape, change


def test_settings_that_affect_memory_change_the_shape(make_recipe: Any) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"batch_size": 16},
        {"image_size": 64},
        {"backbone": "test_resnet"},
        {"colour": "grey_stem"},
        {"activation": "mish"},
        {"head": "mlp"},
        {"backbone_args": {"drop_path_rate": 0.1}},
        {"strategy": "linear_probe"},
        {"strategy": {"name": "train_last", "blocks": 1}},
        {"strategy": {"name": "train_last", "blocks": 2}},
        {"strategy": "bitfit"},
        {"strategy": {"name": "early_cut", "stage": 2}},
    ]
    shapes = Counter(step_shape(make_recipe(**change)) for change in changes)
    assert set(shapes.values()) == {1}
    assert len(shapes) == len(changes)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("lora", "drop_early")])
def test_every_strategy_has_a_shape(make_recipe: Any, strategy: str) -> None:
    shape = step_shape(make_recipe(strategy=strategy, epochs=4))
    assert 0 < shape.moving <= shape.parameters


def test_a_closed_form_head_has_the_shape_of_a_trained_one(make_recipe: Any) -> None:
    probe = step_shape(make_recipe(strategy="linear_probe", batch_size=64))
    assert {step_shape(make_recipe(strategy=name)) for name in ("ridge_probe", "logistic_probe")} == {probe}


def test_a_shape_counts_frozen_blocks_and_trained_parameters(make_recipe: Any, make_run: Any) -> None:
    full = step_shape(make_recipe())
    probe = step_shape(make_recipe(strategy="linear_probe"))
    upper = step_shape(make_recipe(strategy={"name": "train_last", "blocks": 2}))
    record = make_run(make_recipe()).record()
    assert (full.frozen_blocks, full.parameters, full.moving) == (0, record.parameters, record.trainable_parameters)
    assert probe.moving == make_run(make_recipe(strategy="linear_probe")).record().trainable_parameters
    assert upper.frozen_blocks == probe.frozen_blocks - 2 > 0


def test_a_larger_shape_dominates_a_smaller_one_and_not_vice_versa(make_recipe: Any) -> None:
    def shape(**changes: Any) -> StepShape:
        return step_shape(make_recipe(**changes))

    larger = shape(batch_size=16)
    for smaller in (
        shape(batch_size=8),
        shape(batch_size=16, strategy="linear_probe"),
        shape(batch_size=16, strategy={"name": "train_last", "blocks": 1}),
        shape(batch_size=16, strategy={"name": "early_cut", "stage": 2}),
    ):
        assert larger.dominates(smaller)
        assert not smaller.dominates(larger)
    assert larger.dominates(larger)
    for other in (shape(image_size=16, batch_size=16), shape(activation="mish"), shape(backbone="test_vit")):
        assert not larger.dominates(other)
        assert not other.dominates(larger)


# Probes


def test_a_probe_is_two_steps_and_an_evaluated_batch_and_waits_for_the_device(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, ...]] = []
    original = memory_probe.Learner.step

    def step(learner: Any, inputs: torch.Tensor, *others: Any) -> Any:
        steps.append(tuple(inputs.shape))
        return original(learner, inputs, *others)

    monkeypatch.setattr(memory_probe.Learner, "step", step)
    meter = FakeMeter(3 * GIGABYTE)
    recipe = make_recipe(batch_size=4, optimizer="adam", mixing="cutmix", strategy="freeze_then_unfreeze", epochs=4)
    probe = memory_probe.measure_step(recipe, meter, "float32")
    assert steps == [(4, 3, 32, 32)] * 2
    assert meter.calls == ["begin", *["wait"] * 5, "bytes"]
    assert (probe.shape, probe.bytes) == (step_shape(recipe), 3 * GIGABYTE)
    assert probe.seconds > 0


def test_a_strategy_that_unfreezes_its_backbone_later_is_probed_unfrozen(make_recipe: Any) -> None:
    recipe = make_recipe(strategy={"name": "freeze_then_unfreeze", "freeze_epochs": 3}, epochs=4)
    learner = memory_probe.Learner(canonical_recipe(recipe), None, torch.device("cpu"))
    learner.set_pace(last_epoch_moment(recipe))
    assert all(parameter.requires_grad for parameter in learner.model.parameters())


def test_a_stored_probe_is_read_back_unchanged(tmp_path: Path, make_recipe: Any) -> None:
    probe = MemoryProbe(step_shape(make_recipe()), 12345, 0.25)
    path = probe_path(tmp_path / "probes", probe.shape, H100)
    assert read_probe(path) is None
    write_probe(path, probe)
    assert read_probe(path) == probe


def test_another_gpu_shape_or_precision_has_another_probe(tmp_path: Path, make_recipe: Any) -> None:
    shape = step_shape(make_recipe())
    kinds = [H100, replace(H100, name="A100"), replace(H100, bytes=1), replace(H100, precision="float32")]
    paths = {probe_path(tmp_path, shape, kind) for kind in kinds}
    paths.add(probe_path(tmp_path, replace(shape, batch_size=99), H100))
    assert len(paths) == 5


def test_each_shape_is_probed_only_once(tmp_path: Path, make_recipe: Any) -> None:
    recipes = [
        make_recipe(strategy=strategy, batch_size=batch_size, learning_rate=rate)
        for strategy in ("naive", "clip", "linear_probe")
        for batch_size in (4, 8)
        for rate in (0.1, 0.2)
    ]
    calls: list[Any] = []

    def call(function: Any, arguments: list[tuple[Any, ...]]) -> None:
        assert function is memory_probe.probe_on_gpu
        for folder, kind, batch in arguments:
            calls.append([fields["batch_size"] for fields in batch])
            built = [memory_probe.recipe_from_dict(fields) for fields in batch]
            probe_recipes(Path(folder), GpuKind(**kind), built, FakeMeter(*range(GIGABYTE, 9 * GIGABYTE, GIGABYTE)))

    float32 = replace(H100, precision="float32")
    allocation = load_or_run_probes(recipes, tmp_path, float32, call)
    assert calls == [[4, 8, 4, 8]]  # one task for the backbone; naive and clip have the same shape
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert load_or_run_probes(recipes, tmp_path, float32, call) == allocation
    assert len(calls) == 1


def test_a_recipe_whose_probe_fails_is_skipped_and_gets_a_whole_gpu(
    tmp_path: Path, make_recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeMeter):
        def wait(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access")

    allocation = load_or_run_probes(
        [make_recipe()],
        tmp_path,
        replace(H100, precision="float32"),
        lambda function, calls: probe_recipes(tmp_path, replace(H100, precision="float32"), [make_recipe()], Broken()),
    )
    assert allocation.probes == []
    assert allocation.of(make_recipe().as_dict()) == allocation.smallest_fraction() == 1.0
    assert "could not be probed" in caplog.text


def test_a_trial_gets_its_fraction_from_the_smallest_probe_that_dominates_it(make_recipe: Any) -> None:
    larger, smaller = step_shape(make_recipe(batch_size=64)), step_shape(make_recipe(batch_size=32))
    probes = [MemoryProbe(larger, 30 * GIGABYTE, 0.1), MemoryProbe(smaller, 15 * GIGABYTE, 0.1)]
    allocation = GpuAllocation(probes, CARDS["H100"])

    def fraction(**changes: Any) -> float:
        return allocation.of(make_recipe(**changes).as_dict())

    assert fraction(batch_size=64) == 0.5
    assert fraction(batch_size=48) == 0.5
    assert fraction(batch_size=32, learning_rate=0.3, optimizer="adam") == 0.25
    assert fraction(batch_size=16, strategy="linear_probe") == 0.25
    assert fraction(batch_size=65) == 1.0, "no shape as large was probed"
    assert fraction(batch_size=16, backbone="test_vit") == 1.0
    assert allocation.smallest_fraction() == 0.25


# torch.compile


def test_compiling_is_worth_it_if_it_saves_twice_its_cost(make_recipe: Any) -> None:
    needed = 2 * torch_compile.COMPILE_SECONDS / torch_compile.COMPILE_SAVING
    steady = make_recipe()
    assert not torch_compile.worth_compiling(steady, 1000, needed / 1000)
    assert torch_compile.worth_compiling(steady, 1001, needed / 1000)
    changing = make_recipe(strategy={"name": "freeze_then_unfreeze", "freeze_epochs": 2}, epochs=4)
    assert not torch_compile.worth_compiling(changing, 10**9, 1.0), "it would compile twice"


def test_only_a_shape_that_was_probed_itself_is_compiled(make_recipe: Any) -> None:
    recipe = make_recipe(batch_size=32, epochs=10)
    allocation = GpuAllocation([MemoryProbe(step_shape(recipe), GIGABYTE, 0.1)], CARDS["H100"])
    assert allocation.compiled(recipe.as_dict(), images=100_000)  # 31,250 steps of 0.1 s
    assert not allocation.compiled(recipe.as_dict(), images=1_000)
    assert not allocation.compiled(make_recipe(batch_size=16, epochs=10).as_dict(), images=100_000)


# The memory limit of a process


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """A fake GPU with 80 GiB; returns the memory limits that are set, with the device."""
    limits: list[tuple[float, int]] = []
    properties = type("Properties", (), {"name": "H100", "total_memory": CARDS["H100"]})()
    monkeypatch.setattr(trainable, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: limits.append((fraction, device))
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return limits


def test_the_memory_limit_of_a_process_is_set_again_for_each_trial(fake_gpu: list[tuple[float, int]]) -> None:
    for fraction in (0.5, 1.0, 0.125):
        assert trainable.limit_gpu_memory(fraction) == torch.device("cuda")
    assert fake_gpu == [(memory_fraction(fraction, CARDS["H100"]), 0) for fraction in (0.5, 1.0, 0.125)]
    assert fake_gpu[1] == (1.0, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_trial_without_a_gpu_sees_none(fake_gpu: list[tuple[float, int]]) -> None:
    assert trainable.limit_gpu_memory(0.0) == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert fake_gpu == []


def test_the_local_gpu_kind_is_that_of_the_first_gpu(fake_gpu: list[tuple[float, int]]) -> None:
    assert memory_probe.local_gpu_kind() == H100


# In a sweep


def test_ray_is_asked_for_the_resources_in_a_trials_context() -> None:
    context = TrialContext("sweep", "pack", None, threads=2, gpus=0.25)
    config = trial_config(Trial("0000", "search", {}, {}), context)
    assert ray_tune.placement_resources(ray_tune.to_param_space(config)).required_resources == {"CPU": 2, "GPU": 0.25}
    two = trial_config(Trial("0000", "search", {}, {}), replace(context, gpus=2.0))
    assert ray_tune.placement_resources(ray_tune.to_param_space(two)).bundles == [
        {"CPU": 2, "GPU": 2}
    ]  # one bundle is of one node
    without_gpu = trial_config(Trial("0000", "search", {}, {}), replace(context, gpus=0.0))
    assert ray_tune.placement_resources(ray_tune.to_param_space(without_gpu)).required_resources == {"CPU": 2}


@pytest.mark.parametrize(("shares", "expected"), [(True, 0.25), (False, 1.0)])
def test_memory_probes_determine_the_gpu_fraction_if_gpus_are_shared(
    shares: bool, expected: float, make_recipe: Any, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    allocation = GpuAllocation([MemoryProbe(step_shape(make_recipe(batch_size=32)), 15 * GIGABYTE, 0.1)], CARDS["H100"])
    monkeypatch.setattr(ray_connection, "connect_ray", lambda: None)
    monkeypatch.setattr(
        ray_tune, "max_concurrent_trials", lambda resources: calls.append(resources) or int(4 / resources.gpus)
    )
    monkeypatch.setattr(memory_probe, "local_gpu_kind", lambda: H100)
    monkeypatch.setattr(memory_probe, "load_or_run_probes", lambda *args: calls.append("probed") or allocation)
    store, view = Store(tmp_path / "colours"), ProgressView(Console(file=io.StringIO()), "colours")
    placement = Placement(prepared, store, view, Budget(CostTracker(store)), trainable.Resources(1, 1.0))
    placement.connect()
    assert calls == [trainable.Resources(1, 1.0)]  # during screening, the backbones to train are not known yet
    if shares:
        placement.share_gpus(prepared)
    placement.connect()
    placement.connect()
    assert calls.count("probed") == int(shares)
    assert calls[-1] == trainable.Resources(1, expected)
    assert placement.concurrent == 4 / expected
    assert placement.context(Trial("0000", "search", {}, make_recipe().as_dict())).gpus == expected
