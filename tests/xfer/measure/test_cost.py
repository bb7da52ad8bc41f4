"""What a run costs: counts by hand, and measurements that are there."""

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


def test_parameters_are_counted_once_each():
    layer = nn.Linear(4, 3)
    assert count_parameters(nn.Sequential(layer, nn.BatchNorm1d(3))) == 4 * 3 + 3 + 6
    assert count_parameters(nn.Sequential(layer, layer)) == 15


@pytest.mark.parametrize("bias", [True, False])
def test_the_flops_of_a_linear_layer_are_two_for_each_weight(bias):
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
def test_the_flops_of_a_convolution_are_two_for_each_weight_and_place(layer, expected):
    assert count_flops(layer, 16) == expected


def test_images_of_other_channels_are_counted_as_such():
    assert count_flops(nn.Conv2d(1, 4, 1), 10, channels=1) == 2 * 4 * 10 * 10


def test_attention_counts_however_it_is_computed():
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


def test_counting_flops_leaves_the_network_as_it_was():
    model = timm.create_model("test_efficientnet", num_classes=3).train()
    model.conv_stem.eval()  # as where it is frozen
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert count_flops(model, 32) > 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_keeps_its_modes_also_where_the_image_does_not_fit_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 3)).train()
    with pytest.raises(RuntimeError):
        count_flops(model, 16)
    assert all(module.training for module in model.modules())


def test_usage_is_of_the_time_since_it_was_made():
    usage = ResourceUsage(torch.device("cpu"))
    sum(range(300_000))
    first = usage.seconds
    assert 0 < first < usage.seconds
    found = usage.system_metrics()
    assert 10 < found["cpu_percent"] < 2_000
    assert found["memory_mb"] == pytest.approx(resident_bytes() / 2**20, rel=0.1)
    assert found["gpu_memory_mb"] is found["gpu_percent"] is None


def test_what_was_used_are_fields_of_an_epoch():
    found = ResourceUsage(torch.device("cpu")).system_metrics()
    epoch = Epoch(1, 0.5, 0.5, 0.5, 0.5, 1e-3, 1.0, 2.0, 50.0, **found)
    assert {name: getattr(epoch, name) for name in found} == found


def pages(count):
    """So many bytes straight from the system: the allocator may have kept some from before."""
    held = mmap.mmap(-1, count)
    held.write(b"x" * count)
    return held


def test_resident_memory_grows_with_what_is_held():
    before = resident_bytes()
    with pages(120_000_000):
        assert resident_bytes() - before > 100_000_000


def test_the_peak_remembers_what_is_no_longer_held():
    with pages(80_000_000):
        with_it = resident_bytes()
    assert with_it - resident_bytes() > 70_000_000
    assert peak_resident_bytes() >= with_it


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the system also counts the process that started this one"
)
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    head = "import resource, sys\nfrom contextlib import suppress\nfrom pathlib import Path\n"
    code = f"{head}{inspect.getsource(peak_resident_bytes)}print(peak_resident_bytes())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert 1_000_000 < int(said.stdout) < peak_resident_bytes() / 2  # it holds no torch
