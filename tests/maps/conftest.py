"""A network and a scene whose map can be worked out by hand."""

import pytest
from handmade import BANDS, PerPixel, card, values, write

from cromss.maps.model import Model


@pytest.fixture
def model(tmp_path):
    return Model(PerPixel().eval(), card(), tmp_path / "model")


@pytest.fixture
def scene(tmp_path):
    """Files of both modalities on one grid: 150 x 170 pixels."""
    return {
        name: write(tmp_path / f"{name}.tif", values(name, 150, 170, seed), BANDS[name])
        for seed, name in enumerate(("s1", "s2"))
    }
