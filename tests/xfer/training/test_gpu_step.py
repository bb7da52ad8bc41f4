"""A training step on a GPU never synchronizes, and keeps all tensors on one device. Tested without a GPU.

torch's fake tensors stand for tensors on a GPU: they have shapes, types and devices, and raise an error if a number is
read or when devices are mixed. Their backward pass does not run without a driver, so gradients are set instead.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from xfer.methods.augmentations import AUGMENTATIONS, GPU_AUGMENTATIONS
from xfer.methods.freezing import TrainingProgress
from xfer.methods.losses import LOSSES
from xfer.methods.optimizers import OPTIMIZERS
from xfer.training.inputs import BatchTransform
from xfer.training.learner import Learner

CUDA = torch.device("cuda")
SYNCHRONIZING_OPERATIONS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
}


class SynchronizationCounter(TorchDispatchMode):
    """Counts operations that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in SYNCHRONIZING_OPERATIONS:
            self.counted[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_the_counter_counts_synchronizations():
    with SynchronizationCounter() as counter:
        torch.ones(3).sum().item()
        bool(torch.ones(1) > 0)
    assert counter.counted.total() == 2


@pytest.mark.parametrize("augmentation", ["none", "flip", "grey"])  # the others draw integers in main memory
@pytest.mark.parametrize("clipping", [{"clip_norm": 0.1}, {"clip_value": 0.1}])
@pytest.mark.parametrize("strategy", ["linear_probe", "naive", "l2_sp", "layer_decay"])
def test_a_step_does_not_synchronize(make_recipe, make_run, strategy, clipping, augmentation):
    run = make_run(make_recipe(strategy=strategy, augmentation=augmentation, optimizer="sgd", **clipping))
    images, labels = next(run.inputs.evaluation_batches(run.split.train))
    run.learner.set_pace(TrainingProgress(0, 2))
    with SynchronizationCounter() as counter:
        for _ in range(3):
            run.learner.step(*run.inputs.transform(images, labels, torch.Generator()), 0.01)
    assert counter.counted == {}


@pytest.fixture
def without_driver(monkeypatch):
    """Replace what needs a GPU driver."""
    monkeypatch.setattr("xfer.training.gradient.get_rng_state", lambda device: torch.zeros(0))
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **options: self)  # fake tensors cannot be moved
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: torch.no_grad())

    def set_gradients(learner):
        def backward(loss):
            assert loss.device.type == "cuda"
            for parameter in learner.model.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

        monkeypatch.setattr(torch.autograd, "backward", backward)

    return set_gradients


def learner_on_cuda(recipe):
    with CUDA:
        learner = Learner(recipe, None, CUDA)
        return learner, BatchTransform(recipe, learner.model, CUDA)


@pytest.mark.parametrize("optimizer", sorted({"sgd", "nesterov", "lion"} & set(OPTIMIZERS)))
@pytest.mark.parametrize("augmentation", ["none", "flip", "grey"])
def test_a_batch_on_the_gpu_stays_there(make_recipe, without_driver, augmentation, optimizer):
    recipe = make_recipe(strategy="l2_sp", augmentation=augmentation, optimizer=optimizer, clip_norm=1.0)
    with FakeTensorMode():
        learner, transform = learner_on_cuda(recipe)
        without_driver(learner)
        learner.set_pace(TrainingProgress(0, 2))
        images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        labels = torch.zeros(8, dtype=torch.long, device=CUDA)
        for _ in range(2):
            results = learner.step(*transform(images, labels, torch.Generator()), 0.1)
        assert {result.device.type for result in results} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            results[0].item()  # so a step that synchronizes would have failed


def test_a_batch_from_main_memory_is_copied_to_the_gpu(make_recipe, without_driver):
    with FakeTensorMode():
        learner, transform = learner_on_cuda(make_recipe(augmentation="flip"))
        without_driver(learner)
        learner.set_pace(TrainingProgress(0, 2))
        images, labels = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.zeros(8, dtype=torch.long)
        results = learner.step(*transform(images, labels, torch.Generator()), 0.1)
        assert {result.device.type for result in results} == {"cuda"}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_only_gpu_augmentations_get_images_on_the_device(make_recipe, make_run, name):
    assert make_run(make_recipe(augmentation=name)).inputs.transform.can_augment_on_device == (
        name in GPU_AUGMENTATIONS
    )


@pytest.mark.parametrize("name", sorted(GPU_AUGMENTATIONS))
def test_gpu_augmentations_run_on_tensors_without_data(name, monkeypatch):
    # On the meta device reading a number or mixing devices fails. Random numbers are drawn in main memory.
    monkeypatch.setattr(torch.Tensor, "to", checked_to(torch.Tensor.to))
    images = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="meta")
    augmented = AUGMENTATIONS[name]()(images, torch.Generator().manual_seed(0))
    assert (augmented.device.type, augmented.shape, augmented.dtype) == ("meta", images.shape, images.dtype)


def checked_to(to):
    """`Tensor.to` that checks that copies to the device are asynchronous."""

    def checked(tensor, *args, **options):
        if args and args[0] == torch.device("meta"):
            assert options.get("non_blocking") is True
        return to(tensor, *args, **options)

    return checked


# bfloat16


@pytest.mark.parametrize("network", ["test_efficientnet", "test_vit"])
def test_in_bfloat16_the_network_computes_in_16_bits_and_all_state_has_32(
    make_recipe, pack, weights_of, monkeypatch, network
):
    from xfer.run import Run

    recipe = make_recipe(backbone=network, optimizer="adam", learning_rate=1e-3)
    losses = []
    cross_entropy = LOSSES["cross_entropy"]()

    def loss(logits, targets):
        losses.append(logits.dtype)
        return cross_entropy(logits, targets)

    monkeypatch.setitem(LOSSES, "cross_entropy", lambda: loss)
    run = Run(recipe, pack, weights_of(network), torch.device("cpu"), precision="bfloat16")
    modes = set()
    run.model.get_classifier().register_forward_hook(
        lambda module, inputs, result: modes.add((module.training, result.dtype))
    )
    epochs = list(run)
    assert modes == {(True, torch.bfloat16), (False, torch.float32)}, "trained in 16 bits, evaluated in 32"
    assert set(losses) == {torch.float32}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    moments = [value for state in run.learner.optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in moments if isinstance(value, torch.Tensor) and value.ndim} == {torch.float32}
    assert run.record().arithmetic == "bfloat16"
    full = Run(recipe, pack, weights_of(network), torch.device("cpu"))
    assert [epoch.train_loss for epoch in epochs] == pytest.approx(
        [epoch.train_loss for epoch in full], rel=0.03
    )  # 8 bits of mantissa
    assert full.record().arithmetic == "float32"


def test_a_head_on_cached_embeddings_trains_in_float32_at_any_precision(make_recipe, pack, weights_of):
    from xfer.run import Run

    recipe, cpu = make_recipe(strategy="linear_probe"), torch.device("cpu")
    half, full = (
        Run(recipe, pack, weights_of("test_efficientnet"), cpu, precision=precision)
        for precision in ("bfloat16", "float32")
    )
    assert [epoch.train_loss for epoch in half] == [epoch.train_loss for epoch in full]
    assert half.record().arithmetic == full.record().arithmetic == "float32"


@pytest.mark.slow  # compiling is slow
def test_a_compiled_run_has_the_same_result(make_recipe, pack, weights_of):
    from torch._dynamo.utils import counters

    from xfer.run import Run

    counters.clear()
    recipe = make_recipe(backbone="test_vit", batch_size=8, epochs=2)
    plain, compiled = (
        Run(recipe, pack, weights_of("test_vit"), torch.device("cpu"), compiled=flag) for flag in (False, True)
    )
    for one, other in zip(plain, compiled, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)
    assert counters["frames"]["ok"] == counters["frames"]["total"] == counters["stats"]["unique_graphs"] == 1
    assert compiled.record().arithmetic == "float32, compiled"
    assert compiled.state_dict()["model"].keys() == plain.state_dict()["model"].keys()
