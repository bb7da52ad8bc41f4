"""Probing: two steps of training on a card of its own say how much memory and time a shape of trial takes.

What came of it is kept in the storage, so that neither a resumed nor a later sweep tries it again. Nothing here but
`CudaMemoryMeter` and `local_gpu_kind` needs a GPU, and those two have not met one yet.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sweeps.engine.resources.gpu_sharing import (
    CUDA_CONTEXT_BYTES,
    GpuAllocation,
    MemoryProbe,
    StepShape,
    canonical_recipe,
    last_epoch_moment,
    step_shape,
)
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.storage import json_objects
from xfer import hashing
from xfer.devices.device import Precision, default_precision
from xfer.recipe import Recipe, recipe_from_dict
from xfer.storage.object_store import absolute_uri, as_path
from xfer.training.inputs import MIN_EVALUATION_BATCH, BatchTransform
from xfer.training.learner import Learner

if TYPE_CHECKING:  # a process that probes needs none of what a plan needs
    from sweeps.engine.planning.prepare import Prepared

log = logging.getLogger(__name__)

RemoteCall = Callable[[Callable[..., None], list[tuple[Any, ...]]], None]
"""A function and the arguments of each call of it."""


class MemoryMeter(Protocol):
    """What tells how much a step takes."""

    device: torch.device

    def begin(self) -> None:
        """Forget what was before."""
        ...

    def wait(self) -> None:
        """Let everything that was begun come to its end."""
        ...

    def peak_bytes(self) -> int:
        """The most that this process has held since `begin`, its context included."""
        ...


class CudaMemoryMeter:
    """A GPU that this process has to itself: what strangers hold on it meanwhile counts as its own."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")

    def begin(self) -> None:
        """See `MemoryMeter`."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def wait(self) -> None:
        """See `MemoryMeter`."""
        torch.cuda.synchronize(self.device)

    def peak_bytes(self) -> int:
        """See `MemoryMeter`."""
        free, whole = torch.cuda.mem_get_info(self.device)
        beside = whole - free - torch.cuda.memory_reserved(self.device)
        return torch.cuda.max_memory_reserved(self.device) + max(beside, CUDA_CONTEXT_BYTES)


def measure_step(recipe: Recipe, meter: MemoryMeter, precision: Precision) -> MemoryProbe:
    """Train two steps on random pixels and judge one batch, and say what that took.

    Weights are random: they are as large as any.
    """
    meter.begin()
    learner = Learner(canonical_recipe(recipe), None, meter.device, precision)
    transform = BatchTransform(recipe, learner.model, meter.device)
    learner.set_pace(last_epoch_moment(recipe))
    chance = torch.Generator().manual_seed(0)
    count = max(MIN_EVALUATION_BATCH, recipe.batch_size)
    side = recipe.image_size
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=chance)
    labels = torch.randint(recipe.classes, (recipe.batch_size,), generator=chance)
    seconds = 0.0
    for _ in range(2):
        meter.wait()
        began = time.perf_counter()
        learner.step(*transform(images[: recipe.batch_size], labels, chance), recipe.learning_rate)
        meter.wait()
        seconds = time.perf_counter() - began
    learner.model.eval()
    with torch.inference_mode():  # larger batches than a step's: where little moves they decide
        learner.model(transform.prepare(images))
    meter.wait()
    return MemoryProbe(step_shape(recipe), meter.peak_bytes(), seconds)


@dataclass(frozen=True)
class GpuKind:
    """A kind of card, and what is computed in on it."""

    name: str
    bytes: int
    precision: Precision


def local_gpu_kind() -> GpuKind:
    """The card of this machine. Where a cluster's cards differ, a sweep should be started beside the smallest."""
    properties = torch.cuda.get_device_properties(0)
    return GpuKind(properties.name, properties.total_memory, default_precision(torch.device("cuda")))


def probe_path(folder: Path, shape: StepShape, kind: GpuKind) -> Path:
    """Where the probe of a shape is kept: by content, so another card or another torch is another probe."""
    known_by = {**asdict(shape), **asdict(kind), "torch": torch.__version__}
    return folder / f"{hashing.sha256_json(known_by)[:24]}.json"


def probe_on_card(folder: str, kind: dict[str, Any], recipes: list[dict[str, Any]]) -> None:
    """Probe recipes one after another on the GPU that this process was given, and write down what came of each."""
    probe_recipes(as_path(folder), GpuKind(**kind), [recipe_from_dict(recipe) for recipe in recipes], CudaMemoryMeter())


def probe_recipes(folder: Path, kind: GpuKind, recipes: Iterable[Recipe], meter: MemoryMeter) -> None:
    """Probe recipes one after another; one that cannot be is left out, with its reason in the log."""
    for recipe in recipes:
        shape = step_shape(recipe)
        try:
            write_probe(probe_path(folder, shape, kind), measure_step(recipe, meter, kind.precision))
        except Exception:
            log.exception("%s could not be probed: its trials get a card each", shape)


def load_or_run_probes(recipes: Iterable[Recipe], folder: Path, kind: GpuKind, call: RemoteCall) -> GpuAllocation:
    """Shares by the probes in a folder, which are made first where they are missing: once for each shape.

    Args:
        recipes: those whose shapes are to be known.
        folder: where probes are kept.
        kind: the card.
        call: calls `probe_on_card` with each of the arguments, on a card of its own each, and waits for all.
    """
    wanted = {probe_path(folder, step_shape(recipe), kind): recipe for recipe in recipes}
    missing: dict[str, list[dict[str, Any]]] = {}
    for path, recipe in wanted.items():
        if read_probe(path) is None:
            missing.setdefault(recipe.backbone, []).append(recipe.as_dict())
    if missing:
        call(probe_on_card, [(absolute_uri(folder), asdict(kind), each) for each in missing.values()])
    return GpuAllocation([probe for path in wanted if (probe := read_probe(path)) is not None], kind.bytes)


def candidate_recipes(prepared: Prepared) -> list[Recipe]:
    """Recipes whose shapes a sweep is going to meet: every backbone, strategy and batch size, or the plan's arms.

    The sampler varies more than that, and what it proposes later takes its share from a probe that is at least as large
    (`Shape.holds`).
    """
    space, arms = prepared.space, prepared.plan.arms
    wishes: list[Mapping[str, Any]] = (
        list(space.known_good(arms))
        if arms
        else [
            {"backbone": backbone, "strategy": strategy, "batch_size": batch_size}
            for backbone in domain_values(space.axes["backbone"])
            for strategy in space.strategies()
            for batch_size in domain_values(space.axes["batch_size"])
        ]
    )
    return [prepared.recipe(space.configured(wish)) for wish in wishes]


def write_probe(path: Path, probe: MemoryProbe) -> None:
    """Keep a probe, as an object that never changes."""
    json_objects.put_if_absent(path, asdict(probe))


def read_probe(path: Path) -> MemoryProbe | None:
    """A probe that was kept; None where there is none."""
    plain = json_objects.get(path)
    return None if plain is None else MemoryProbe(**{**plain, "shape": StepShape(**plain["shape"])})
