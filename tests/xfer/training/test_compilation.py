"""Where torch.compile fails, training continues without it, and the log and the record say why."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.xfer.conftest import MEASURED_FIELDS
from xfer.records import as_dict
from xfer.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def make_compiled_run(one_thread, pack, weights_of):
    def run(recipe, folder=None):
        return Run(recipe, pack, weights_of(recipe.backbone), CPU, folder, compiled=True)

    return run


def epochs_of(run):
    return [{key: value for key, value in as_dict(epoch).items() if key not in MEASURED_FIELDS} for epoch in run]


class BackwardThatDoesNotCompile(torch.autograd.Function):
    """The identity, whose backward pass fails like one that is compiled when it is first needed."""

    @staticmethod
    def forward(context, inputs):
        return inputs.clone()

    @staticmethod
    def backward(context, gradient):
        raise RuntimeError("gcc: fatal error: Python.h: No such file or directory")


def fail_in_forward(model):
    def forward(inputs):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    return forward


def fail_in_backward(model):
    return lambda inputs: BackwardThatDoesNotCompile.apply(model(inputs))


FAILURES = {
    "forward": (fail_in_forward, "RuntimeError: Failed to find C compiler."),
    "backward": (fail_in_backward, "RuntimeError: gcc: fatal error: Python.h: No such file or directory"),
}


@pytest.mark.parametrize(("compile_model", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_run_that_cannot_be_compiled_equals_one_that_was_not_to_be(
    make_recipe, make_run, make_compiled_run, monkeypatch, caplog, compile_model, reason
):
    # Its batch norms and its dropout would notice a step that is taken twice.
    recipe = make_recipe(backbone="test_efficientnet", augmentation="flip", epochs=2)
    expected = epochs_of(make_run(recipe))
    monkeypatch.setattr(torch, "compile", compile_model)
    run = make_compiled_run(recipe)
    assert epochs_of(run) == expected
    assert run.record().arithmetic == f"float32, not compiled: {reason}"
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"torch.compile has failed, and training continues without it: {reason}"]


def test_the_reason_in_the_record_is_one_line_of_limited_length(make_recipe, make_compiled_run, monkeypatch):
    def fail(model):
        def forward(inputs):
            raise RuntimeError("Command: " + "g++ " * 1000 + "\nsecond line")

        return forward

    monkeypatch.setattr(torch, "compile", fail)
    run = make_compiled_run(make_recipe(epochs=1))
    list(run)
    _, _, reason = run.record().arithmetic.partition("not compiled: ")
    assert len(reason) == 200
    assert "\n" not in reason


def test_an_error_with_another_cause_is_raised(make_recipe, make_compiled_run, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model.__call__)
    run = make_compiled_run(make_recipe(epochs=1))
    monkeypatch.setattr(run.learner.model, "forward", lambda inputs: inputs / 0 @ "a bug")
    with pytest.raises(TypeError, match="unsupported operand|must be Tensor"):
        run.take_steps(0)


def test_a_batch_that_does_not_fit_in_memory_stays_compiled(make_recipe, make_compiled_run, monkeypatch):
    def compile_model(model):
        def forward(inputs):
            if len(inputs) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(inputs)

        return forward

    monkeypatch.setattr(torch, "compile", compile_model)
    run = make_compiled_run(make_recipe(batch_size=8, epochs=1))
    list(run)
    assert run.learner.micro_batch == 4
    assert run.record().arithmetic == "float32, compiled"


@pytest.mark.parametrize("changes", [{"embedding_loss": "contrastive"}, {"strategy": "linear_probe"}], ids=str)
def test_steps_that_do_not_go_through_the_compiled_network_are_not_called_compiled(
    make_recipe, make_compiled_run, changes
):
    run = make_compiled_run(make_recipe(epochs=1, **changes))
    list(run)
    assert run.record().arithmetic == "float32"


@pytest.mark.slow  # torch traces the network before it looks for a compiler
def test_without_a_compiler_training_continues(make_recipe, make_run, make_compiled_run, monkeypatch, tmp_path):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # an earlier test may have compiled the same network
    recipe = make_recipe(backbone="test_vit", batch_size=8, epochs=1)
    run = make_compiled_run(recipe)
    with config.patch({"cpp.cxx": (None, "/nonexistent/g++")}):
        epochs = epochs_of(run)
    assert epochs == epochs_of(make_run(recipe))
    words = run.record().arithmetic
    assert words.startswith("float32, not compiled: InvalidCxxCompiler: No working C++ compiler found")
