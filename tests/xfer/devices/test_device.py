"""The devices of a machine: whether there are enough, and which one a worker gets."""

from __future__ import annotations

import pytest
import torch

from xfer.devices.device import check_devices, nth_device

CPU = torch.device("cpu")


def test_there_must_be_enough_devices(monkeypatch):
    check_devices(CPU, 3)
    with pytest.raises(ValueError, match="0 devices: the number of devices must be at least 1"):
        check_devices(CPU, 0)
    with pytest.raises(ValueError, match="2 devices: a machine has only one device of type mps"):
        check_devices(torch.device("mps"), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    check_devices(torch.device("cuda"), 3)
    check_devices(torch.device("cuda", 1), 2)
    with pytest.raises(ValueError, match="2 devices were requested, but only 1 are visible from cuda:2 onwards"):
        check_devices(torch.device("cuda", 2), 2)


def test_workers_get_the_gpus_after_the_leaders_and_share_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert nth_device(torch.device("cuda", 1), 1) == torch.device("cuda", 2)
    assert nth_device(torch.device("cuda"), 1) == torch.device("cuda", 1)
    assert nth_device(CPU, 1) == CPU
