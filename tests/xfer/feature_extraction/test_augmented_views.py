"""Views of an image depend only on its index in the pack and the number of the view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xfer.choices import choose
from xfer.feature_extraction.augmented_views import augmented_view
from xfer.methods.augmentations import AUGMENTATIONS

IMAGES = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDICES = np.arange(6)


def views_of(name, indices=INDICES, view=0):
    return augmented_view(IMAGES[indices], indices, choose("augmentation", AUGMENTATIONS, name), view)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_is_the_same_in_every_batch(name):
    indices = np.array([4, 1])
    assert torch.equal(views_of(name, indices), views_of(name)[indices])
    assert views_of(name).dtype == torch.uint8
    assert views_of(name).shape == IMAGES.shape


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - {"none"}))
def test_views_differ(name):
    different = {views_of(name, view=view).numpy().tobytes() for view in range(4)}
    assert len(different) > 1


def test_torchs_random_state_does_not_change():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    views_of("randaugment")
    assert torch.equal(torch.get_rng_state(), before)
