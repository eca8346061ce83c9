"""Windows cover every pixel with weights that add up to one, and hang on the ground."""

import numpy as np
import pytest

from cromss.maps.windows import Box, Windows


@pytest.mark.parametrize("overlap", [0, 1, 8, 16])
@pytest.mark.parametrize("phase", [(0, 0), (5, 11)])
@pytest.mark.parametrize("tile", [Box(0, 0, 70, 50), Box(13, 7, 50, 49), Box(69, 49, 70, 50)])
def test_in_every_tile_the_weights_of_all_windows_add_up_to_one(overlap, phase, tile):
    windows = Windows((70, 50), 32, overlap, phase)
    total = np.zeros(tile.size, np.float32)
    for window in windows.touching(tile):
        part = window.cut(tile)
        assert all(part.size), "a window that does not touch the tile would be computed for nothing"
        total[part.within(tile)] += windows.weights()[part.within(window)]
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_a_pixel_has_the_same_windows_whatever_scene_it_comes_in():
    whole = Windows.on((700, 900), (10.0, 0, 500_000.0, 0, -10.0, 5_000_000.0), 64, 16)
    top, left = 133, 271  # a part of it, cut out anywhere
    part = Windows.on((300, 300), (10.0, 0, 500_000.0 + 10 * left, 0, -10.0, 5_000_000.0 - 10 * top), 64, 16)
    tile = Box(40, 50, 90, 120)
    moved = Box(tile.top + top, tile.left + left, tile.bottom + top, tile.right + left)
    assert {(b.top + top, b.left + left) for b in part.touching(tile)} == {
        (b.top, b.left) for b in whole.touching(moved)
    }


def test_windows_do_not_care_how_a_grid_is_turned():
    # rows along x: the inverse of the transform decides, not its diagonal
    windows = Windows.on((100, 100), (0.0, 10.0, 480.0, 10.0, 0.0, 960.0), 64, 16)
    assert windows.phase == (0, 0)  # 480 and 960 m are 48 and 96 pixels, whole strides
    assert Windows.on((100, 100), (0.0, 10.0, 490.0, 10.0, 0.0, 960.0), 64, 16).phase == (47, 0)


def test_tiles_cover_the_scene_once():
    windows = Windows((70, 50), 32, 8)
    seen = np.zeros((70, 50), int)
    for tile in windows.tiles(32):
        seen[tile.within(windows.scene)] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("window", "overlap", "named"), [(16, 0, "window=16"), (64, 33, "overlap=33"), (64, -1, "overlap=-1")]
)
def test_what_cannot_be_blended_is_refused_by_name(window, overlap, named):
    with pytest.raises(ValueError, match=named):
        Windows((70, 50), window, overlap)
