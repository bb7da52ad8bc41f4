"""A batch that does not fit the memory goes through in parts: the step stays the same, nothing is drawn anew."""

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
    {"backbone": "test_resnet", "strategy": "linear_probe", "mixing": "cutmix"},  # mixed images are others each time
]
CHANCE = {
    "augmentation": "randaugment",
    "mixing": "cutmix",
    "backbone_args": {"drop_rate": 0.3, "drop_path_rate": 0.2},
}


class Memory:
    """A network's memory, in bytes of the pixels that may be in it at a time: more, and torch's error is raised."""

    def __init__(self, run, most_images, error=torch.OutOfMemoryError):
        self.passes = []
        self.refused = 0
        self._bytes = most_images * 3 * 32 * 32 * 4
        self._error = error
        run.model.register_forward_pre_hook(self._meter)

    def _meter(self, module, inputs):
        if inputs[0].nbytes > self._bytes:
            self.refused += 1
            raise self._error(f"CUDA out of memory. Tried to allocate {inputs[0].nbytes} bytes.")
        if module.training:
            self.passes.append(len(inputs[0]))


def state(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same(first, second):
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# How a batch is divided


@pytest.mark.parametrize("least", [1, 2])
def test_parts_cover_a_batch_in_order_and_hold_no_more_and_no_fewer_than_allowed(least):
    for images in range(least, 40):
        for most in range(least, 45):
            parts = split_evenly(images, most, least)
            assert [place for part in parts for place in range(images)[part]] == list(range(images))
            sizes = [part.stop - part.start for part in parts]
            assert min(sizes) >= least
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= most or (most, least, max(sizes)) == (2, 2, 3)  # 5 in parts of 2: one would be alone


def test_memory_that_ran_out_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)  # more than any machine has
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_other_errors_are_not_tried_again():
    tried = []

    def attempt(parts):
        tried.append(parts)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        MicroBatcher().run_split(8, attempt)
    assert len(tried) == 1


def test_what_a_failed_attempt_held_is_free_before_the_next():
    freed = []

    class Activations:
        def __del__(self):
            freed.append(True)

    def attempt(parts):
        held = Activations()
        if len(parts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return held is not None and list(freed)

    assert MicroBatcher().run_split(8, attempt) == [True]


# A step in parts


@pytest.mark.parametrize("changes", WITHOUT_STATISTICS, ids=str)
@pytest.mark.parametrize("most", [1, 3, 7])
def test_without_batch_statistics_a_divided_step_is_that_of_the_whole_batch(make_recipe, make_run, changes, most):
    recipe = make_recipe(**CONSTANT, **changes, batch_size=8, epochs=1, learning_rate=0.05, clip_norm=0.5)
    whole, parts = make_run(recipe), make_run(recipe)
    memory = Memory(parts, most)
    (expected,), (found,) = list(whole), list(parts)
    assert memory.passes != [8, 8, 8]
    assert max(memory.passes) <= most
    assert sum(memory.passes) == 24
    for name in ("train_loss", "gradient_norm", "distance"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-6)
    assert found.train_accuracy == expected.train_accuracy
    for name, tensor in state(whole).items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_step_that_begins_with_features_is_divided_too(make_recipe, make_run):
    recipe = make_recipe(strategy="linear_probe", batch_size=8, epochs=1)
    whole, parts = make_run(recipe), make_run(recipe)
    sizes = []

    def small(module, inputs):
        if module.training:
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")

    parts.model.get_classifier().register_forward_pre_hook(small)
    (expected,), (found,) = list(whole), list(parts)
    assert parts.inputs.features is not None
    assert sizes == [8, *[4] * 6]
    assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    torch.testing.assert_close(parts.model.get_classifier().weight, whole.model.get_classifier().weight)


def test_the_optimizer_steps_once_for_a_batch_and_a_smaller_last_batch_counts_its_own_images(make_recipe, make_run):
    run = make_run(make_recipe(backbone="test_vit", batch_size=10, epochs=1))  # 24 = 10 + 10 + 4
    memory = Memory(run, 5)
    steps = []
    run.learner.optimizer.register_step_post_hook(lambda *given: steps.append(1))
    list(run)
    assert memory.passes == [5, 5, 5, 5, 4]
    assert len(steps) == 3


@pytest.mark.parametrize(("most", "micro_batch"), [(8, None), (7, 4), (4, 4), (3, 2), (1, 1)])
def test_the_epoch_says_how_many_images_went_through_at_a_time(make_recipe, make_run, most, micro_batch):
    run = make_run(make_recipe(backbone="test_vit", batch_size=8))
    memory = Memory(run, most)
    assert [epoch.micro_batch for epoch in run] == [micro_batch, micro_batch]
    # Once in training for each halving: what is known to fit is not asked again. Evaluation finds its own size.
    assert micro_batch is None or memory.passes == [micro_batch] * (2 * 24 // micro_batch)


def test_a_batch_norm_that_follows_its_images_never_sees_one_alone(make_recipe, make_run):
    run = make_run(make_recipe(batch_size=5, epochs=1))  # 24 = 4 x 5 + 4
    memory = Memory(run, 3)
    list(run)
    assert memory.passes == [3, 2] * 4 + [2, 2]


def test_a_run_whose_memory_runs_out_goes_on_like_one_that_began_with_the_smaller_parts(make_recipe, make_run):
    recipe = make_recipe(**CHANCE, batch_size=12, epochs=2)  # batch norm, dropout, augmentation and mixing
    began, found = make_run(recipe), make_run(recipe)
    began.learner.microbatcher.size = 3
    memory = Memory(found, 3)
    deep = []

    def once(module, inputs, output):
        if len(deep) < 2 and module.training:
            deep.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory: half-way through the network")

    found.model.blocks[3].register_forward_hook(once)
    memory._bytes *= 100  # the hook deep inside runs out, after batch norm and dropout below it have done their work
    for one, other in zip(began, found, strict=True):
        assert (one.train_loss, one.micro_batch) == (other.train_loss, other.micro_batch)
    assert len(deep) == 2
    assert_same(state(began), state(found))


def test_running_out_in_the_way_back_is_tried_again_too(make_recipe, make_run):
    recipe = make_recipe(backbone="test_vit", epochs=1, batch_size=8)
    whole, found = make_run(recipe), make_run(recipe)
    once = []

    def out_of_memory(module, gradients, results):
        if not once:
            once.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")

    found.model.blocks[0].register_full_backward_hook(out_of_memory)
    (expected,), (epoch,) = list(whole), list(found)
    assert epoch.micro_batch == 4
    assert epoch.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    for name, tensor in state(whole).items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_where_not_even_the_smallest_part_fits_the_error_says_what_to_do(make_recipe, make_run, error):
    run = make_run(make_recipe(backbone="test_vit", batch_size=8))
    run._start_accuracy = 0.0
    run._begin = lambda: Memory(run, 0, error)
    with pytest.raises(MemoryError, match="not even 1 image at a time fit in memory: use a smaller image_size"):
        list(run)


def test_two_images_are_the_least_for_a_batch_norm_that_follows_them(make_recipe, make_run):
    run = make_run(make_recipe(batch_size=5))
    run._begin = lambda: Memory(run, 1)
    with pytest.raises(MemoryError, match="not even 3 images at a time"):  # 5 = 3 + 2
        list(run)


def test_a_loss_that_compares_images_is_not_divided(make_recipe, make_run, monkeypatch):
    run = make_run(make_recipe(embedding_loss="contrastive", backbone="test_vit", batch_size=8))

    def out_of_memory(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore words")

    run._begin = lambda: monkeypatch.setattr(run.model, "forward_features", out_of_memory)
    refusal = r"a batch of 8 images .* cannot be split, because embedding_loss contrastive.* compares its images: .* "
    with pytest.raises(
        MemoryError, match=refusal + r"smaller batch_size .*\(CUDA out of memory. Tried to allocate 2 GiB"
    ):
        list(run)


def test_a_resumed_run_begins_with_the_parts_that_fitted(make_recipe, make_run, tmp_path):
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
    resumed.evaluate = lambda part: uninterrupted.evaluate(part)  # only training counts here
    assert [epoch.micro_batch for epoch in resumed] == [4, 4]
    assert memory.refused == 0
    assert_same(state(uninterrupted), state(resumed))


def test_a_checkpoint_from_before_there_were_micro_batches_is_still_read(make_recipe, make_run):
    run = make_run(make_recipe())
    state = run.state_dict()
    del state["micro_batch"]
    run.load_state_dict(state)
    assert run.learner.micro_batch is None


# Evaluation


def test_evaluation_in_parts_comes_to_the_same(make_recipe, make_run):
    run = make_run(make_recipe())
    places = run.split.train
    whole = evaluate(run.model, run.inputs.evaluation_batches(places), run.inputs.transform.prepare, "train", places)
    sizes = []
    run.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    memory = Memory(run, 5)
    parts = evaluate(run.model, run.inputs.evaluation_batches(places), run.inputs.transform.prepare, "train", places)
    assert sizes == [24, 12, 6, 3, 3, 3, 3, 3, 3, 3, 3]
    assert memory.refused == 3
    assert parts.correct == whole.correct
    assert math.isclose(parts.loss, whole.loss, rel_tol=1e-5)


def test_a_network_of_which_one_image_does_not_fit_cannot_be_judged():
    class Full(nn.Module):
        def forward(self, images):
            raise MemoryError

    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(MemoryError, match="not even 1 image at a time"):
        evaluate(Full(), [(pixels, torch.zeros(4, dtype=torch.long))], lambda images: images, "val", range(4))


def test_a_head_that_is_fitted_first_is_fitted_on_embeddings_found_in_parts(make_recipe, make_run):
    recipe = make_recipe(strategy="lp_ft", epochs=1, learning_rate=1e-9)
    whole, parts = make_run(recipe), make_run(recipe)
    real = parts.model.forward_features
    sizes = []

    def small(inputs):
        sizes.append(len(inputs))
        if len(inputs) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(inputs)

    parts.model.forward_features = small
    whole._begin()
    parts._begin()
    assert sizes[:7] == [30, 15, 6, 6, 6, 6, 6]  # all but the test part, once
    head = [run.model.get_classifier().weight for run in (whole, parts)]
    torch.testing.assert_close(*head, atol=1e-4, rtol=1e-4)
