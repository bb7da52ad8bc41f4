"""What came of it: accuracy by hand, and costs that are there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from xfer.measure.accuracy import evaluate
from xfer.measure.cost import Usage, count_parameters, resident_bytes


class Colour(nn.Module):
    """Says the mean of each channel, and counts on dropout being off."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, images):
        return self.dropout(images.mean(dim=(2, 3)))


def test_an_evaluation_is_loss_and_correctness_image_by_image():
    images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    for place, channel in enumerate([0, 1, 2, 2, 1]):
        images[place, channel] = 3
    labels = torch.tensor([0, 1, 2, 0, 0])
    model = Colour().train()
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]  # of unequal size: the mean is over images
    found = evaluate(model, batches, lambda pixels: pixels.float(), "val", [10, 11, 12, 40, 41])
    assert found.correct == (True, True, True, False, False)
    assert found.accuracy == 0.6
    assert (found.part, found.images) == ("val", (10, 11, 12, 40, 41))
    expected = functional.cross_entropy(images.float().mean(dim=(2, 3)), labels)
    assert found.loss == pytest.approx(float(expected))
    assert not model.training


def test_parameters_are_counted_once_each():
    layer = nn.Linear(4, 3)
    assert count_parameters(nn.Sequential(layer, nn.BatchNorm1d(3))) == 4 * 3 + 3 + 6
    assert count_parameters(nn.Sequential(layer, layer)) == 15


def test_usage_is_of_the_time_since_it_was_made():
    usage = Usage(torch.device("cpu"))
    sum(range(300_000))
    first = usage.seconds
    assert 0 < first < usage.seconds
    found = usage.so_far()
    assert 10 < found["cpu_percent"] < 2_000
    assert found["memory_mb"] == pytest.approx(resident_bytes() / 2**20, rel=0.1)
    assert found["gpu_memory_mb"] is found["gpu_percent"] is None


def test_resident_memory_grows_with_what_is_held():
    before = resident_bytes()
    held = torch.ones(30_000_000)
    assert resident_bytes() - before > 0.8 * held.nbytes
