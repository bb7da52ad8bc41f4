"""Measures the memory and duration of a training step, once per shape, with two steps on a GPU of its own.

Results are cached in the storage, so neither a resumed nor a later sweep measures again. Only `CudaMemoryMeter` and
`local_gpu_kind` need a GPU; neither has been tested on one.
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

from sweeps.engine.resources.gpu_sharing import CUDA_CONTEXT_BYTES, GpuAllocation, MemoryProbe
from sweeps.engine.resources.step_shape import StepShape, canonical_recipe, last_epoch_moment, step_shape
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.storage import json_objects
from xfer import hashing
from xfer.devices.device import Precision, default_precision
from xfer.recipe import Recipe, recipe_from_dict
from xfer.storage.object_store import absolute_uri, as_path
from xfer.training.inputs import MIN_EVALUATION_BATCH, BatchTransform
from xfer.training.learner import Learner

if TYPE_CHECKING:  # keeps the imports of a plan out of probing processes
    from sweeps.engine.planning.prepared import Prepared

log = logging.getLogger(__name__)

RemoteCall = Callable[[Callable[..., None], list[tuple[Any, ...]]], None]
"""Takes a function and the arguments of each of its calls, runs the calls on GPUs, and waits for them."""


class MemoryMeter(Protocol):
    """Measures the memory of a training step on a device."""

    device: torch.device

    def begin(self) -> None:
        """Reset the peak."""
        ...

    def wait(self) -> None:
        """Wait until the device has finished all work."""
        ...

    def peak_bytes(self) -> int:
        """Return the peak memory of this process since `begin`, including its context."""
        ...


class CudaMemoryMeter:
    """Memory of a GPU that no other process uses; memory of other processes would be counted too."""

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
        free, total = torch.cuda.mem_get_info(self.device)
        outside_allocator = total - free - torch.cuda.memory_reserved(self.device)
        return torch.cuda.max_memory_reserved(self.device) + max(outside_allocator, CUDA_CONTEXT_BYTES)


def measure_step(recipe: Recipe, meter: MemoryMeter, precision: Precision) -> MemoryProbe:
    """Train two steps and evaluate one batch on random images, and return what the steps took.

    Weights are random, because their values do not affect memory.

    Args:
        recipe: recipe whose shape is measured.
        meter: measures the memory of the device.
        precision: precision of the computation.
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
    with torch.inference_mode():  # the larger evaluation batch sets the peak if few parameters are trained
        learner.model(transform.prepare(images))
    meter.wait()
    return MemoryProbe(step_shape(recipe), meter.peak_bytes(), seconds)


@dataclass(frozen=True)
class GpuKind:
    """A GPU model, and the precision used on it."""

    name: str
    bytes: int
    precision: Precision


def local_gpu_kind() -> GpuKind:
    """Return the GPU of this machine. If a cluster's GPUs differ, call it on the smallest."""
    properties = torch.cuda.get_device_properties(0)
    return GpuKind(properties.name, properties.total_memory, default_precision(torch.device("cuda")))


def probe_path(folder: Path, shape: StepShape, kind: GpuKind) -> Path:
    """Return the path of a probe, named by a hash of the shape, the GPU and the version of torch."""
    identity = {**asdict(shape), **asdict(kind), "torch": torch.__version__}
    return folder / f"{hashing.sha256_json(identity)[:24]}.json"


def probe_on_gpu(folder: str, kind: dict[str, Any], recipes: list[dict[str, Any]]) -> None:
    """Probe recipes one after another on this process's GPU and store the results; all arguments are plain data."""
    probe_recipes(as_path(folder), GpuKind(**kind), [recipe_from_dict(recipe) for recipe in recipes], CudaMemoryMeter())


def probe_recipes(folder: Path, kind: GpuKind, recipes: Iterable[Recipe], meter: MemoryMeter) -> None:
    """Probe recipes one after another and store the results; a recipe that fails is logged and skipped."""
    for recipe in recipes:
        shape = step_shape(recipe)
        try:
            write_probe(probe_path(folder, shape, kind), measure_step(recipe, meter, kind.precision))
        except Exception:
            log.exception("%s could not be probed: each of its trials gets a whole GPU", shape)


def load_or_run_probes(recipes: Iterable[Recipe], folder: Path, kind: GpuKind, call: RemoteCall) -> GpuAllocation:
    """Load the probes of recipes from a folder, after running those that are missing, once per shape.

    Args:
        recipes: recipes whose shapes are probed.
        folder: folder of the cached probes.
        kind: the GPU.
        call: runs `probe_on_gpu` once per tuple of arguments, each on a GPU of its own, and waits for all.

    Returns:
        The allocation that follows from the probes.
    """
    by_path = {probe_path(folder, step_shape(recipe), kind): recipe for recipe in recipes}
    missing: dict[str, list[dict[str, Any]]] = {}
    for path, recipe in by_path.items():
        if read_probe(path) is None:
            missing.setdefault(recipe.backbone, []).append(recipe.as_dict())
    if missing:
        call(probe_on_gpu, [(absolute_uri(folder), asdict(kind), batch) for batch in missing.values()])
    return GpuAllocation([probe for path in by_path if (probe := read_probe(path)) is not None], kind.bytes)


def candidate_recipes(prepared: Prepared) -> list[Recipe]:
    """Return recipes of the shapes that a sweep will use.

    These are every backbone, image size, strategy and batch size, or the plan's arms. The sampler varies more than
    these. A later recipe gets its fraction from a probe whose shape dominates its own.
    """
    space, arms = prepared.space, prepared.plan.arms
    choices: list[Mapping[str, Any]] = (
        list(space.known_good(arms))
        if arms
        else [
            {"backbone": backbone, "image_size": image_size, "strategy": strategy, "batch_size": batch_size}
            for backbone in domain_values(space.axes["backbone"])
            for image_size in space.image_sizes or (prepared.image_size,)
            for strategy in space.strategies()
            for batch_size in domain_values(space.axes["batch_size"])
        ]
    )
    return [prepared.recipe(space.configured(choice)) for choice in choices]


def write_probe(path: Path, probe: MemoryProbe) -> None:
    """Store a probe, unless there is one already; stored probes never change."""
    json_objects.put_if_absent(path, asdict(probe))


def read_probe(path: Path) -> MemoryProbe | None:
    """Read a stored probe, or return None if there is none."""
    fields = json_objects.get(path)
    return None if fields is None else MemoryProbe(**{**fields, "shape": StepShape(**fields["shape"])})
