"""A batch that does not fit in memory is split into micro-batches, and the training step stays the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from xfer.devices.microbatching import MicroBatcher, is_out_of_memory, split_evenly
from xfer.measure.accuracy import evaluate
from xfer.training import checkpoints

CONSTANT = {"schedule": "constant", "optimizer": "sgd"}
WITHOUT_STATISTICS = [
    {"backbone": "test_vit"},
    {"backbone": "test_efficientnet", "batch_norm": "frozen"},
    {"backbone": "test_resnet", "strategy": "linear_probe", "mixing": "cutmix"},  # mixing prevents cached features
]
RANDOM = {
    "augmentation": "randaugment",
    "mixing": "cutmix",
    "backbone_args": {"drop_rate": 0.3, "drop_path_rate": 0.2},
}


class Memory:
    """Limited memory of a network: raises torch's error if its inputs exceed a number of images.

    Args:
        run: its network is limited.
        max_images: maximum number of images of 32 px.
        error: class of the error.
        training_only: whether evaluation is unlimited.
    """

    def __init__(self, run, max_images, error=torch.OutOfMemoryError, training_only=False):
        self.passes = []
        self.errors = 0
        self.max_bytes = max_images * 3 * 32 * 32 * 4
        self._training_only = training_only
        self._error = error
        run.model.register_forward_pre_hook(self._check)

    def _check(self, module, inputs):
        if inputs[0].nbytes > self.max_bytes and (module.training or not self._training_only):
            self.errors += 1
            raise self._error(f"CUDA out of memory. Tried to allocate {inputs[0].nbytes} bytes.")
        if module.training:
            self.passes.append(len(inputs[0]))


def state(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same(first, second):
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# Splitting a batch


@pytest.mark.parametrize("minimum", [1, 2])
def test_parts_cover_a_batch_in_order_within_the_size_limits(minimum):
    for images in range(minimum, 40):
        for maximum in range(minimum, 45):
            parts = split_evenly(images, maximum, minimum)
            assert [index for part in parts for index in range(images)[part]] == list(range(images))
            sizes = [part.stop - part.start for part in parts]
            assert min(sizes) >= minimum
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= maximum or (maximum, minimum, max(sizes)) == (2, 2, 3)  # 5 = 3 + 2


def test_out_of_memory_errors_are_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)  # more than any machine has
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_other_errors_are_not_retried():
    attempts = []

    def attempt(parts):
        attempts.append(parts)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        MicroBatcher().run_split(8, attempt)
    assert len(attempts) == 1


def test_memory_of_a_failed_attempt_is_freed_before_the_next():
    freed = []

    class Activations:
        def __del__(self):
            freed.append(True)

    def attempt(parts):
        activations = Activations()
        if len(parts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return activations is not None and list(freed)

    assert MicroBatcher().run_split(8, attempt) == [True]


# Training in micro-batches


@pytest.mark.parametrize("changes", WITHOUT_STATISTICS, ids=str)
@pytest.mark.parametrize(
    "most", [3, *(pytest.param(most, marks=[pytest.mark.slow, pytest.mark.nightly]) for most in (1, 7))]
)
def test_without_batch_statistics_a_split_step_equals_that_of_the_whole_batch(make_recipe, make_run, changes, most):
    recipe = make_recipe(**CONSTANT, **changes, batch_size=8, epochs=1, learning_rate=0.05, clip_norm=0.5)
    full, split = make_run(recipe), make_run(recipe)
    memory = Memory(split, most)
    (expected,), (epoch,) = list(full), list(split)
    assert memory.passes != [8, 8, 8]
    assert max(memory.passes) <= most
    assert sum(memory.passes) == 24
    for name in ("train_loss", "gradient_norm", "distance"):
        assert getattr(epoch, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-6)
    assert epoch.train_accuracy == expected.train_accuracy
    for name, tensor in state(full).items():
        torch.testing.assert_close(split.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_step_on_cached_features_is_split_too(make_recipe, make_run):
    recipe = make_recipe(strategy="linear_probe", batch_size=8, epochs=1)
    full, split = make_run(recipe), make_run(recipe)
    sizes = []

    def limit(module, inputs):
        if module.training:
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")

    split.model.get_classifier().register_forward_pre_hook(limit)
    (expected,), (epoch,) = list(full), list(split)
    assert split.inputs.features is not None
    assert sizes == [8, *[4] * 6]
    assert epoch.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    torch.testing.assert_close(split.model.get_classifier().weight, full.model.get_classifier().weight)


def test_the_optimizer_steps_once_per_batch(make_recipe, make_run):
    run = make_run(make_recipe(backbone="test_vit", batch_size=10, epochs=1))  # 24 = 10 + 10 + 4
    memory = Memory(run, 5)
    steps = []
    run.learner.optimizer.register_step_post_hook(lambda *args: steps.append(1))
    list(run)
    assert memory.passes == [5, 5, 5, 5, 4]
    assert len(steps) == 3


@pytest.mark.parametrize(("most", "micro_batch"), [(8, None), (7, 4), (4, 4), (3, 2), (1, 1)])
def test_an_epoch_reports_the_micro_batch_size(make_recipe, make_run, most, micro_batch):
    run = make_run(make_recipe(backbone="test_vit", batch_size=8))
    memory = Memory(run, most)
    assert [epoch.micro_batch for epoch in run] == [micro_batch, micro_batch]
    # Training remembers the size that fits. Evaluation finds its own.
    assert micro_batch is None or memory.passes == [micro_batch] * (2 * 24 // micro_batch)


def test_a_batch_norm_in_training_mode_never_gets_a_single_image(make_recipe, make_run):
    run = make_run(make_recipe(batch_size=5, epochs=1))  # 24 = 4 x 5 + 4
    memory = Memory(run, 3)
    list(run)
    assert memory.passes == [3, 2] * 4 + [2, 2]


def test_a_run_that_runs_out_of_memory_equals_one_that_started_with_micro_batches(make_recipe, make_run):
    recipe = make_recipe(**RANDOM, batch_size=12, epochs=2)  # batch norm, dropout, augmentation and mixing
    small, shrunk = make_run(recipe), make_run(recipe)
    small.learner.microbatcher.size = 3
    memory = Memory(shrunk, 3)
    raised = []

    def once(module, inputs, output):
        if len(raised) < 2 and module.training:
            raised.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory in the middle of the network")

    shrunk.model.blocks[3].register_forward_hook(once)
    memory.max_bytes *= 100  # only the hook raises, after batch norm and dropout below it have run
    for one, other in zip(small, shrunk, strict=True):
        assert (one.train_loss, one.micro_batch) == (other.train_loss, other.micro_batch)
    assert len(raised) == 2
    assert_same(state(small), state(shrunk))


def test_running_out_of_memory_in_the_backward_pass_is_retried(make_recipe, make_run):
    recipe = make_recipe(backbone="test_vit", epochs=1, batch_size=8)
    full, split = make_run(recipe), make_run(recipe)
    once = []

    def out_of_memory(module, gradients, results):
        if not once:
            once.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")

    split.model.blocks[0].register_full_backward_hook(out_of_memory)
    (expected,), (epoch,) = list(full), list(split)
    assert epoch.micro_batch == 4
    assert epoch.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    for name, tensor in state(full).items():
        torch.testing.assert_close(split.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_if_not_even_the_smallest_part_fits_the_error_says_what_to_do(make_recipe, make_run, error):
    run = make_run(make_recipe(backbone="test_vit", batch_size=8))
    Memory(run, 0, error, training_only=True)
    with pytest.raises(MemoryError, match="not even 1 image at a time fit in memory: use a smaller image_size"):
        list(run)


def test_a_batch_norm_in_training_mode_needs_two_images(make_recipe, make_run):
    run = make_run(make_recipe(batch_size=5))
    Memory(run, 1, training_only=True)
    with pytest.raises(MemoryError, match="not even 3 images at a time"):  # 5 = 3 + 2
        list(run)


def test_a_loss_that_compares_images_is_not_split(make_recipe, make_run, monkeypatch):
    run = make_run(make_recipe(embedding_loss="contrastive", backbone="test_vit", batch_size=8))
    forward_features = run.model.forward_features

    def out_of_memory(inputs, **options):
        if run.model.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nsecond line")
        return forward_features(inputs, **options)

    monkeypatch.setattr(run.model, "forward_features", out_of_memory)
    message = r"a batch of 8 images .* cannot be split, because embedding_loss contrastive.* compares its images: .* "
    with pytest.raises(
        MemoryError, match=message + r"smaller batch_size .*\(CUDA out of memory. Tried to allocate 2 GiB"
    ):
        list(run)


def test_a_resumed_run_starts_with_the_micro_batch_size_that_fits(make_recipe, make_run, tmp_path):
    recipe = make_recipe(backbone="test_vit", epochs=3, batch_size=8)
    uninterrupted = make_run(recipe)
    Memory(uninterrupted, 4)
    list(uninterrupted)
    run = make_run(recipe, tmp_path)
    Memory(run, 4)
    next(iter(run))
    assert checkpoints.load(tmp_path)["micro_batch"] == 4
    resumed = make_run(recipe, tmp_path)
    memory = Memory(resumed, 4)
    resumed.evaluate = lambda part: uninterrupted.evaluate(part)  # only training is tested here
    assert [epoch.micro_batch for epoch in resumed] == [4, 4]
    assert memory.errors == 0
    assert_same(state(uninterrupted), state(resumed))


def test_a_checkpoint_without_a_micro_batch_size_can_be_read(make_recipe, make_run):
    run = make_run(make_recipe())
    state = run.state_dict()
    del state["micro_batch"]
    run.load_state_dict(state)
    assert run.learner.micro_batch is None


# Evaluation


def test_evaluation_in_micro_batches_has_the_same_result(make_recipe, make_run):
    run = make_run(make_recipe())
    indices = run.split.train
    full = evaluate(run.model, run.inputs.evaluation_batches(indices), run.inputs.transform.prepare, "train", indices)
    sizes = []
    run.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    memory = Memory(run, 5)
    split = evaluate(run.model, run.inputs.evaluation_batches(indices), run.inputs.transform.prepare, "train", indices)
    assert sizes == [24, 12, 6, 3, 3, 3, 3, 3, 3, 3, 3]
    assert memory.errors == 3
    assert split.correct == full.correct
    assert math.isclose(split.loss, full.loss, rel_tol=1e-5)


def test_evaluation_fails_if_a_single_image_does_not_fit():
    class WithoutMemory(nn.Module):
        def forward(self, images):
            raise MemoryError

    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(MemoryError, match="not even 1 image at a time"):
        evaluate(WithoutMemory(), [(pixels, torch.zeros(4, dtype=torch.long))], lambda images: images, "val", range(4))


def test_a_head_is_fitted_on_embeddings_computed_in_micro_batches(make_recipe, make_run):
    recipe = make_recipe(strategy="lp_ft", epochs=1, learning_rate=1e-9)
    full, split = make_run(recipe), make_run(recipe)
    forward_features = split.model.forward_features
    sizes = []

    def limited(inputs):
        sizes.append(len(inputs))
        if len(inputs) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward_features(inputs)

    split.model.forward_features = limited
    list(full)
    list(split)
    assert sizes[:7] == [30, 15, 6, 6, 6, 6, 6]  # training and validation part, once
    head = [run.model.get_classifier().weight for run in (full, split)]
    torch.testing.assert_close(*head, atol=1e-4, rtol=1e-4)
