"""True colour: what a pixel looks like depends on the land, not on what else is in the patch."""

import numpy as np
import pytest

from cromss.data.store import PatchStore
from cromss.data.stream import open_rows
from cromss.training.pictures import true_colour, views

# Typical Sentinel-2 L1C values of B4, B3, B2 (DN).
WATER, FOREST, FIELD, SAND, SNOW = (
    (420, 700, 950),
    (440, 640, 860),
    (1190, 1230, 1220),
    (3300, 2900, 2700),
    (6400, 5800, 6900),
)


def scene(*colours, size=24):
    """Vertical stripes with a little texture."""
    rng = np.random.default_rng(0)
    stripes = np.repeat(np.array(colours, np.float32), size // len(colours), axis=0)
    return np.broadcast_to(stripes, (size, *stripes.shape)) + rng.normal(0, 15, (size, *stripes.shape))


def shown(dn, valid=None):
    return true_colour(dn, np.ones(dn.shape[:2], bool) if valid is None else valid).astype(float)


def test_forest_is_dark_green_fields_brown_sand_bright_and_water_blue_green():
    picture = shown(scene(WATER, FOREST, FIELD, SAND))
    water, forest, field, sand = picture.reshape(24, 4, 6, 3).mean((0, 2))
    assert water[0] < min(water[1:])
    assert forest.max() < 0.6 * field.max()
    assert forest.argmax() == 1
    assert field[0] > field[2]
    assert sand.min() > 150
    assert sand.min() > field.max()


def test_snow_is_white_and_keeps_its_relief():
    picture = shown(scene(SNOW, tuple(0.6 * value for value in SNOW)))
    bright, shaded = picture[:, :12].mean((0, 1)), picture[:, 12:].mean((0, 1))
    assert bright.min() > 225
    assert np.ptp(bright) < 20
    assert shaded.max() < bright.min()


@pytest.mark.parametrize("land", [WATER, FOREST])
def test_a_patch_of_nothing_but_dark_land_is_not_stretched_into_noise(land):
    picture = shown(scene(land))
    assert picture.max() < 110
    assert picture.std((0, 1)).max() < 6


def test_clear_air_is_taken_away_and_surface_reflectance_left_alone():
    surface = scene((60, 60, 60), FIELD, SAND)
    np.testing.assert_allclose(shown(np.add(surface, (250, 400, 650))), shown(surface), atol=1)


def test_a_gap_changes_the_colour_of_nothing_else():
    dn, valid = scene(FOREST, FIELD), np.ones((24, 24), bool)
    before = shown(dn)
    dn[:6], valid[:6] = 0, False
    np.testing.assert_allclose(shown(dn, valid)[6:], before[6:], atol=1)
    assert not shown(dn, np.zeros_like(valid))[:6].any()


def test_a_store_without_red_green_and_blue_is_shown_in_grey(worlds, monkeypatch):
    store = PatchStore.open(worlds[0])
    batch = next(iter(open_rows(store, split="train", batch_size=4)))
    assert np.ptp(views(batch, store)["rgb"], axis=-1).max() > 20
    batch.images["s2"] = batch.images["s2"][:, -2:]
    monkeypatch.setitem(store.bands, "s2", store.bands["s2"][-2:])
    assert not np.ptp(views(batch, store)["rgb"], axis=-1).any()
