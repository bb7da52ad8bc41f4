"""Photos for tables next to them."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.xfer.data.tables.table_files import NAMES


@pytest.fixture
def root(tmp_path):
    """A folder with four photos, for a table next to them."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "birds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number * 50, 0, 0)).save(path)
    return tmp_path / "birds"
