import numpy as np
import pytest

from cromss.data.patch import Patch
from cromss.data.raster import centre
from cromss.data.tiling import cut


def patch(height=10, width=12, valid=None):
    """Every pixel knows its own row and column."""
    rows, columns = np.mgrid[:height, :width]
    return Patch(
        patch_id="p/0",
        location_id="p",
        acquisition="0",
        images={"s1": np.stack([rows, columns]).astype(np.float32), "s2": np.stack([rows * 100 + columns] * 3)},
        contracts={},
        label=(rows % 9).astype(np.uint8),
        clean=(columns % 9).astype(np.uint8),
        valid=valid,
        crs="EPSG:32633",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0),
    )


def covered(tiles, height=10, width=12):
    """How often each pixel of the patch is in a tile."""
    counts = np.zeros((height, width), int)
    for tile in tiles:
        rows, columns = tile.images["s1"].astype(int)
        np.add.at(counts, (rows, columns), 1)
    return counts


def test_tiles_hold_every_map_of_their_window_once_and_say_where_they_lie():
    whole = patch(valid=np.eye(10, 12, dtype=bool))
    tiles = cut(whole, 4)
    assert [tile.tile for tile in tiles] == ["r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2"]
    counts = covered(tiles)
    assert (counts[:8] == 1).all()
    assert (counts[8:] == 0).all()  # whole tiles only
    tile = tiles[4]
    assert (tile.patch_id, tile.location_id, tile.acquisition) == ("p/0/r1c1", "p", "0")
    for name in ("label", "clean", "valid"):
        np.testing.assert_array_equal(getattr(tile, name), getattr(whole, name)[4:8, 4:8])
    assert tile.transform == (10, 0, 500040, 0, -10, 5299960)
    assert (tile.lon, tile.lat) == centre(whole.crs, tile.transform, (4, 4))


def test_a_tile_does_not_keep_the_scene_in_memory():
    assert all(tile.images["s2"].base is None for tile in cut(patch(), 4))


def test_an_uncut_patch_stays_as_it_is():
    whole = patch()
    assert cut(whole) == [whole]
    assert cut(whole, split="none")[0].split == "train"


@pytest.mark.parametrize("tile", [None, 2, 4])
@pytest.mark.parametrize("axis", ["west-east", "north-south"])
def test_between_train_and_test_halves_lies_the_guard(axis, tile):
    tiles = cut(patch(12, 12), tile, split="halves", guard=4, axis=axis)
    position = 1 if axis == "west-east" else 0
    places = {
        split: np.concatenate([part.images["s1"][position].ravel() for part in tiles if part.split == split])
        for split in ("train", "test")
    }
    assert places["test"].min() - places["train"].max() > 4
    assert covered(tiles, 12, 12).max() == 1
    assert len({part.tile for part in tiles}) == len(tiles)


def test_swapped_halves_exchange_train_and_test():
    plain, swapped = (cut(patch(), 4, split=split, guard=2) for split in ("halves", "halves-swapped"))
    other = {"train": "test", "test": "train"}
    assert [(part.patch_id, other[part.split]) for part in plain] == [(part.patch_id, part.split) for part in swapped]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 11}, "10x12 pixels: smaller than a tile of 11"),
        ({"tile": 4, "split": "halves", "guard": 6}, "halves of 3 pixels beside a guard of 6 hold no tile of 4"),
        ({"split": "halves", "guard": 64}, "halves of 0 pixels"),
    ],
)
def test_a_patch_that_holds_no_tile_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message + ".*choose a smaller --tile"):
        cut(patch(), **arguments)
