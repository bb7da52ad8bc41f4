"""Costs of a run: counts checked by hand, and plausible measurements."""

from __future__ import annotations

import inspect
import mmap
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from xfer.measure.cost import ResourceUsage, count_flops, count_parameters, peak_resident_bytes, resident_bytes
from xfer.records import Epoch


def test_every_parameter_is_counted_once():
    layer = nn.Linear(4, 3)
    assert count_parameters(nn.Sequential(layer, nn.BatchNorm1d(3))) == 4 * 3 + 3 + 6
    assert count_parameters(nn.Sequential(layer, layer)) == 15


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_has_two_flops_per_weight(bias):
    assert count_flops(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5, bias=bias)), 8) == 2 * 3 * 8 * 8 * 5


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 7, 3, padding=1), 2 * (3 * 3 * 3) * 7 * 16 * 16),
        (nn.Conv2d(3, 7, 3, stride=2, padding=1, bias=False), 2 * (3 * 3 * 3) * 7 * 8 * 8),
        (nn.Conv2d(3, 6, 5, groups=3), 2 * (5 * 5) * 6 * 12 * 12),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), 0),
    ],
)
def test_a_convolution_has_two_flops_per_weight_and_position(layer, expected):
    assert count_flops(layer, 16) == expected


def test_flops_depend_on_the_number_of_channels():
    assert count_flops(nn.Conv2d(1, 4, 1), 10, channels=1) == 2 * 4 * 10 * 10


def test_fused_and_plain_attention_have_the_same_flops():
    model = timm.create_model("test_vit", num_classes=3)
    fused = count_flops(model, 160)
    assert any(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert count_flops(model, 160) == fused > 0


def test_flops_grow_with_the_area_of_the_image():
    model = nn.Conv2d(3, 4, 3, padding=1)
    assert count_flops(model, 32) == 4 * count_flops(model, 16)


def test_counting_flops_does_not_change_the_network():
    model = timm.create_model("test_efficientnet", num_classes=3).train()
    model.conv_stem.eval()  # as if it were frozen
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert count_flops(model, 32) > 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_keeps_its_modes_even_if_counting_fails():
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 3)).train()
    with pytest.raises(RuntimeError):
        count_flops(model, 16)
    assert all(module.training for module in model.modules())


def test_usage_is_measured_since_creation():
    usage = ResourceUsage(torch.device("cpu"))
    sum(range(300_000))
    first = usage.seconds
    assert 0 < first < usage.seconds
    metrics = usage.system_metrics()
    assert 10 < metrics["cpu_percent"] < 2_000
    assert metrics["memory_mb"] == pytest.approx(resident_bytes() / 2**20, rel=0.1)
    assert metrics["gpu_memory_mb"] is metrics["gpu_percent"] is None


def test_system_metrics_are_fields_of_an_epoch():
    metrics = ResourceUsage(torch.device("cpu")).system_metrics()
    epoch = Epoch(1, 0.5, 0.5, 0.5, 0.5, 1e-3, 1.0, 2.0, 50.0, **metrics)
    assert {name: getattr(epoch, name) for name in metrics} == metrics


def system_memory(count):
    """Allocates bytes directly from the system; the allocator might reuse memory freed before."""
    memory = mmap.mmap(-1, count)
    memory.write(b"x" * count)
    return memory


def test_resident_memory_grows_with_allocations():
    before = resident_bytes()
    with system_memory(120_000_000):
        assert resident_bytes() - before > 100_000_000


def test_the_peak_includes_freed_memory():
    with system_memory(80_000_000):
        peak = resident_bytes()
    assert peak - resident_bytes() > 70_000_000
    assert peak_resident_bytes() >= peak


@pytest.mark.skipif(sys.platform != "linux", reason="other systems include the parent process")
def test_the_peak_does_not_include_the_parent_process():
    head = "import resource, sys\nfrom contextlib import suppress\nfrom pathlib import Path\n"
    code = f"{head}{inspect.getsource(peak_resident_bytes)}print(peak_resident_bytes())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert 1_000_000 < int(result.stdout) < peak_resident_bytes() / 2  # torch is not loaded
