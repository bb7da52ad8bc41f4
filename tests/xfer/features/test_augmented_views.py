"""Versions of an image follow from its place and their number, whatever else is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xfer.choices import choose
from xfer.features.augmented_views import augmented_view
from xfer.methods.augmentations import AUGMENTATIONS

IMAGES = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PLACES = np.arange(6)


def drawn(name, places=PLACES, version=0):
    return augmented_view(IMAGES[places], places, choose("augmentation", AUGMENTATIONS, name), version)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_version_is_the_same_in_every_batch(name):
    some = np.array([4, 1])
    assert torch.equal(drawn(name, some), drawn(name)[some])
    assert drawn(name).dtype == torch.uint8
    assert drawn(name).shape == IMAGES.shape


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - {"none"}))
def test_versions_differ(name):
    different = {drawn(name, version=version).numpy().tobytes() for version in range(4)}
    assert len(different) > 1


def test_torchs_own_chance_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn("randaugment")
    assert torch.equal(torch.get_rng_state(), before)
