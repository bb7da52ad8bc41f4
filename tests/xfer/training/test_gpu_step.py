"""What a step asks of a GPU, where there is none: nothing waits for it, and everything that meets is on one device.

torch's fake tensors stand for those on a GPU: they know shapes, types and devices, refuse to be asked for a number, and
refuse operations between devices. Their way back does not run without a driver, so a gradient is put in its place.
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
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default}


class Waiting(TorchDispatchMode):
    """Counts what a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            self.counted[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_what_counts_waiting_sees_it():
    with Waiting() as waiting:
        torch.ones(3).sum().item()
        bool(torch.ones(1) > 0)
    assert waiting.counted.total() == 2


@pytest.mark.parametrize("augmentation", ["none", "flip", "grey"])  # the others draw whole numbers in main memory
@pytest.mark.parametrize("clipping", [{"clip_norm": 0.1}, {"clip_value": 0.1}])
@pytest.mark.parametrize("strategy", ["linear_probe", "naive", "l2_sp", "layer_decay"])
def test_no_step_asks_for_a_number(make_recipe, make_run, strategy, clipping, augmentation):
    run = make_run(make_recipe(strategy=strategy, augmentation=augmentation, optimizer="sgd", **clipping))
    images, labels = next(run.inputs.evaluation_batches(run.split.train))
    run.learner.set_pace(TrainingProgress(0, 2))
    with Waiting() as waiting:
        for _ in range(3):
            run.learner.step(*run.inputs.transform(images, labels, torch.Generator()), 0.01)
    assert waiting.counted == {}


@pytest.fixture
def without_a_driver(monkeypatch):
    """What only a GPU's driver can do is left out."""
    monkeypatch.setattr("xfer.training.gradient.get_rng_state", lambda device: torch.zeros(0))
    monkeypatch.setattr(nn.Module, "to", lambda self, *where, **how: self)  # made there; fake ones cannot be moved
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: torch.no_grad())

    def graded(learner):
        def backward(loss):
            assert loss.device.type == "cuda"
            for parameter in learner.model.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

        monkeypatch.setattr(torch.autograd, "backward", backward)

    return graded


def learner_on_cuda(recipe):
    with CUDA:
        learner = Learner(recipe, None, CUDA)
        return learner, BatchTransform(recipe, learner.model, CUDA)


@pytest.mark.parametrize("optimizer", sorted({"sgd", "nesterov", "lion"} & set(OPTIMIZERS)))
@pytest.mark.parametrize("augmentation", ["none", "flip", "grey"])
def test_a_batch_on_the_gpu_stays_there_and_meets_nothing_from_elsewhere(
    make_recipe, without_a_driver, augmentation, optimizer
):
    recipe = make_recipe(strategy="l2_sp", augmentation=augmentation, optimizer=optimizer, clip_norm=1.0)
    with FakeTensorMode():
        learner, transform = learner_on_cuda(recipe)
        without_a_driver(learner)
        learner.set_pace(TrainingProgress(0, 2))
        images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        labels = torch.zeros(8, dtype=torch.long, device=CUDA)
        for _ in range(2):
            found = learner.step(*transform(images, labels, torch.Generator()), 0.1)
        assert {each.device.type for each in found} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            found[0].item()  # so a step that asked would have failed


def test_a_batch_from_main_memory_is_brought_to_the_gpu(make_recipe, without_a_driver):
    with FakeTensorMode():
        learner, transform = learner_on_cuda(make_recipe(augmentation="flip"))
        without_a_driver(learner)
        learner.set_pace(TrainingProgress(0, 2))
        images, labels = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.zeros(8, dtype=torch.long)
        found = learner.step(*transform(images, labels, torch.Generator()), 0.1)
        assert {each.device.type for each in found} == {"cuda"}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_only_what_works_anywhere_is_given_images_on_a_device(make_recipe, make_run, name):
    assert make_run(make_recipe(augmentation=name)).inputs.transform.can_augment_on_device == (
        name in GPU_AUGMENTATIONS
    )


@pytest.mark.parametrize("name", sorted(GPU_AUGMENTATIONS))
def test_what_works_anywhere_does_on_tensors_that_hold_no_numbers(name, monkeypatch):
    # On the meta device whoever asks for a number, or mixes in a tensor from elsewhere, fails. Draws stay in memory.
    monkeypatch.setattr(torch.Tensor, "to", staged(torch.Tensor.to))
    images = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="meta")
    found = AUGMENTATIONS[name]()(images, torch.Generator().manual_seed(0))
    assert (found.device.type, found.shape, found.dtype) == ("meta", images.shape, images.dtype)


def staged(to):
    """`Tensor.to` that sees that what goes to the device makes nobody wait."""

    def checked(tensor, *where, **how):
        if where and where[0] == torch.device("meta"):
            assert how.get("non_blocking") is True
        return to(tensor, *where, **how)

    return checked


# Numbers of 16 bits


@pytest.mark.parametrize("network", ["test_efficientnet", "test_vit"])
def test_in_bfloat16_the_network_computes_in_16_bits_and_all_that_is_kept_has_32(
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
    seen = set()
    run.model.get_classifier().register_forward_hook(
        lambda module, given, result: seen.add((module.training, result.dtype))
    )
    epochs = list(run)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}, "training in 16 bits, judged in 32"
    assert set(losses) == {torch.float32}
    assert {each.dtype for each in run.model.parameters()} == {torch.float32}
    kept = [value for state in run.learner.optimizer.state.values() for value in state.values()]
    assert {each.dtype for each in kept if isinstance(each, torch.Tensor) and each.ndim} == {torch.float32}
    assert run.record().arithmetic == "bfloat16"
    exact = Run(recipe, pack, weights_of(network), torch.device("cpu"))
    assert [epoch.train_loss for epoch in epochs] == pytest.approx(
        [epoch.train_loss for epoch in exact], rel=0.03
    )  # 8 bits of mantissa
    assert exact.record().arithmetic == "float32"


def test_a_head_on_embeddings_is_trained_in_32_bits_wherever_it_is(make_recipe, pack, weights_of):
    from xfer.run import Run

    recipe, cpu = make_recipe(strategy="linear_probe"), torch.device("cpu")
    half, full = (
        Run(recipe, pack, weights_of("test_efficientnet"), cpu, precision=each) for each in ("bfloat16", "float32")
    )
    assert [epoch.train_loss for epoch in half] == [epoch.train_loss for epoch in full]
    assert half.record().arithmetic == full.record().arithmetic == "float32"


@pytest.mark.slow  # compiles
def test_a_compiled_run_comes_to_the_same(make_recipe, pack, weights_of):
    from torch._dynamo.utils import counters

    from xfer.run import Run

    counters.clear()
    recipe = make_recipe(backbone="test_vit", batch_size=8, epochs=2)
    plain, compiled = (
        Run(recipe, pack, weights_of("test_vit"), torch.device("cpu"), compiled=each) for each in (False, True)
    )
    for one, other in zip(plain, compiled, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)
    assert counters["frames"]["ok"] == counters["frames"]["total"] == counters["stats"]["unique_graphs"] == 1
    assert compiled.record().arithmetic == "float32, compiled"
    assert compiled.state_dict()["model"].keys() == plain.state_dict()["model"].keys()
