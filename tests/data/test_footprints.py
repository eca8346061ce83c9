import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.warp import transform as reproject

from cromss.data.footprints import Footprints, footprints, shared_ground
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter

SIZE = (16, 16)
UTM = "EPSG:32633"


def tiles(*corners, crs=UTM, pixel=10.0, size=SIZE) -> Footprints:
    """Tiles of square pixels, named by number, with their north-western corner there."""
    transform = np.array([(pixel, 0, x, 0, -pixel, y) for x, y in corners], float).reshape(-1, 6)
    return Footprints.of([str(i) for i in range(len(corners))], [crs] * len(corners), transform, size)


def pairs(one, other):
    return [(int(a), int(b)) for a, b in shared_ground(one, other)]


def test_a_tile_shares_ground_with_the_one_it_overlaps_not_with_those_it_touches():
    here = tiles((500000, 5300000))
    around = tiles((500160, 5300000), (499840, 5300000), (500000, 5300160), (500000, 5299840))
    assert pairs(here, around) == []
    assert pairs(here, tiles((700000, 5300000), (500150, 5300150))) == [(0, 1)]


@given(st.integers(-40, 40), st.integers(-40, 40), st.sampled_from([(16, 16), (32, 32), (8, 24)]))
def test_shifted_by_whole_pixels_tiles_share_ground_exactly_while_their_rectangles_do(columns, rows, size):
    """Oracle: rectangles in pixel units."""
    other = tiles((500000 + 10 * columns, 5300000 - 10 * rows), size=size)
    wanted = -size[1] < columns < 16 and -size[0] < rows < 16
    assert bool(pairs(tiles((500000, 5300000)), other)) == wanted


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32632", "EPSG:3035"])
def test_the_same_ground_is_recognised_in_another_coordinate_system(crs):
    pixel = 10 / 111_000 if crs == "EPSG:4326" else 10.0
    (x, far), (y, _) = reproject(UTM, crs, [500000, 500400], [5300000, 5300000])
    assert pairs(tiles((500000, 5300000)), tiles((x, y), crs=crs, pixel=pixel)) == [(0, 0)]
    assert pairs(tiles((500000, 5300000)), tiles((far, y), crs=crs, pixel=pixel)) == []


def test_a_tile_on_the_date_line_finds_its_partner_in_the_next_zone():
    (x,), (y,) = reproject("EPSG:4326", "EPSG:32660", [179.9999], [10.0])
    (there,), (high,) = reproject("EPSG:4326", "EPSG:32601", [-179.9995], [10.0])
    east_of_it = tiles((there, high), crs="EPSG:32601")
    assert pairs(tiles((x, y), crs="EPSG:32660"), east_of_it) == [(0, 0)]
    assert pairs(tiles((x - 400, y), crs="EPSG:32660"), east_of_it) == []


def test_a_tile_that_does_not_say_where_it_lies_shares_nothing():
    assert len(tiles((500000, 5300000), crs="")) == 0
    assert pairs(tiles((500000, 5300000)), tiles((500000, 5300000), crs="")) == []


def test_a_store_tells_the_footprint_of_every_place_of_a_split_once(tmp_path):
    with StoreWriter(tmp_path / "store", scheme="dynamic-world", bands={"s1": ("VV", "VH")}, size=SIZE) as writer:
        for place, split in enumerate(["train", "train", "test"]):
            writer.add([_patch(place, season) for season in range(2)], split, 0)
    store = PatchStore.open(tmp_path / "store")
    found = footprints(store, ("train",))
    assert sorted(name[0] for name in found.ids) == ["0", "1"]
    assert sorted(found.transform[:, 2]) == [500000, 500320]
    assert len(footprints(store, ("train", "test"))) == 3
    assert len(footprints(store, ("validation",))) == 0
    assert [(a[0], b[0]) for a, b in shared_ground(footprints(store, ("test",)), tiles((500640, 5300000)))] == [
        ("2", "0")
    ]


def _patch(place, season):
    return Patch(
        patch_id=f"{place}/{season}",
        location_id=str(place),
        acquisition=str(season),
        images={"s1": np.full((2, *SIZE), -10, np.float32)},
        label=np.zeros(SIZE, np.uint8),
        crs=UTM,
        transform=(10.0, 0.0, 500000.0 + 320 * place, 0.0, -10.0, 5300000.0),
    )
